package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
)

const (
	// logWindow is the time in which there is at most one line for each pod
	// and cause, or for each other kind of repeated finding.
	logWindow = 10 * time.Second
	// logKeys is how many pods and causes are told apart in that time.
	logKeys = 10_000
	// queueLength is how many findings may wait for the log.
	queueLength = 1024
)

// reporter turns findings into log lines. It has a queue and a goroutine of
// its own, because a log may block and the sensor must not.
type reporter struct {
	log   *slog.Logger
	debug bool // answered collisions are logged
	queue chan conntrack.Finding
	// left is how many findings found the queue full.
	left atomic.Uint64

	incidents *incident.Throttle[incident.Key, incident.Incident]
	dropped   *incident.Throttle[struct{}, conntrack.Drop]
	evicted   *incident.Throttle[struct{}, conntrack.Drop]
	losses    *incident.Throttle[struct{}, conntrack.Loss]
	retries   *incident.Throttle[netip.Addr, retry]
	unlogged  *incident.Throttle[struct{}, uint64]

	inexactSaid bool
}

// retry is a client that asked again, with the number of its flows.
type retry struct {
	conntrack.SlowFlow
	client netip.Addr
	count  uint64
}

// throttled is an incident.Throttle of any type.
type throttled interface {
	Due(now time.Time)
	Next() (time.Time, bool)
	Flush()
}

func newReporter(log *slog.Logger) *reporter {
	r := &reporter{
		log: log, debug: log.Enabled(context.Background(), slog.LevelDebug),
		queue: make(chan conntrack.Finding, queueLength),
	}
	r.incidents = incident.NewThrottle(logWindow, logKeys, incident.Rules[incident.Key, incident.Incident]{
		Key:   incident.Incident.Key,
		Merge: incident.Merge,
		Fold:  incident.Fold,
		Emit:  r.logIncident,
	})
	r.dropped = single(mergeDrops, r.logDrop)
	r.evicted = single(mergeDrops, r.logEviction)
	r.losses = single(mergeLosses, r.logLoss)
	r.retries = incident.NewThrottle(logWindow, logKeys, incident.Rules[netip.Addr, retry]{
		Key:   func(v retry) netip.Addr { return v.client },
		Merge: func(older, newer retry) retry { newer.count += older.count; return newer },
		Fold:  func(v retry) retry { v.client = netip.Addr{}; return v },
		Emit:  r.logRetry,
	})
	r.unlogged = single(func(older, newer uint64) uint64 { return older + newer }, r.logUnlogged)
	return r
}

// single is a throttle with one key.
func single[V any](merge func(older, newer V) V, emit func(V)) *incident.Throttle[struct{}, V] {
	return incident.NewThrottle(logWindow, 1, incident.Rules[struct{}, V]{
		Key:   func(V) struct{} { return struct{}{} },
		Merge: merge,
		Emit:  emit,
	})
}

func mergeDrops(older, newer conntrack.Drop) conntrack.Drop {
	newer.From = older.From
	newer.Clash += older.Clash
	newer.ChainTooLong += older.ChainTooLong
	newer.TableFull += older.TableFull
	newer.Evicted += older.Evicted
	return newer
}

func mergeLosses(older, newer conntrack.Loss) conntrack.Loss {
	newer.From = older.From
	newer.Messages += older.Messages
	return newer
}

// take queues a finding for the log; it never blocks. It must not be called
// after close.
func (r *reporter) take(finding conntrack.Finding) {
	// What no line will come of must not take the place of what one will.
	if c, ok := finding.(conntrack.Collision); ok && c.Answered && !r.debug {
		return
	}
	select {
	case r.queue <- finding:
	default:
		r.left.Add(1)
	}
}

// close lets run end once it has logged all that it took.
func (r *reporter) close() { close(r.queue) }

// run logs until close is called.
func (r *reporter) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if next, ok := r.next(); ok {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case finding, ok := <-r.queue:
			if ok {
				r.finding(time.Now(), finding)
			}
			if left := r.left.Swap(0); left > 0 {
				r.unlogged.Add(time.Now(), left)
			}
			if !ok {
				for _, t := range r.throttles() {
					t.Flush()
				}
				return
			}
		case <-due:
			for _, t := range r.throttles() {
				t.Due(time.Now())
			}
		}
	}
}

func (r *reporter) throttles() []throttled {
	return []throttled{r.incidents, r.dropped, r.evicted, r.losses, r.retries, r.unlogged}
}

// next is when the first of the throttles has something due.
func (r *reporter) next() (first time.Time, ok bool) {
	for _, t := range r.throttles() {
		if next, holds := t.Next(); holds && (!ok || next.Before(first)) {
			first, ok = next, true
		}
	}
	return first, ok
}

func (r *reporter) finding(now time.Time, finding conntrack.Finding) {
	switch f := finding.(type) {
	case conntrack.Orphan:
		if !f.Exact {
			r.sayInexact()
		}
		r.incidents.Add(now, incident.FromOrphan(f))
	case conntrack.Drop:
		if f.Clash+f.ChainTooLong+f.TableFull > 0 {
			r.dropped.Add(now, f)
		} else {
			r.evicted.Add(now, f)
		}
	case conntrack.Loss:
		r.losses.Add(now, f)
	case conntrack.Collision:
		r.logCollision(f)
		if !f.Answered {
			r.incidents.Add(now, incident.FromUnanswered(f))
		}
	case conntrack.SlowFlow:
		if f.Witness == conntrack.AfterOrphan {
			r.logSlowFlow(f) // the orphan was logged
		} else {
			r.retries.Add(now, retry{SlowFlow: f, client: f.Original.Source.Addr(), count: 1})
		}
	case conntrack.Blindness:
		r.logBlindness(f)
	}
}
