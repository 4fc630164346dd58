package lookup

import "time"

// client is who a record stands for, or who asked a lookup.
func (t *tracker) client(c *asker, e *entry) Client {
	home := &t.places.all[c.place]
	out := Client{Link: int(home.index), LinkName: home.name, Host: c.place == 0}
	switch {
	case e != nil:
		out.Addr = t.source(c, e)
	case !c.nameless:
		out.Addr = endpoint{addr: c.addr}.netip()
	}
	return out
}

// lookup makes the report of an ended lookup.
func (t *tracker) lookup(c *asker, e *entry) Lookup {
	t.gather(e)
	l := Lookup{
		Client: t.client(c, e), Nameserver: t.server(e.servers[0]), Resolver: t.resolverOf(e).resolver(),
		Name: present(t.store.name(e, &t.buf)), Type: Type(e.qtype),
		Start: when(e.start), End: when(e.time(e.ended)), Outcome: e.result.outcome(),
		TimedOut: e.is(timedOut), Slow: e.result != resultTimeout && time.Duration(e.took()) > t.cfg.slow,
		Truncated: e.is(truncated), TCP: e.is(byTCP), Attempts: int(e.attempts),
		Backends:  t.backends(e.servers[0], t.now),
		Uncertain: e.is(uncertain) || t.touched(e.start, max(e.time(e.ended), e.time(e.heard))),
	}
	l.LocalNameserver = t.local.has(addrOf(l.Nameserver.Addr())) || t.servers.peers[e.servers[0]].inside
	if e.trouble != 0 {
		tr := t.troubles[e.trouble]
		l.Asked, l.Left, l.Entered, l.Answers, l.Unreachable = tr.asked, tr.left, tr.entered, tr.answers, tr.unreachable
	}
	if len(l.Answers) == 0 && e.result != resultTimeout && !t.places.all[c.place].blind {
		l.Answers = []Answer{{
			Sight:   t.sight(e.time(e.ended), int(e.place), t.server(e.servers[e.winner]), t.source(c, e)),
			Outcome: l.Outcome, Acceptable: true,
		}}
	}
	if f := t.partner(e); f != nil {
		l.Pair = &Pair{Type: Type(f.qtype), Outcome: f.result.outcome(), Attempts: int(f.attempts)}
		if f.result != resultTimeout {
			l.Pair.Took = time.Duration(f.took())
		}
	}
	if s := t.searchOf(c, e); s != nil {
		l.Search, l.SearchWentOn = s.before(e.step)
	}
	return l
}
