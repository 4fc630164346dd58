package lookup

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"
)

// maxTroubles is how many lookups may have their evidence gathered at once.
// Beyond that they are counted and reported, as uncertain.
const maxTroubles = 4096

// trouble is the evidence of a lookup that is not simply answered.
type trouble struct {
	asked, left, entered, unreachable []Sight
	answers                           []Answer

	// The journal was looked through to its record number seen, which is of the
	// time until, for packets of the present socket, which asks since the time
	// from.
	seen        uint32
	until, from int64
}

// evidence gives a lookup's trouble, and begins it; nil when there are too many.
func (t *tracker) evidence(e *entry) *trouble {
	if e.trouble != 0 {
		return t.troubles[e.trouble]
	}
	var i uint32
	switch n := len(t.freeTroubles); {
	case n > 0:
		i, t.freeTroubles = t.freeTroubles[n-1], t.freeTroubles[:n-1]
	case len(t.troubles) <= maxTroubles:
		i = uint32(len(t.troubles))
		t.troubles = append(t.troubles, nil)
	default:
		e.flags |= uncertain
		return nil
	}
	tr := &trouble{}
	t.troubles[i], e.trouble = tr, i
	c := t.askers.all[e.client]
	for j, s := range e.servers {
		if s != 0 || j == 0 {
			tr.asked = append(tr.asked, t.sight(e.start, int(e.place), t.source(c, e), t.server(s)))
		}
	}
	return tr
}

// settle drops a lookup's trouble.
func (t *tracker) settle(e *entry) {
	if e.trouble != 0 {
		t.troubles[e.trouble] = nil
		t.freeTroubles = append(t.freeTroubles, e.trouble)
		e.trouble = 0
	}
}

func (t *tracker) sight(at int64, place int, from, to netip.AddrPort) Sight {
	s := Sight{At: time.Unix(0, at).UTC(), From: from, To: to}
	if place >= 0 && place < len(t.places.all) {
		s.LinkName = t.places.all[place].name
	}
	return s
}

// source is the address and port that a lookup was asked from.
func (t *tracker) source(c *asker, e *entry) netip.AddrPort {
	if c.nameless {
		return netip.AddrPortFrom(netip.Addr{}, e.port)
	}
	return netip.AddrPortFrom(c.addr.netip(), e.port)
}

// server is a server's address; the zero AddrPort for one without a number.
func (t *tracker) server(i uint16) netip.AddrPort {
	if i == 0 || t.servers.peers[i].used == 0 {
		return netip.AddrPort{}
	}
	return t.servers.peers[i].netip()
}

func add[T any](to *[]T, x T) {
	if len(*to) < MaxSights {
		*to = append(*to, x)
	}
}

// passed is what a look back into the journal found of a lookup.
type passed struct {
	record
	at   int64
	mine bool // with the client's own port: no other client's by chance
}

// look finds the records of a lookup from a time to another that are newer than
// after, which need not be looked for before since. Where some have
// its client's port, the others are left out: they are another client's, with
// the same id by chance.
func (t *tracker) look(e *entry, from, to, since int64, after uint32) (found []passed, complete bool) {
	found = t.found[:0]
	own := false
	complete = t.journal.look(e.id, e.hash, since, after, func(r *record) {
		if len(found) == cap(found) {
			return
		}
		p := passed{record: *r, at: t.journal.at(r), mine: r.port == e.port}
		if p.at < from || p.at >= to {
			return
		}
		own = own || p.mine
		found = append(found, p)
	})
	if own {
		found = slices.DeleteFunc(found, func(p passed) bool { return !p.mine })
	}
	slices.Reverse(found)
	return found, complete
}

// gather looks back for where a lookup's packets passed since it was last done.
// That is often enough for the journal to reach back that far.
func (t *tracker) gather(e *entry) { t.gatherTo(e, math.MaxInt64) }

// gatherTo looks back for what passed before a time.
func (t *tracker) gatherTo(e *entry, to int64) {
	tr := t.evidence(e)
	if tr == nil {
		return
	}
	from := max(e.start-sameMoment, tr.from)
	found, complete := t.look(e, from, to, max(e.start, from, tr.until), tr.seen)
	if !complete {
		e.flags |= uncertain
	}
	tr.seen, tr.until = t.journal.count, t.journal.latest()
	for _, p := range found {
		server, peer := t.server(p.server), netip.AddrPort{}
		if p.mine { // else it was masqueraded
			peer = t.source(t.askers.all[e.client], e)
		}
		if p.out {
			add(&tr.left, t.sight(p.at, int(p.place), peer, server))
			t.learn(e, p.server, p.at)
		} else {
			add(&tr.entered, t.sight(p.at, int(p.place), server, peer))
		}
	}
}

// learn notes that a lookup's nameserver was translated to a server.
func (t *tracker) learn(e *entry, server uint16, at int64) {
	if server == 0 || e.servers[0] == 0 {
		return
	}
	if e.servers[1] != 0 && e.asks(server) < 0 {
		return // which of the nameservers it was is not known
	}
	if i := e.asks(server); i > 0 {
		t.servers.peers[server].behind(server, at)
		return
	}
	t.servers.peers[e.servers[0]].behind(server, at)
}

// sample learns the servers behind a healthy lookup's nameserver, or that there
// are none beyond the node.
func (t *tracker) sample(e *entry) {
	found, complete := t.look(e, e.start-sameMoment, math.MaxInt64, e.start, 0)
	left := false
	for _, p := range found {
		if p.out {
			t.learn(e, p.server, p.at)
			left = true
		}
	}
	if s := e.servers[0]; s != 0 && e.servers[1] == 0 && (left || complete) && e.result != resultTimeout {
		t.servers.peers[s].inside = !left
	}
}

// backends is what is known of the servers behind a nameserver.
func (t *tracker) backends(nameserver uint16, now int64) []Backend {
	if nameserver == 0 {
		return nil
	}
	var out []Backend
	for _, b := range t.servers.peers[nameserver].backends {
		if b.server == 0 || now-b.seen > backendAge {
			continue
		}
		p := &t.servers.peers[b.server]
		if p.used == 0 {
			continue
		}
		out = append(out, Backend{Addr: p.netip(), Answered: when(p.answered), Asked: when(p.asked), Unanswered: p.unanswered})
	}
	slices.SortFunc(out, func(a, b Backend) int {
		return cmp.Or(a.Addr.Addr().Compare(b.Addr.Addr()), cmp.Compare(a.Addr.Port(), b.Addr.Port()))
	})
	return out
}

// backendAge is how long a server counts as one of a nameserver's.
const backendAge = 10 * 60e9

// when makes a time of nanoseconds, the zero time of none.
func when(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
