package lookup

const (
	maxClients   = 4096
	maxPerPlace  = 256
	maxPlaces    = 16384
	clientIdle   = 60e9
	endpointIdle = 60e9
)

// asker is a client address at a link, with its history.
type asker struct {
	addr     addr
	place    uint16
	number   uint16
	nameless bool // stands for all addresses of its link that have no record
	used     int64
	live     int // entries

	latest  uint32 // its latest question of an address, while that has no other half
	history history
	trouble []uint32 // entries that wait for an answer longer than usual
	cut     []uint32 // entries whose answer was truncated
	search  []*search
	totals  [resolvers]*totals
	dirty   bool
}

// askers are the clients. Number 0 is none.
type askers struct {
	seed  uint64
	slots []uint16
	all   []*asker
	free  []uint16
	named int
}

func newAskers(seed uint64) askers {
	return askers{seed: seed, slots: make([]uint16, 64), all: make([]*asker, 1, 32)}
}

func (a *askers) slot(place uint16, ip addr) uint64 {
	return mix(ip.hi^a.seed, ip.lo+uint64(place)<<48)
}

// find gives a client's record; nil when there is none.
func (a *askers) find(place uint16, ip addr) *asker {
	mask := uint64(len(a.slots) - 1)
	for s := a.slot(place, ip) & mask; ; s = (s + 1) & mask {
		i := a.slots[s]
		if i == 0 {
			return nil
		}
		if c := a.all[i]; c.addr == ip && c.place == place {
			return c
		}
	}
}

// take gives a client's record, and makes one where there is room: what its
// link has too many of share one.
func (a *askers) take(number uint16, p *place, ip addr) *asker {
	if c := a.find(number, ip); c != nil {
		return c
	}
	if p.named < maxPerPlace && a.named < maxClients {
		c := a.make(&asker{addr: ip, place: number})
		p.named++
		a.named++
		if 2*len(a.all) > len(a.slots) {
			a.rebuild(2 * len(a.slots))
		} else {
			a.insert(c)
		}
		return c
	}
	if p.nameless == 0 {
		p.nameless = a.make(&asker{place: number, nameless: true}).number
	}
	return a.all[p.nameless]
}

// get gives the record that an address of a link has or shares; nil for none.
func (a *askers) get(number uint16, p *place, ip addr) *asker {
	if c := a.find(number, ip); c != nil || p.nameless == 0 {
		return c
	}
	return a.all[p.nameless]
}

func (a *askers) make(c *asker) *asker {
	if n := len(a.free); n > 0 {
		c.number, a.free = a.free[n-1], a.free[:n-1]
		a.all[c.number] = c
	} else {
		c.number = uint16(len(a.all))
		a.all = append(a.all, c)
	}
	return c
}

func (a *askers) insert(c *asker) {
	mask := uint64(len(a.slots) - 1)
	s := a.slot(c.place, c.addr) & mask
	for a.slots[s] != 0 {
		s = (s + 1) & mask
	}
	a.slots[s] = c.number
}

func (a *askers) rebuild(size int) {
	a.slots = make([]uint16, size)
	for _, c := range a.all {
		if c != nil && !c.nameless {
			a.insert(c)
		}
	}
}

// forget drops those that were idle since before. What they counted must have
// been reported.
func (a *askers) forget(p *places, before int64) {
	forgot := false
	for i, c := range a.all {
		if c == nil || c.live > 0 || c.dirty || c.used >= before {
			continue
		}
		if c.nameless {
			p.all[c.place].nameless = 0
		} else {
			p.all[c.place].named--
			a.named--
		}
		a.all[i], forgot = nil, true
		a.free = append(a.free, uint16(i))
	}
	if forgot {
		a.rebuild(len(a.slots))
	}
}
