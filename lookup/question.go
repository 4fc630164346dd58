package lookup

// forwarded says whether a question that leaves with the node's own address is
// a pod's, whose address was masqueraded.
func (t *tracker) forwarded(p *packet, q *question) bool {
	i := t.recent[q.hash%recentSize]
	if i == 0 {
		return false
	}
	e := t.store.at(i)
	return e.hash == q.hash && e.is(indexed) && !e.is(fromHost) && p.at-e.time(e.heard) < 2*sameAttempt
}

// key is the hash that an entry is found by.
func (t *tracker) key(c *asker, ip addr, port, id uint16) uint32 {
	h := mix(t.seed, uint64(c.number)<<32|uint64(port)<<16|uint64(id))
	if c.nameless {
		h = mix(h, ip.hi) ^ mix(ip.lo, t.seed)
	}
	return uint32(h)
}

// question takes a client's question that was seen on one link; the client is
// one of another link if it is the node itself.
func (t *tracker) question(p *packet, q *question, on, of int) {
	home := &t.places.all[of]
	c := t.askers.take(uint16(of), home, p.src.addr)
	c.used = p.at
	home.asked++
	server, _ := t.servers.take(p.dst, p.at)
	key := t.key(c, p.src.addr, p.src.port, q.id)
	if i := t.store.find(key, c.number, p.src.port, q.id); i != 0 {
		if t.known(i, p, q, server) {
			return
		}
	}
	sign := q.sign(p.message)
	if len(c.trouble) > 0 && t.resumed(c, key, p, q, sign, server) {
		return
	}
	t.begun++
	i := t.room(q.name)
	if i == 0 {
		t.thrown++
		return
	}
	e := t.store.at(i)
	e.start, e.key, e.hash, e.nameHash = p.at, key, q.hash, q.nameHash
	e.servers[0], e.round, e.attempts = server, 1, 1
	e.client, e.place, e.port, e.id, e.ident, e.qtype = c.number, uint16(on), p.src.port, q.id, p.ipID, q.qtype
	e.sign, e.result, e.serial = sign, resultNone, uint32(t.begun)
	if of == 0 {
		e.flags |= fromHost
	}
	home.live++
	c.live++
	t.open++
	t.store.index(i)
	t.wheel.add(&t.store, i)
	t.recent[q.hash%recentSize] = i
	t.pairUp(c, i, e)
	if len(c.search) > 0 {
		t.searching(c, e, q.name)
	}
}

// known takes a question whose client, port and id are those of a lookup. It
// gives false when it begins a new one.
func (t *tracker) known(i uint32, p *packet, q *question, server uint16) bool {
	main := t.mainOf(i)
	if main != 0 {
		m := t.store.at(main)
		switch {
		case t.store.at(i).hash != q.hash:
		case !m.is(over):
			t.muslRetry(m, p.at)
			t.again(m, p, server)
			t.recent[q.hash%recentSize] = main
			return true
		case p.at <= m.time(m.ended)+linger:
			// It crossed its answer.
			m.attempts = min(m.attempts, 254) + 1
			m.asked = m.since(p.at)
			if tr := t.evidence(m); tr != nil {
				add(&tr.asked, t.sight(p.at, int(m.place), p.src.netip(), p.dst.netip()))
			}
			return true
		}
	}
	// The port and the id are in use for something else now.
	t.store.unindex(i)
	if e := t.store.at(i); !e.is(over | done | alias) {
		t.end(i, e, p.at, resultTimeout)
	}
	return false
}

// mainOf gives the lookup that an entry stands for, 0 when that is over.
func (t *tracker) mainOf(i uint32) uint32 {
	e := t.store.at(i)
	if !e.is(alias) {
		return i
	}
	m := t.store.at(e.pair)
	if m.is(alias|done) || !m.is(indexed) || m.client != e.client || m.nameHash != e.nameHash || m.qtype != e.qtype {
		return 0
	}
	return e.pair
}

