package lookup

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
	if t.samples > 0 && t.journal.reaches(e.start) && t.servers.peers[e.servers[0]].sample(t.ticked) {
		t.samples--
		t.sampled = append(t.sampled, *e)
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
	home := t.home(e)
	if !home.blind && t.passesUnseen(home, e) {
		t.blind(home)
	}
	if home.blind {
		if t.infer(i, e); e.is(over) {
			return 0
		}
	}
	return min(end, t.now+second)
}

// stall notes that a lookup is unanswered for a second.
func (t *tracker) stall(i uint32, e *entry) {
	e.flags |= stalled
	c := t.askers.all[e.client]
	t.worry(c, i, e)
	t.gather(e)
	if t.home(e).blind {
		t.infer(i, e)
		return
	}
	t.emit(Stalled{Client: t.client(c, e), Start: when(e.start)})
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

// tick tells the time, after all packets that are there were taken.
func (t *tracker) tick(now int64) {
	if t.ticked != 0 && (now < t.ticked-second || now > t.ticked+clockJump) {
		t.jump(now)
	}
	t.ticked, t.now = now, now-behindTime
	t.wheel.turn(&t.store, t.now, t.visit)
	t.samples = samplesPerTick
	for len(t.sampled) > 0 && t.sampled[0].time(t.sampled[0].ended)+sampleWait < t.now {
		t.sample(&t.sampled[0])
		t.sampled = t.sampled[1:]
	}
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
	t.journal.skipped = t.now
	t.reported, t.swept = 0, 0
}

// sweep forgets who was not seen for a while.
func (t *tracker) sweep(now int64) {
	t.askers.forget(&t.places, now-clientIdle)
	t.servers.forget(now - endpointIdle)
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
		for _, c := range t.askers.all {
			if c != nil {
				c.latest = 0
			}
		}
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
