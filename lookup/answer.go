package lookup

// answer takes an answer at its client's link.
func (t *tracker) answer(p *packet, q *question, on, of int) {
	home := &t.places.all[of]
	c := t.askers.get(uint16(of), home, p.dst.addr)
	if c == nil {
		return
	}
	i := t.store.find(t.key(c, p.dst.addr, p.dst.port, q.id), c.number, p.dst.port, q.id)
	if i == 0 {
		return
	}
	home.answered++
	if home.blind {
		t.sees(home, p.at)
	}
	if q.counted && t.store.at(i).hash != q.hash {
		return
	}
	main := t.mainOf(i)
	if main == 0 {
		return
	}
	e := t.store.at(main)
	r := q.outcome(p.message)
	position := -1
	if first := e.servers[0]; first != 0 && t.servers.peers[first].endpoint == p.src {
		position = 0
	} else if server := t.servers.find(p.src); server != 0 || first == 0 {
		position = e.asks(server)
	}
	tooLate := p.at-e.start > clientLimit && !e.is(over) && t.resolverOf(e) == muslCode
	ends := position >= 0 && main == i && !tooLate && !e.is(over)
	if !e.is(over) && (!ends || !r.final()) {
		t.evidence(e)
	}
	if e.trouble != 0 {
		add(&t.troubles[e.trouble].answers, Answer{
			Sight: t.sight(p.at, on, p.src.netip(), p.dst.netip()), Outcome: r.outcome(), Acceptable: position >= 0,
		})
	}
	if !ends {
		return
	}
	e.heard, e.winner = e.since(p.at), uint8(position)
	if q.flags&flagTruncated != 0 {
		e.flags |= truncated
		if len(c.cut) < maxWaiting {
			c.cut = append(c.cut, main)
		}
	}
	if r.final() {
		t.end(main, e, p.at, r)
		t.quick(main, e)
		return
	}
	e.result, e.ended = r, e.heard
	e.flags |= failing
	t.gather(e)
	t.worry(c, main, e)
}

// worry puts a lookup into its client's list of those in trouble.
func (t *tracker) worry(c *asker, i uint32, e *entry) {
	if !e.is(waiting) && len(c.trouble) < maxWaiting {
		e.flags |= waiting
		c.trouble = append(c.trouble, i)
	}
}

// connect takes the first packet of a TCP connection to a DNS port.
func (t *tracker) connect(p *packet, n int) {
	if p.egress {
		if !t.local.has(p.src.addr) {
			return
		}
		n = 0
	}
	c := t.askers.find(uint16(n), p.src.addr)
	if c == nil {
		return
	}
	for _, i := range c.cut {
		e := t.store.at(i)
		for _, s := range e.servers {
			if s != 0 && t.servers.peers[s].addr == p.dst.addr {
				e.flags |= byTCP
			}
		}
	}
}

// unreachable takes an ICMP error about a question.
func (t *tracker) unreachable(p *packet, n int) {
	var q question
	var i uint32
	if q.parse(p.message) == good && q.flags&flagAnswer == 0 {
		if i = t.recent[q.hash%recentSize]; i != 0 && t.store.at(i).hash != q.hash {
			i = 0
		}
	} else if len(p.message) >= 2 {
		// The question was cut off; its client is known if it was not translated.
		of := n
		if t.local.has(p.src.addr) {
			of = 0
		}
		id := uint16(p.message[0])<<8 | uint16(p.message[1])
		if c := t.askers.get(uint16(of), &t.places.all[of], p.src.addr); c != nil {
			i = t.store.find(t.key(c, p.src.addr, p.src.port, id), c.number, p.src.port, id)
		}
	}
	if i == 0 {
		return
	}
	if i = t.mainOf(i); i == 0 {
		return
	}
	e := t.store.at(i)
	if e.is(over|done|alias) || !e.is(indexed) {
		return
	}
	if tr := t.evidence(e); tr != nil {
		add(&tr.unreachable, t.sight(p.at, n, endpoint{addr: p.from}.netip(), p.dst.netip()))
	}
	t.worry(t.askers.all[e.client], i, e)
}
