package lookup

// A place is a link of the node with what the tracker keeps of it. Its number
// stays its own while the link is there, and for a while after.
type place struct {
	link
	gone int64 // when the link was last known, 0 while it is there

	live     int    // entries of the lookups that were asked here
	named    int    // clients that have a record of their own
	nameless uint16 // the record that all others share, 0 when there is none

	asked, answered uint64 // questions and answers of its clients
	blind           bool
}

// loIndex is the index of lo in every network namespace.
const loIndex = 1

// places are the links. The one of lo is always there, as number 0: it stands
// for the node itself.
type places struct {
	all   []place
	slots []int32 // by hash of the link's index: 1 + its number
}

func newPlaces() places {
	p := places{all: []place{{link: link{index: loIndex, name: "lo", role: loopback}}}}
	p.rebuild()
	return p
}

// find gives the number of a link, or -1.
func (p *places) find(index int32) int {
	mask := uint32(len(p.slots) - 1)
	for s := uint32(index) * 0x9e3779b1 & mask; ; s = (s + 1) & mask {
		i := p.slots[s]
		if i == 0 {
			return -1
		}
		if p.all[i-1].index == index {
			return int(i - 1)
		}
	}
}

func (p *places) rebuild() {
	size := 16
	for size < 2*len(p.all)+2 {
		size *= 2
	}
	p.slots = make([]int32, size)
	mask := uint32(size - 1)
	for i := range p.all {
		if p.all[i].gone != 0 {
			continue
		}
		s := uint32(p.all[i].index) * 0x9e3779b1 & mask
		for p.slots[s] != 0 {
			s = (s + 1) & mask
		}
		p.slots[s] = int32(i + 1)
	}
}

// update takes a new picture of the links.
func (p *places) update(links []link, now int64) {
	known := make(map[int32]int, len(p.all))
	var free []int
	for i := range p.all {
		switch q := &p.all[i]; {
		case q.gone == 0:
			known[q.index] = i
		case q.live == 0 && q.named == 0 && q.nameless == 0 && now-q.gone > endpointIdle:
			free = append(free, i)
		}
	}
	for _, l := range links {
		i, ok := known[l.index]
		if ok {
			delete(known, l.index)
			p.all[i].link = l
			continue
		}
		q := place{link: l}
		switch {
		case len(free) > 0:
			i, free = free[0], free[1:]
			p.all[i] = q
		case len(p.all) < maxPlaces:
			p.all = append(p.all, q)
		}
	}
	for _, i := range known {
		if i != 0 {
			p.all[i].gone = max(now, 1)
		}
	}
	p.rebuild()
}
