package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/probe"
)

// board is what the status page shows of names as it is now, beside what the
// sensors count themselves and the history.
type board struct {
	minutes minutes

	mu     sync.Mutex
	blind  map[blindKey]blindness
	probes map[probeKey]probe.Result
}

// maxProbes bounds the results that are kept: 16 names of two types at 8
// nameservers. The pods' own nameservers may be more.
const maxProbes = 2 * 16 * 8

type blindKey struct{ sensor, reason string }

// blindness is a sensor that cannot see.
type blindness struct {
	blindKey
	since            time.Time
	evidence, remedy string
}

type probeKey struct {
	name       string
	qtype      uint16
	nameserver netip.AddrPort
}

func newBoard() *board {
	return &board{blind: make(map[blindKey]blindness), probes: make(map[probeKey]probe.Result)}
}

// blindness notes that a sensor cannot see, or sees again.
func (b *board) blindness(is bool, v blindness) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !is {
		delete(b.blind, v.blindKey)
		return
	}
	if known, ok := b.blind[v.blindKey]; ok {
		v.since = known.since
	}
	b.blind[v.blindKey] = v
}

// incident counts an incident in its minute.
func (b *board) incident(in incident.Incident) {
	if in.Cause.Timeout() {
		b.minutes.add(in.Time, 0, in.Count, 0)
	} else {
		b.minutes.add(in.Time, 0, 0, in.Count)
	}
}

// probe notes the last result for a name, type and nameserver.
func (b *board) probe(r probe.Result) {
	key := probeKey{r.Name, r.Type, r.Nameserver}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.probes[key]; ok || len(b.probes) < maxProbes {
		b.probes[key] = r
	}
}

// blindnesses gives those of now, in a fixed order.
func (b *board) blindnesses() []blindness {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []blindness
	for _, v := range b.blind {
		all = append(all, v)
	}
	slices.SortFunc(all, func(x, y blindness) int {
		return cmp.Or(cmp.Compare(x.sensor, y.sensor), cmp.Compare(x.reason, y.reason))
	})
	return all
}

// probed gives the last results by name, nameserver and type.
func (b *board) probed() []probe.Result {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []probe.Result
	for _, r := range b.probes {
		all = append(all, r)
	}
	slices.SortFunc(all, func(x, y probe.Result) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), x.Nameserver.Compare(y.Nameserver), cmp.Compare(x.Type, y.Type))
	})
	return all
}
