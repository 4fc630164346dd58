package lookup

const (
	wheelSlots = 512
	wheelStep  = 50e6 // nanoseconds
)

// wheel says when to look at an entry again. A new one is in a queue, and most
// are over and gone before their turn comes; the others are in exactly one slot,
// and who must be looked at later than that is put in again.
type wheel struct {
	slots [wheelSlots]uint32
	held  int   // entries in slots
	done  int64 // the last slot that was emptied, counted from 1970

	fresh []freshEntry
	head  int // of fresh: those before it had their turn
}

// freshEntry is a new entry, as long as it still has that serial number.
type freshEntry struct{ entry, serial uint32 }

// maxFresh bounds the queue; more go into a slot at once.
const maxFresh = 64 << 10

// add takes a new entry, to be looked at firstVisit after its start.
func (w *wheel) add(s *store, i uint32) {
	e := s.at(i)
	switch {
	case e.is(slotted):
	case len(w.fresh)-w.head < maxFresh:
		w.fresh = append(w.fresh, freshEntry{i, e.serial})
	default:
		w.put(s, i, e.start+firstVisit)
	}
}

// valid says whether the entry is still the one that was added.
func (f freshEntry) valid(s *store) bool {
	e := s.at(f.entry)
	return e.serial == f.serial && e.is(indexed|over|done) && !e.is(slotted)
}

// put adds an entry to be looked at when due is over.
func (w *wheel) put(s *store, i uint32, due int64) {
	if w.done == 0 {
		w.done = due/wheelStep - wheelSlots/2
	}
	slot := min(max(due/wheelStep, w.done+1), w.done+wheelSlots-1)
	p := &w.slots[uint64(slot)%wheelSlots]
	e := s.at(i)
	e.later, *p = *p, i
	e.flags |= slotted
	w.held++
}

// turn visits what was due before now. A visit may put entries in again, for
// later than now.
func (w *wheel) turn(s *store, now int64, visit func(uint32)) {
	for ; w.head < len(w.fresh); w.head++ {
		f := w.fresh[w.head]
		if !f.valid(s) {
			continue
		}
		if s.at(f.entry).start > now-firstVisit {
			break
		}
		visit(f.entry)
	}
	if 2*w.head >= len(w.fresh) {
		w.fresh = w.fresh[:copy(w.fresh, w.fresh[w.head:])]
		w.head = 0
	}
	last := now/wheelStep - 1
	if last-w.done > wheelSlots {
		w.done = last - wheelSlots
	}
	for w.done < last {
		w.done++
		p := &w.slots[uint64(w.done)%wheelSlots]
		i := *p
		*p = 0
		for i != 0 {
			e := s.at(i)
			next := e.later
			e.flags &^= slotted
			w.held--
			visit(i)
			i = next
		}
	}
}

// drain takes everything out and visits it.
func (w *wheel) drain(s *store, visit func(uint32)) {
	w.done = 0
	var all []uint32
	for _, f := range w.fresh[w.head:] {
		if f.valid(s) {
			all = append(all, f.entry)
		}
	}
	w.fresh, w.head = nil, 0
	for slot := range w.slots {
		for i := w.slots[slot]; i != 0; i = s.at(i).later {
			s.at(i).flags &^= slotted
			all = append(all, i)
		}
		w.slots[slot] = 0
	}
	w.held = 0
	for _, i := range all {
		visit(i)
	}
}