// again takes a client's further question of a pending lookup.
func (t *tracker) again(e *entry, p *packet, server uint16) {
	at := e.since(p.at)
	position := e.asks(server)
	late := int64(at-min(e.asked, at)) * unit
	e.heard = at
	if late < sameAttempt && (position < 0 || e.round&(1<<position) == 0) {
		// Another nameserver in the same attempt.
		if position = e.ask(server); position >= 0 {
			e.round |= 1 << position
		}
		if e.trouble != 0 {
			add(&t.troubles[e.trouble].asked, t.sight(p.at, int(e.place), p.src.netip(), p.dst.netip()))
		}
		return
	}
	if late >= askedAgain && !e.is(failing) {
		e.flags |= timedOut
	}
	if tr := t.evidence(e); tr != nil {
		add(&tr.asked, t.sight(p.at, int(e.place), p.src.netip(), p.dst.netip()))
	}
	e.attempts = min(e.attempts, 254) + 1
	e.asked, e.round = at, 0
	if position = e.ask(server); position >= 0 {
		e.round = 1 << position
	}
}

// muslRetry notes that a question comes again when only musl asks again: half of
// its five seconds after the first (res_msend.c). The others wait whole seconds.
func (t *tracker) muslRetry(e *entry, at int64) {
	late := at - e.start
	if late < 2450*millisecond || late > 2650*millisecond || at-e.time(e.asked) < askedAgain || e.sign != plain {
		return
	}
	for _, half := range []*entry{e, t.partner(e)} {
		if half != nil && half.resolver != otherCode && half.port == e.port {
			half.resolver = muslCode
		}
	}
}

// ask adds a server to those asked, and gives its position; -1 when there is no
// room for it.
func (e *entry) ask(server uint16) int {
	if i := e.asks(server); i >= 0 {
		return i
	}
	for i, s := range e.servers {
		if s == 0 && i > 0 {
			e.servers[i] = server
			return i
		}
	}
	return -1
}

// resumed takes a question of a new socket that goes on with a lookup in
// trouble. glibc keeps the id when it turns to the next nameserver, for which it
// has another socket (send_dg); Go makes both anew, after its timeout, which is whole
// seconds, or after an error.
func (t *tracker) resumed(c *asker, key uint32, p *packet, q *question, sign signature, server uint16) bool {
	for _, i := range c.trouble {
		e := t.store.at(i)
		if e.nameHash != q.nameHash || e.qtype != q.qtype || e.sign != sign || e.is(over) {
			continue
		}
		late := p.at - e.time(e.asked)
		onTime := late > askedAgain && late < clientLimit+200*millisecond && (late+10*millisecond)%second < 110*millisecond
		atOnce := e.is(failing) && p.at-e.time(e.heard) < 2*sameAttempt
		same := e.id == q.id
		if sign == goEDNS {
			same = same || onTime || atOnce
		} else if e.is(failing) && e.asks(server) >= 0 && p.at-e.time(e.heard) >= atOnceFor {
			// After a failure glibc goes to another nameserver, or where that was the
			// last one begins anew, at once: it is another call, with the same id by
			// chance.
			same = false
		}
		if !same {
			continue
		}
		// What this socket sent may be in the journal already, whose times are in
		// microseconds.
		asked := p.at - 1000
		t.gatherTo(e, asked)
		t.store.unindex(i)
		t.leaveAlias(e, i)
		e = t.store.at(i)
		t.again(e, p, server)
		if tr := t.evidence(e); tr != nil {
			tr.from, tr.seen = asked, 0
		}
		e.key, e.port, e.id, e.hash = key, p.src.port, q.id, q.hash
		t.store.index(i)
		t.recent[q.hash%recentSize] = i
		return true
	}
	return false
}

