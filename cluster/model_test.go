package cluster

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
)

// model is an API server as far as Leases go: versions, conflicts, and all that
// may become of a request on its way. It lives in a synctest bubble.
type model struct {
	latency time.Duration // the longest that one way of a request takes
	chaos   float64       // how likely a request comes to harm

	mu      sync.Mutex
	rnd     *rand.Rand
	version int
	leases  map[string]Lease
	past    map[string][]Lease // what each was before
	down    bool
	keep    bool          // nobody deletes a Lease
	calls   map[int64]int // by the second
	kinds   map[string]int
	applied func(before, after Lease) // under mu, when an update is carried out
}

func newModel(seed uint64) *model {
	return &model{
		latency: 50 * time.Millisecond, rnd: rand.New(rand.NewPCG(seed, 1)), leases: make(map[string]Lease),
		past: make(map[string][]Lease), calls: make(map[int64]int), kinds: make(map[string]int), applied: func(Lease, Lease) {},
	}
}

var errTimeout = errors.New("timeout")

// store gives a lease a new version. The caller holds mu.
func (m *model) store(l Lease) Lease {
	m.version++
	l.Version = strconv.Itoa(m.version)
	if old, ok := m.leases[l.Name]; ok {
		m.past[l.Name] = append(m.past[l.Name], old)
	}
	m.leases[l.Name] = l
	return l
}

func (m *model) get(name string) (Lease, error) {
	l, ok := m.leases[name]
	if !ok {
		return Lease{}, ErrNotFound
	}
	if past := m.past[name]; len(past) > 0 && m.hit(m.chaos/2) {
		return past[max(0, len(past)-1-m.rnd.IntN(3))], nil // an answer out of a cache
	}
	return l, nil
}

func (m *model) create(l Lease) (Lease, error) {
	if _, ok := m.leases[l.Name]; ok {
		return Lease{}, ErrConflict
	}
	return m.store(l), nil
}

func (m *model) update(l Lease) (Lease, error) {
	before, ok := m.leases[l.Name]
	if !ok {
		return Lease{}, ErrNotFound
	}
	if before.Version != l.Version {
		return Lease{}, ErrConflict
	}
	m.applied(before, l)
	return m.store(l), nil
}

// remove deletes all leases, as somebody may by hand.
func (m *model) remove() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.keep {
		clear(m.leases)
		clear(m.past)
	}
}

func (m *model) set(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func (m *model) hit(chance float64) bool { return m.rnd.Float64() < chance }

// fate is what becomes of a request.
type fate struct {
	there, back  time.Duration
	busy         time.Duration // the server says so, and does nothing
	lost, silent bool          // the request, or the answer
}

func (m *model) fate(kind string) fate {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[time.Now().Unix()]++
	m.kinds[kind]++
	f := fate{there: m.way(), back: m.way(), lost: m.down}
	switch {
	case m.hit(m.chaos):
		f.lost = true
	case m.hit(m.chaos):
		f.silent = true
	case m.hit(m.chaos): // it arrives when nobody waits for the answer any more
		f.there = requestTime + time.Duration(m.rnd.Int64N(int64(time.Minute)))
	case m.hit(m.chaos): // the answer is just in time
		f.there = time.Duration(m.rnd.Int64N(int64(requestTime)))
		f.back = requestTime - f.there - time.Millisecond
	case m.hit(m.chaos):
		f.busy = time.Duration(1+m.rnd.IntN(10)) * time.Second
	}
	return f
}

func (m *model) way() time.Duration { return time.Duration(m.rnd.Int64N(int64(m.latency))) }

// request sends one through all of that.
func (m *model) request(ctx context.Context, cut bool, kind string, do func() (Lease, error)) (Lease, error) {
	f := m.fate(kind)
	type answer struct {
		l   Lease
		err error
	}
	answers := make(chan answer, 1)
	if !f.lost && !cut && f.busy == 0 {
		time.AfterFunc(f.there, func() {
			m.mu.Lock()
			l, err := do()
			m.mu.Unlock()
			if !f.silent {
				time.AfterFunc(f.back, func() { answers <- answer{l, err} })
			}
		})
	}
	wait := requestTime
	if f.busy > 0 {
		wait = f.there + f.back
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case a := <-answers:
		return a.l, a.err
	case <-ctx.Done():
		return Lease{}, ctx.Err()
	case <-timer.C:
		if f.busy > 0 {
			return Lease{}, &busyError{after: f.busy, err: errors.New("too many requests")}
		}
		return Lease{}, errTimeout
	}
}

// port is one agent's way to the server.
type port struct {
	*model
	cutMu sync.Mutex
	gone  bool
}

func (p *port) cut(gone bool) {
	p.cutMu.Lock()
	defer p.cutMu.Unlock()
	p.gone = gone
}

func (p *port) isCut() bool {
	p.cutMu.Lock()
	defer p.cutMu.Unlock()
	return p.gone
}

func (p *port) Get(ctx context.Context, name string) (Lease, error) {
	return p.request(ctx, p.isCut(), "get", func() (Lease, error) { return p.get(name) })
}

func (p *port) Create(ctx context.Context, l Lease) (Lease, error) {
	return p.request(ctx, p.isCut(), "create", func() (Lease, error) { return p.create(l) })
}

func (p *port) Update(ctx context.Context, l Lease) (Lease, error) {
	return p.request(ctx, p.isCut(), "update", func() (Lease, error) { return p.update(l) })
}

// busiest gives the most calls in one second and in one minute.
func (m *model) busiest() (second, minute int) {
	minutes := make(map[int64]int)
	for s, n := range m.calls {
		second = max(second, n)
		minutes[s/60] += n
	}
	for n := range maps.Values(minutes) {
		minute = max(minute, n)
	}
	return second, minute
}
