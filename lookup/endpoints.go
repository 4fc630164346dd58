package lookup

const maxEndpoints = 4096

// peer is a server that was seen.
type peer struct {
	endpoint
	used int64 // when it was last seen

	inside bool // it answers, and the questions do not leave the node

	answered, asked int64 // see Backend
	unanswered      uint64
	backends        [8]backend // servers that this nameserver was translated to
	sampled         int64      // the tick in which its lookups were last looked at, and
	samples         uint8      // how many of them
}

// sample tells whether a lookup of this nameserver shall be looked at in a tick.
func (p *peer) sample(tick int64) bool {
	if p.sampled != tick {
		p.sampled, p.samples = tick, 0
	}
	if p.samples >= samplesOfOne {
		return false
	}
	p.samples++
	return true
}

// backend is a server with the time it was last seen behind a nameserver.
type backend struct {
	server uint16
	seen   int64
}

// endpoints gives peers small numbers. Number 0 is anyone for whom there was no
// room.
type endpoints struct {
	seed  uint64
	slots []uint16
	peers []peer
	free  []uint16
}

func newEndpoints(seed uint64) endpoints {
	return endpoints{seed: seed, slots: make([]uint16, 64), peers: make([]peer, 1, 32)}
}

func (e *endpoints) slot(p endpoint) uint64 {
	return mix(p.addr.hi^e.seed, p.addr.lo+uint64(p.port)<<48)
}

// find gives a peer's number, 0 when it is not known.
func (e *endpoints) find(p endpoint) uint16 {
	mask := uint64(len(e.slots) - 1)
	for s := e.slot(p) & mask; ; s = (s + 1) & mask {
		i := e.slots[s]
		if i == 0 || e.peers[i].endpoint == p {
			return i
		}
	}
}

// take gives a peer's number, and makes one for a new peer. fresh says that it
// did.
func (e *endpoints) take(p endpoint, at int64) (i uint16, fresh bool) {
	if i = e.find(p); i != 0 {
		e.peers[i].used = at
		return i, false
	}
	switch {
	case len(e.free) > 0:
		i = e.free[len(e.free)-1]
		e.free = e.free[:len(e.free)-1]
	case len(e.peers) <= maxEndpoints:
		i = uint16(len(e.peers))
		e.peers = append(e.peers, peer{})
	default:
		return 0, false
	}
	e.peers[i] = peer{endpoint: p, used: at}
	if 2*len(e.peers) > len(e.slots) {
		e.rebuild(2 * len(e.slots))
	} else {
		e.insert(i)
	}
	return i, true
}

func (e *endpoints) insert(i uint16) {
	mask := uint64(len(e.slots) - 1)
	s := e.slot(e.peers[i].endpoint) & mask
	for e.slots[s] != 0 {
		s = (s + 1) & mask
	}
	e.slots[s] = i
}

func (e *endpoints) rebuild(size int) {
	e.slots = make([]uint16, size)
	for i := range e.peers {
		if i > 0 && e.peers[i].used != 0 {
			e.insert(uint16(i))
		}
	}
}

// forget frees the numbers of those that were not seen after before, once most
// numbers are taken.
func (e *endpoints) forget(before int64) {
	if len(e.peers)-len(e.free) < maxEndpoints/2 {
		return
	}
	for i := range e.peers {
		if p := &e.peers[i]; i > 0 && p.used != 0 && p.used < before {
			*p = peer{}
			e.free = append(e.free, uint16(i))
		}
	}
	for i := range e.peers {
		for j, b := range e.peers[i].backends {
			if e.peers[b.server].used == 0 {
				e.peers[i].backends[j] = backend{}
			}
		}
	}
	e.rebuild(len(e.slots))
}

// behind notes that a nameserver was translated to a server.
func (p *peer) behind(server uint16, at int64) {
	oldest := 0
	for i := range p.backends {
		if p.backends[i].server == server {
			p.backends[i].seen = at
			return
		}
		if p.backends[i].seen < p.backends[oldest].seen {
			oldest = i
		}
	}
	p.backends[oldest] = backend{server: server, seen: at}
}