// leaveAlias makes the old socket of a lookup lead to it.
func (t *tracker) leaveAlias(e *entry, i uint32) {
	if t.store.full() {
		return
	}
	n := t.store.add(nil)
	a := t.store.at(n)
	a.start, a.key, a.hash, a.nameHash, a.pair = e.start, e.key, e.hash, e.nameHash, i
	a.client, a.place, a.port, a.id, a.qtype, a.flags = e.client, e.place, e.port, e.id, e.qtype, alias
	t.home(e).live++
	t.askers.all[e.client].live++
	t.store.index(n)
	t.wheel.put(&t.store, n, t.now+second)
}

// home is the link that a lookup's client belongs to.
func (t *tracker) home(e *entry) *place { return &t.places.all[t.askers.all[e.client].place] }

// ways is how many entries of one place in the table of siblings there are:
// clients that ask at the same time must not push each other out.
const ways = 4

func (t *tracker) siblings4(e *entry) (bucket *[ways]sibling, tag uint32) {
	h := uint64(e.nameHash) | uint64(e.client)<<32
	if e.sign != goEDNS { // only Go's two questions come from two ports
		h |= uint64(e.port) << 48
	}
	h = mix(t.seed, h)
	return (*[ways]sibling)(t.siblings[h%(siblingSize/ways)*ways:]), uint32(h >> 32)
}

// sibling finds a question that waits for its other half.
func (t *tracker) sibling(e *entry) uint32 {
	bucket, tag := t.siblings4(e)
	for _, s := range bucket {
		if s.tag == tag {
			return s.entry
		}
	}
	return 0
}

// remember keeps a question that may still find its other half.
func (t *tracker) remember(i uint32) {
	e := t.store.at(i)
	if !e.is(indexed) || e.pair != 0 {
		return
	}
	bucket, tag := t.siblings4(e)
	n := 0
	for ; n < ways-1 && bucket[n].tag != tag; n++ {
	}
	for ; n > 0; n-- {
		bucket[n] = bucket[n-1]
	}
	bucket[0] = sibling{tag, i}
}

// pairUp finds the other half of a resolver's call.
func (t *tracker) pairUp(c *asker, i uint32, e *entry) {
	lasting := c.history.lasting(e.port, e.nameHash)
	if lasting {
		e.resolver = otherCode
	}
	if Type(e.qtype) != A && Type(e.qtype) != AAAA {
		return
	}
	// Nearly always the client's latest question is the other half. Others wait
	// in a table.
	j := c.latest
	if !t.halves(e, j) {
		if j != 0 {
			t.remember(j)
		}
		if c.latest, j = i, t.sibling(e); !t.halves(e, j) {
			return
		}
	}
	c.latest = 0
	f := t.store.at(j)
	e.pair, f.pair = j, i
	if lasting {
		f.resolver = otherCode
		return
	}
	e.resolver = c.history.judge(pair{
		apart: e.id - f.id, inOrder: Type(f.qtype) == A, at: e.start, ident: f.ident, lastOne: e.ident,
		to: e.servers[0], sign: max(e.sign, f.sign), sameport: f.port == e.port,
	})
	f.resolver = e.resolver
}

// halves says whether a question is the other half of an earlier one.
func (t *tracker) halves(e *entry, j uint32) bool {
	if j == 0 {
		return false
	}
	f := t.store.at(j)
	if f == e || !f.is(indexed) || f.is(done|alias) || f.pair != 0 || f.client != e.client || f.nameHash != e.nameHash ||
		f.qtype == e.qtype || Type(f.qtype) != A && Type(f.qtype) != AAAA {
		return false
	}
	if f.port != e.port {
		return e.sign == goEDNS && f.sign == goEDNS && e.start-f.start <= togetherFor
	}
	return !f.is(over) || e.start <= f.time(f.ended)+linger
}

// resolverOf is who asked, by what is known now.
func (t *tracker) resolverOf(e *entry) resolverCode {
	if e.resolver != unknownResolver {
		return e.resolver
	}
	return t.askers.all[e.client].history.alone(e.sign)
}
