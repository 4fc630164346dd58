package lookup

import (
	"fmt"
	"slices"
	"time"
)

// room makes an entry for a lookup of a link's client, and puts it on the
// wheel. When there is none left, one of the link that holds the most has to
// go, so that a flood throws away its own. It gives 0 when there is no room.
func (t *tracker) room(name []byte) uint32 {
	full := t.store.full()
	if !full {
		if i := t.store.add(name); i != 0 {
			t.wheel.put(&t.store, i, t.latest()+firstVisit)
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
		t.store.at(i).flags = done
		t.store.at(i).client = 0
		return 0
	}
	return 0
}

// latest is a time that no packet to come is much older than.
func (t *tracker) latest() int64 { return t.now + behindTime }

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

// end gives a lookup its outcome.
func (t *tracker) end(i uint32, e *entry, at int64, r result) {
	e.ended, e.result = e.since(at), r
	e.flags |= over
	if r == resultTimeout {
		e.flags |= timedOut
	}
	t.open--
	c := t.askers.all[e.client]
	if e.is(waiting) {
		t.calm(c, i, e)
	}
	if e.search != 0 || r != resultNoError {
		t.searched(c, e)
	}
	if e.trouble != 0 {
		t.gather(e) // before it is overwritten
	}
	if t.samples > 0 {
		t.samples--
		t.sample(e)
	}
}

// visit looks at an entry when its time has come.
func (t *tracker) visit(i uint32) {
	e := t.store.at(i)
	switch {
	case e.is(done):
		if e.client != 0 {
			t.release(e)
		}
		t.store.remove(i)
		return
	case e.is(alias):
		if t.mainOf(i) == 0 {
			t.store.unindex(i)
			e.flags |= done
		}
		t.wheel.put(&t.store, i, t.now+second)
		return
	case !e.is(over):
		if due := t.wait(i, e); !e.is(over | done) {
			t.wheel.put(&t.store, i, due)
			return
		}
	}
	ready := int64(0)
	if e.is(over) && !e.is(done) {
		if ready = t.ready(e); t.now >= ready {
			t.conclude(i, e)
		}
	}
	if e.is(done) {
		t.release(e)
		t.store.remove(i)
		return
	}
	if e.trouble != 0 {
		t.gather(e)
		ready = min(ready, t.now+second)
	}
	t.wheel.put(&t.store, i, max(ready, t.now+wheelStep))
}

// wait looks at a lookup without an outcome, and says when to look again.
func (t *tracker) wait(i uint32, e *entry) (due int64) {
	if e.is(failing) {
		if due = e.time(e.heard) + quietFor; due <= t.now {
			t.end(i, e, e.time(e.ended), e.result)
		}
		return due
	}
	if due = e.start + patience; t.now < due {
		return due
	}
	if !e.is(stalled) {
		t.stall(i, e)
		if e.is(over) {
			return 0
		}
	}
	end := e.start + giveUp
	if t.resolverOf(e) != muslCode {
		end = min(max(end, e.time(e.asked)+giveUpRetry), e.start+maxLife)
	}
	if t.now >= end {
		t.abandon(i, e)
		return 0
	}
	t.gather(e)
	return min(end, t.now+second)
}

// stall notes that a lookup is unanswered for a second.
func (t *tracker) stall(i uint32, e *entry) {
	e.flags |= stalled
	c := t.askers.all[e.client]
	t.worry(c, i, e)
	t.gather(e)
	home := &t.places.all[c.place]
	if home.role == client && home.answered == 0 && home.asked >= blindAfter && !home.blind && t.entered(e) {
		t.blind(home)
	}
	if home.blind {
		t.infer(i, e)
		return
	}
	t.emit(Stalled{Client: t.client(c, e), Start: when(e.start)})
}

// entered says whether an answer to a lookup came into the node.
func (t *tracker) entered(e *entry) bool {
	return e.trouble != 0 && len(t.troubles[e.trouble].entered) > 0
}

// infer takes the answer that entered the node for the one that the client got,
// where those cannot be seen.
func (t *tracker) infer(i uint32, e *entry) {
	found, _ := t.look(e, e.start, 0)
	for _, p := range found {
		if !p.out {
			t.end(i, e, p.at, result(p.rcode))
			return
		}
	}
}

// abandon gives a lookup up.
func (t *tracker) abandon(i uint32, e *entry) {
	if t.home(e).blind {
		if t.infer(i, e); !e.is(over) {
			t.unseen++
			t.open--
			t.leave(i, e)
		}
		return
	}
	if t.home(e).gone != 0 && !e.is(timedOut) {
		// The pod went, and took its question along.
		t.unseen++
		t.open--
		t.leave(i, e)
		return
	}
	// The client gave up before: musl five seconds after it began.
	at := e.time(e.asked) + clientLimit
	if t.resolverOf(e) == muslCode {
		at = e.start + clientLimit
	}
	t.end(i, e, min(at, t.now), resultTimeout)
}

// blind notes that a link's answers pass unseen.
func (t *tracker) blind(home *place) {
	first := !slices.ContainsFunc(t.places.all, func(p place) bool { return p.blind && p.gone == 0 })
	home.blind = true
	if first {
		t.emit(Blindness{
			Time: when(t.now), Reason: AnswersUnseen, Blind: true,
			Evidence: fmt.Sprintf("%d questions came in on %s, and answers to them entered the node, but not one left on %s",
				home.asked, home.name, home.name),
			Remedy: "the network plugin hands packets to pods past their links (Cilium does with bpf_redirect_peer; it can be turned off); " +
				"until then outcomes are taken from the answers that enter the node, and lost ones are not seen",
		})
	}
}

// sees notes that a link's answers are seen after all.
func (t *tracker) sees(home *place, at int64) {
	home.blind = false
	if !slices.ContainsFunc(t.places.all, func(p place) bool { return p.blind && p.gone == 0 }) {
		t.emit(Blindness{Time: when(at), Reason: AnswersUnseen, Evidence: "an answer left on " + home.name})
	}
}

// ready is when an ended lookup can be counted and reported: its other half is
// over, and what may still be seen of both was.
func (t *tracker) ready(e *entry) int64 {
	at := t.settled(e)
	if e.pair == 0 {
		return at
	}
	f := t.store.at(e.pair)
	if !f.is(over) {
		return t.now + 4*wheelStep
	}
	return max(at, t.settled(f))
}

func (t *tracker) settled(e *entry) int64 {
	ended := e.time(e.ended)
	at := ended + linger
	if e.attempts > 1 && e.result != resultTimeout {
		// Whether the answer to the retry comes in as well tells a slow server
		// from a lost question.
		at = max(at, e.time(e.asked)+min(clientLimit, e.took())+2*sameAttempt)
	}
	if e.is(truncated) && !e.is(byTCP) {
		at = max(at, ended+tcpWait)
	}
	if t.mismatch(e) || e.result == resultNoData && t.nothing(e) {
		at = max(at, ended+searchWait)
	}
	return at
}

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

// tick tells the time, after all packets that are there were taken.
func (t *tracker) tick(now int64) {
	if t.ticked != 0 && (now < t.ticked-second || now > t.ticked+clockJump) {
		t.jump(now)
	}
	t.ticked, t.now = now, now-behindTime
	t.wheel.turn(&t.store, t.now, t.visit)
	t.samples = samplesPerTick
	if now-t.reported >= second {
		t.reported = now
		t.sum(now)
	}
	if now-t.swept >= clockJump {
		t.swept = now
		t.sweep(now)
	}
}

// jump drops what is pending when the clock was set, or nobody looked for long:
// how long it took cannot be told.
func (t *tracker) jump(now int64) {
	t.now = now - behindTime
	t.wheel.drain(&t.store, func(i uint32) {
		if e := t.store.at(i); !e.is(over | done | alias) {
			t.throw(i, e)
		}
		t.wheel.put(&t.store, i, now)
	})
	for _, c := range t.askers.all {
		if c != nil {
			c.used, c.search = min(c.used, now), nil
		}
	}
	t.journal = newJournal()
	t.reported, t.swept = 0, 0
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
				t.emit(sum.report(t.client(c, nil), resolverCode(r).resolver(), now))
			}
		}
	}
}

