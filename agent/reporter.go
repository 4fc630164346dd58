package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
)

const (
	// logWindow is the time in which there is at most one line for each pod
	// and cause, or for each other kind of repeated finding.
	logWindow = 10 * time.Second
	// adviceWindow is the same for advice: it can wait.
	adviceWindow = 10 * time.Minute
	// logKeys is how many pods and causes are told apart in that time.
	logKeys = 10_000
	// queueLength is how many findings may wait for the log.
	queueLength = 1024
)

// reporter writes the log lines of incidents, findings and advice. It has a queue and a goroutine of
// its own, because a log may block and the sensor must not.
type reporter struct {
	log   *slog.Logger
	debug bool     // answered collisions are logged
	queue chan any // what take takes
	// left is how many findings found the queue full.
	left atomic.Uint64

	incidents *incident.Throttle[incident.Key, incident.Incident]
	dropped   *incident.Throttle[struct{}, conntrack.Drop]
	evicted   *incident.Throttle[struct{}, conntrack.Drop]
	losses    *incident.Throttle[struct{}, conntrack.Loss]
	retries   *incident.Throttle[netip.Addr, retry]
	unlogged  *incident.Throttle[struct{}, uint64]
	unseen    *incident.Throttle[struct{}, lookup.Loss]
	advice    *incident.Throttle[incident.AdviceKey, incident.Advice]

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
		queue: make(chan any, queueLength),
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
	r.unseen = single(func(older, newer lookup.Loss) lookup.Loss {
		newer.From = older.From
		newer.Packets += older.Packets
		return newer
	}, r.logUnseen)
	r.advice = incident.NewThrottle(adviceWindow, logKeys, incident.Rules[incident.AdviceKey, incident.Advice]{
		Key:   incident.Advice.Key,
		Merge: incident.MergeAdvice,
		Fold: func(a incident.Advice) incident.Advice {
			return incident.Advice{Topic: a.Topic, Count: a.Count, Evidence: "too many clients for a line each", Remedy: a.Remedy}
		},
		Emit: r.logAdvice,
	})
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

// take queues for the log an incident.Incident, an incident.Advice, a
// conntrack.Finding or a lookup.Event; it never blocks. It must not be called
// after close.
func (r *reporter) take(v any) {
	// What no line will come of must not take the place of what one will.
	switch v.(type) {
	case conntrack.Collision, lookup.Lookup:
		if !r.debug {
			return
		}
	}
	select {
	case r.queue <- v:
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
		case v, ok := <-r.queue:
			if ok {
				r.handle(time.Now(), v)
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
	return []throttled{r.incidents, r.dropped, r.evicted, r.losses, r.retries, r.unlogged, r.unseen, r.advice}
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

func (r *reporter) handle(now time.Time, v any) {
	switch v := v.(type) {
	case incident.Incident:
		if !v.WaitedExact && v.Cause == incident.OrphanedAnswer {
			r.sayInexact()
		}
		r.incidents.Add(now, v)
	case incident.Advice:
		r.advice.Add(now, v)
	case conntrack.Drop:
		if v.Clash+v.ChainTooLong+v.TableFull > 0 {
			r.dropped.Add(now, v)
		} else {
			r.evicted.Add(now, v)
		}
	case conntrack.Loss:
		r.losses.Add(now, v)
	case conntrack.Collision:
		r.logCollision(v)
	case conntrack.SlowFlow:
		if v.Witness == conntrack.AfterOrphan {
			r.logSlowFlow(v) // the orphan was logged
		} else {
			r.retries.Add(now, retry{SlowFlow: v, client: v.Original.Source.Addr(), count: 1})
		}
	case conntrack.Blindness:
		r.logBlindness(conntrackSensor, string(v.Reason), v.Blind, v.Evidence, v.Remedy)
	case lookup.Lookup:
		r.logSlow(v)
	case lookup.Loss:
		r.unseen.Add(now, v)
	case lookup.Blindness:
		r.logBlindness(lookupSensor, string(v.Reason), v.Blind, v.Evidence, v.Remedy)
	}
}
