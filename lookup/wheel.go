package lookup

const (
	wheelSlots = 512
	wheelStep  = 50e6 // nanoseconds
)

// wheel says when to look at an entry again. Each entry is in exactly one slot;
// who must be looked at later than that is put in again, so that a lookup's
// usual life costs one visit.
type wheel struct {
	slots [wheelSlots]uint32
	done  int64 // the last slot that was emptied, counted from 1970
}

// put adds an entry to be looked at when due is over.
func (w *wheel) put(s *store, i uint32, due int64) {
	if w.done == 0 {
		w.done = due/wheelStep - wheelSlots/2
	}
	slot := min(max(due/wheelStep, w.done+1), w.done+wheelSlots-1)
	p := &w.slots[uint64(slot)%wheelSlots]
	s.at(i).later, *p = *p, i
}

// turn visits what was due before now. A visit may put entries in again, for
// later than now.
func (w *wheel) turn(s *store, now int64, visit func(uint32)) {
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
			next := s.at(i).later
			visit(i)
			i = next
		}
	}
}

// drain takes everything out and visits it.
func (w *wheel) drain(s *store, visit func(uint32)) {
	w.done = 0
	var all []uint32
	for slot := range w.slots {
		for i := w.slots[slot]; i != 0; i = s.at(i).later {
			all = append(all, i)
		}
		w.slots[slot] = 0
	}
	for _, i := range all {
		visit(i)
	}
}
