package lookup

import "slices"

// room makes an entry for a lookup of a link's client. When there is none left, one of the link that holds the most has to
// go, so that a flood throws away its own. It gives 0 when there is no room.
func (t *tracker) room(name []byte) uint32 {
	full := t.store.full()
	if !full {
		if i := t.store.add(name); i != 0 {
			return i
		}
		// There is no room for long names: one that has such a name has to go.
	}
	if t.evictions%64 == 0 {
		for n := range t.places.all {
			if t.places.all[n].live > t.places.all[t.fattest].live {
				t.fattest = n
			}
		}
	}
	t.evictions++
	for range maxProbes {
		if t.cursor++; t.cursor >= t.store.size {
			t.cursor = 1
		}
		e := t.store.at(t.cursor)
		if !e.is(indexed) || e.is(done|alias) || int(t.askers.all[e.client].place) != t.fattest ||
			!full && e.long == 0 {
			continue
		}
		i := t.cursor
		if e.is(over) {
			t.count(i, e)
		} else {
			t.throw(i, e)
		}
		t.release(e)
		if t.store.reuse(i, name) {
			return i
		}
		e.flags |= done
		e.client = 0
		if !e.is(slotted) {
			t.store.remove(i)
		}
		return 0
	}
	return 0
}

// throw drops a pending lookup.
func (t *tracker) throw(i uint32, e *entry) {
	t.thrown++
	t.open--
	t.leave(i, e)
}

// leave takes an entry out of all lists but the wheel's.
func (t *tracker) leave(i uint32, e *entry) {
	c := t.askers.all[e.client]
	t.calm(c, i, e)
	if e.is(truncated) {
		c.cut = slices.DeleteFunc(c.cut, func(j uint32) bool { return j == i })
	}
	if e.pair != 0 && !e.is(alias) {
		t.store.at(e.pair).pair = 0
		e.pair = 0
	}
	t.settle(e)
	t.store.unindex(i)
	e.flags |= done
}

// calm takes a lookup out of its client's list of those in trouble.
func (t *tracker) calm(c *asker, i uint32, e *entry) {
	if e.is(waiting) {
		e.flags &^= waiting
		c.trouble = slices.DeleteFunc(c.trouble, func(j uint32) bool { return j == i })
	}
}

// release gives an entry's share of its client and link back.
func (t *tracker) release(e *entry) {
	c := t.askers.all[e.client]
	c.live--
	t.places.all[c.place].live--
}
