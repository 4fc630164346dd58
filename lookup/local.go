package lookup

// local is the set of the node's own addresses. Nearly all that are looked up
// are none of them, which a few bits tell.
type local struct {
	bits [4]uint64
	all  map[addr]struct{}
}

func newLocal(all map[addr]struct{}) local {
	l := local{all: all}
	for a := range all {
		b := bit(a)
		l.bits[b/64] |= 1 << (b % 64)
	}
	return l
}

func bit(a addr) uint64 { return (a.hi ^ a.lo) * 0x9e3779b97f4a7c15 >> 56 }

func (l *local) has(a addr) bool {
	b := bit(a)
	if l.bits[b/64]>>(b%64)&1 == 0 {
		return false
	}
	_, ok := l.all[a]
	return ok
}
