package lookup

import "time"

// partner is the other half's entry, nil for none.
func (t *tracker) partner(e *entry) *entry {
	if e.pair == 0 {
		return nil
	}
	return t.store.at(e.pair)
}

// mismatch says that the other half found something, and this one failed in a
// way that may take it along.
func (t *tracker) mismatch(e *entry) bool {
	f := t.partner(e)
	return f != nil && f.is(over) && f.result == resultNoError && e.result != resultNoError && e.result != resultNoData
}

// nothing says that a lookup and its other half, if any, both found the name
// without an address.
func (t *tracker) nothing(e *entry) bool {
	if e.result != resultNoData || Type(e.qtype) != A && Type(e.qtype) != AAAA {
		return false
	}
	f := t.partner(e)
	return f == nil || f.is(over) && f.result == resultNoData && Type(e.qtype) == A
}

// conclude counts and reports a lookup with its other half.
func (t *tracker) conclude(i uint32, e *entry) {
	if e.pair == 0 {
		t.count(i, e)
		return
	}
	j := e.pair
	f := t.store.at(j)
	first, second := e, f
	if f.start < e.start {
		first, second = f, e
	}
	t.tell(first)
	t.tell(second)
	t.leave(i, e)
	t.leave(j, f)
}

// quick counts a pair at once when both halves were answered as they should, so
// that its entries, still in the processor's cache, serve the next pair.
func (t *tracker) quick(i uint32, e *entry) {
	j := e.pair
	if j == 0 || !e.plain() {
		return
	}
	f := t.store.at(j)
	if !f.plain() || t.mismatch(e) || t.mismatch(f) || t.nothing(e) || t.nothing(f) {
		return
	}
	t.conclude(i, e)
	t.release(e)
	t.store.remove(i)
	t.release(f)
	t.store.remove(j)
}

// plain says that a lookup was answered before anything else came of it.
func (e *entry) plain() bool {
	return e.flags&^fromHost == over|indexed && e.attempts == 1 && e.trouble == 0 && e.took() < askedAgain
}

// count counts and reports one lookup, and lets it go.
func (t *tracker) count(i uint32, e *entry) {
	t.tell(e)
	t.leave(i, e)
}

// tell counts a lookup, and reports it if somebody may have to know.
func (t *tracker) tell(e *entry) {
	t.counted++
	c := t.askers.all[e.client]
	sum := t.totals(c, t.resolverOf(e))
	sum.count(e.qtype, e.result)
	sum.retransmissions += uint64(e.attempts - 1)
	if e.result != resultTimeout {
		sum.durations.add(e.took())
	}
	if t.remarkable(e) {
		t.emit(t.lookup(c, e))
	}
}

func (t *tracker) totals(c *asker, r resolverCode) *totals {
	c.dirty = true
	if c.totals[r] == nil {
		c.totals[r] = &totals{}
	}
	c.totals[r].dirty = true
	return c.totals[r]
}

// wasted counts what a name of a search cost that turned out to exist.
func (t *tracker) wasted(c *asker, e *entry, n int) {
	if n == 0 {
		return
	}
	sum := t.totals(c, t.resolverOf(e))
	sum.wasted += uint64(n)
	if n > sum.worst {
		sum.worst, sum.worstName = n, present(t.store.name(e, &t.buf))
	}
}

// remarkable says whether an operator may have to know of a lookup.
func (t *tracker) remarkable(e *entry) bool {
	return e.is(timedOut|truncated) || !e.result.final() || time.Duration(e.took()) > t.cfg.slow || t.mismatch(e) || t.nothing(e)
}

// sum reports the totals.
func (t *tracker) sum(now int64) {
	for _, c := range t.askers.all {
		if c == nil || !c.dirty {
			continue
		}
		c.dirty = false
		for r, sum := range c.totals {
			if sum != nil && sum.dirty {
				t.emit(sum.report(t.client(c, nil), resolverCode(r).resolver(), now, c.used))
			}
		}
	}
}
