package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// desk is where all that the sensors report comes together: it has it explained
// and counted, and hands on what is to be logged. It never blocks.
type desk struct {
	finder   finder
	metrics  *metrics
	reporter *reporter
	history  *history
	board    *board
	stalled  chan lookup.Stalled

	kubernetes *kubernetes // nil: no Events

	mu        sync.Mutex
	joiner    *incident.Joiner
	watching  bool                           // there is a lookup sensor
	resolvers map[netip.Addr]lookup.Resolver // what a client used last
	waiting   []lookup.Totals                // of clients that are not known yet
}

// finder is what the agent needs of a workload.Finder.
type finder interface {
	Run(ctx context.Context) error
	Close() error
	At(link int, client netip.AddrPort, t time.Time) (workload.Workload, bool)
	Alive(workload.Workload) bool
	Locate(ctx context.Context, link int, client netip.AddrPort, t time.Time) (workload.Workload, bool)
}

// maxResolvers bounds the clients whose resolver is remembered.
const maxResolvers = 4096

const (
	// totalWait is how long the totals of an unknown client wait for its name.
	totalWait  = 5 * time.Second
	maxWaiting = 4096
)

// stalledQueue is how many lookups may wait for their process to be found. It
// takes milliseconds each; those beyond do without.
const stalledQueue = 64

func newDesk(watching bool, f finder, m *metrics, r *reporter, h *history, b *board) *desk {
	d := &desk{
		finder: f, metrics: m, reporter: r, history: h, board: b, watching: watching,
		stalled:   make(chan lookup.Stalled, stalledQueue),
		resolvers: make(map[netip.Addr]lookup.Resolver),
	}
	d.joiner = incident.NewJoiner(watching, d.who, d.incident)
	return d
}

// who tells whose a client is.
func (d *desk) who(c lookup.Client, at time.Time) workload.Workload {
	w, _ := d.finder.At(c.Link, c.Addr, at)
	w.Host = w.Host || c.Host
	return w
}

// incident takes an explained incident from the joiner.
func (d *desk) incident(in incident.Incident) {
	d.metrics.incident(in)
	d.history.add(in)
	d.board.incident(in)
	d.kubernetes.incident(in)
	d.reporter.take(in)
}

// finding takes what the conntrack sensor reports.
func (d *desk) finding(f conntrack.Finding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.joiner.Finding(now, f)
	switch f := f.(type) {
	case conntrack.Orphan:
		d.collision(f.Original, orphaned, now)
	case conntrack.Collision:
		d.collision(f.Original, kept, now)
		if a, ok := incident.FromCollision(f); ok {
			d.reporter.take(a)
		}
		if f.Answered {
			d.reporter.take(f)
		}
	case conntrack.SlowFlow:
		// The lookups tell more, where they are seen.
		if !d.watching {
			d.reporter.take(f)
		}
	case conntrack.Blindness:
		d.blindness(f.Blind, blindness{blindKey{conntrackSensor, string(f.Reason)}, f.Time, f.Evidence, f.Remedy})
		d.reporter.take(f)
	case conntrack.Drop, conntrack.Loss:
		d.reporter.take(f)
	}
}

func (d *desk) blindness(is bool, v blindness) {
	d.metrics.blindness(v.sensor, v.reason, is)
	d.board.blindness(is, v)
}

func (d *desk) collision(original conntrack.Tuple, result string, now time.Time) {
	w, _ := d.finder.At(0, original.Source, now)
	d.metrics.collision(w, d.resolvers[original.Source.Addr()], result)
}

// event takes what the lookup sensor reports.
func (d *desk) event(e lookup.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	switch e := e.(type) {
	case lookup.Lookup:
		d.joiner.Lookup(now, e)
		if e.Slow && !e.TimedOut {
			d.reporter.take(e)
		}
	case lookup.Totals:
		if addr := e.Client.Addr.Addr(); d.resolvers[addr] != "" || len(d.resolvers) < maxResolvers {
			d.resolvers[addr] = e.Resolver
		}
		if len(d.waiting) < maxWaiting && !d.known(e) {
			d.waiting = append(d.waiting, e)
		} else {
			d.total(e)
		}
	case lookup.Stalled:
		select {
		case d.stalled <- e:
		default:
		}
	case lookup.Loss:
		d.joiner.Seen(e)
		d.reporter.take(e)
	case lookup.Blindness:
		d.joiner.Seen(e)
		d.blindness(e.Blind, blindness{blindKey{lookupSensor, string(e.Reason)}, e.Time, e.Evidence, e.Remedy})
		d.reporter.take(e)
	}
}

// known tells whether it is known whose the totals are. The first ones of a new
// pod come before the container runtime shows it.
func (d *desk) known(t lookup.Totals) bool {
	_, ok := d.finder.At(t.Client.Link, t.Client.Addr, t.Seen)
	return ok || t.Client.Host
}

func (d *desk) total(t lookup.Totals) {
	w := d.who(t.Client, t.Seen)
	d.metrics.totals(t, w)
	var n uint64
	for _, c := range t.Lookups {
		n += c.N
	}
	d.board.minutes.add(t.At, n, 0, 0)
	if a, ok := incident.FromTotals(t, w); ok {
		d.reporter.take(a)
	}
}

// totalWaiting counts the totals whose client is known by now, or will not be.
func (d *desk) totalWaiting(now time.Time) {
	d.waiting = slices.DeleteFunc(d.waiting, func(t lookup.Totals) bool {
		due := now.Sub(t.At) > totalWait || d.known(t)
		if due {
			d.total(t)
		}
		return due
	})
}

// finish counts what still waits. The sensors have ended.
func (d *desk) finish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.totalWaiting(time.Now().Add(time.Hour))
}

// run does what is due each second, until ctx ends.
func (d *desk) run(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			d.mu.Lock()
			d.joiner.Tick(now)
			d.totalWaiting(now)
			if len(d.resolvers) >= maxResolvers {
				clear(d.resolvers)
			}
			d.mu.Unlock()
			d.metrics.expire(now, d.finder.Alive)
		}
	}
}

// locate finds the processes of lookups that wait for their answer, as long as
// their sockets are open.
func (d *desk) locate(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-d.stalled:
			limit, cancel := context.WithTimeout(ctx, time.Second)
			d.finder.Locate(limit, s.Client.Link, s.Client.Addr, s.Start)
			cancel()
		}
	}
}