// sweep forgets who was not seen for a while.
func (t *tracker) sweep(now int64) {
	t.askers.forget(&t.places, now-clientIdle)
	t.servers.forget(now - endpointIdle)
	t.peers.forget(now - endpointIdle)
	t.searches = 0
	for _, c := range t.askers.all {
		if c != nil {
			t.searches += len(c.search)
		}
	}
	if t.store.bloated() {
		t.store = newStore(t.cfg.pending)
		clear(t.recent)
		clear(t.siblings)
		t.cursor = 0
	}
}

// finish reports the lookups that are in trouble or ended, and the last totals.
func (t *tracker) finish() {
	t.now = max(t.now, t.ticked)
	t.wheel.drain(&t.store, func(i uint32) {
		e := t.store.at(i)
		if e.is(timedOut) && !e.is(over|done|alias) {
			e.flags |= uncertain
			t.end(i, e, t.now, resultTimeout)
		}
		t.wheel.put(&t.store, i, t.now)
	})
	t.wheel.drain(&t.store, func(i uint32) {
		if e := t.store.at(i); e.is(over) && !e.is(done|alias) {
			if f := t.partner(e); f != nil && !f.is(over) {
				e.pair, f.pair = 0, 0
			}
			t.conclude(i, e)
		}
		t.wheel.put(&t.store, i, t.now)
	})
	t.sum(t.now)
}
