package lookup

import (
	"math/rand/v2"
	"time"
)

// How long things last, in nanoseconds.
const (
	second      = int64(time.Second)
	millisecond = int64(time.Millisecond)

	behindTime  = int64(unseen) + 30*millisecond // what a tick does not judge yet: its packets may be in the ring
	firstVisit  = 200 * millisecond              // after its start; most lookups are over by then
	linger      = 150 * millisecond              // an ended lookup waits so long for its other half
	patience    = second                         // how long a lookup may go unanswered without being in trouble
	sameAttempt = 50 * millisecond               // within which all nameservers are asked
	askedAgain  = 900 * millisecond              // what asks again later than that had timed out
	togetherFor = 50 * millisecond               // A and AAAA from two sockets
	quietFor    = 3 * second                     // after an error, before it is final: musl asks again after 2.5 s
	searchWait  = second                         // in which a search goes on
	tcpWait     = 2 * second
	clientLimit = 5 * second  // musl gives up then; the others give each attempt so long by default
	giveUp      = 10 * second // after the first question
	giveUpRetry = 6 * second  // after the last one
	maxLife     = 60 * second
	clockJump   = 10 * second
)

const (
	defaultPending = 100000
	defaultSlow    = time.Second
	recentSize     = 8192
	siblingSize    = 8192
	samplesPerTick = 10
	blindAfter     = 20 // questions
	maxWaiting     = 64 // lookups in trouble that a client is watched for
	maxProbes      = 1024
)

// trackerConfig is what the tracker needs to know.
type trackerConfig struct {
	ports   []uint16      // that servers listen on
	pending int           // how many lookups it holds at most, 0 for 100,000
	slow    time.Duration // an answer after this is reported as slow, 0 for a second
}

// tracker turns packets into lookups. It does no input or output, knows the
// time from its packets and ticks, and is not safe for concurrent use.
type tracker struct {
	cfg  trackerConfig
	emit func(Event)
	seed uint64

	places  places
	askers  askers
	servers endpoints // whom clients ask, and what that was translated to
	peers   endpoints // who asks, as seen beyond the clients' links
	local   map[addr]struct{}
	store   store
	wheel   wheel
	journal journal
	rules   rules

	// recent finds the latest lookup by the hash of its question, siblings by
	// client and name. What they lead to has to be checked.
	recent   []uint32
	siblings []sibling

	troubles     []*trouble
	freeTroubles []uint32
	found        []passed // for look
	buf          [maxName + 1]byte

	begun, counted, thrown, unseen uint64
	bad                            uint64
	open                           int
	cursor                         uint32 // where room is looked for
	fattest                        int
	evictions                      uint32
	samples                        int
	searches                       int
	gaps                           [8]gap
	gapCount                       int

	now      int64 // until when everything was seen
	ticked   int64
	reported int64
	swept    int64
}

// sibling is a lookup with a piece of the hash that it is found by.
type sibling struct{ tag, entry uint32 }

// gap is a time in which packets were lost.
type gap struct{ from, to int64 }

func newTracker(cfg trackerConfig, emit func(Event)) *tracker {
	if cfg.pending <= 0 {
		cfg.pending = defaultPending
	}
	if cfg.slow <= 0 {
		cfg.slow = defaultSlow
	}
	seed := rand.Uint64() // so that nobody can choose what collides
	return &tracker{
		cfg: cfg, emit: emit, seed: seed,
		places: newPlaces(), askers: newAskers(seed), servers: newEndpoints(seed), peers: newEndpoints(seed),
		store: newStore(cfg.pending), journal: newJournal(),
		recent: make([]uint32, recentSize), siblings: make([]sibling, siblingSize),
		troubles: make([]*trouble, 1), found: make([]passed, 0, 4*MaxSights),
	}
}

// links takes a new picture of the node's links and of its own addresses.
func (t *tracker) links(links []link, local map[addr]struct{}) {
	t.places.update(links, t.now)
	t.local = local
	for i := range t.peers.peers {
		_, t.peers.peers[i].local = local[t.peers.peers[i].addr]
	}
}

// lost notes that packets were lost between two times.
func (t *tracker) lost(from, to int64) {
	t.gaps[t.gapCount%len(t.gaps)] = gap{from, to}
	t.gapCount++
}

// touched says whether packets were lost between two times.
func (t *tracker) touched(from, to int64) bool {
	for _, g := range t.gaps[:min(t.gapCount, len(t.gaps))] {
		if g.from <= to && from <= g.to {
			return true
		}
	}
	return false
}

// discarded is how many lookups were thrown away while they were pending.
func (t *tracker) discarded() uint64 { return t.thrown }

// malformed is how many packets were no DNS messages.
func (t *tracker) malformed() uint64 { return t.bad }

// pending is how many lookups have no outcome yet.
func (t *tracker) pending() int { return t.open }

// packet takes the next packet.
func (t *tracker) packet(p *packet) {
	n := t.places.find(p.link)
	if n < 0 {
		return
	}
	where := t.places.all[n].role
	if where == ignored || where == loopback && p.egress {
		return // seen elsewhere
	}
	switch p.kind {
	case connect:
		t.connect(p, n)
		return
	case unreachable:
		t.unreachable(p, n)
		return
	}
	var q question
	switch q.parse(p.message) {
	case malformed:
		t.bad++
		return
	case foreign:
		return
	}
	answer := q.flags&flagAnswer != 0
	switch {
	case !answer && !p.egress:
		if where != uplink { // else another node's
			t.question(p, &q, n, n)
		}
	case !answer:
		peer := t.peer(p.src.addr, p.at)
		if t.isLocal(peer, p.src.addr) && !t.forwarded(p, &q) {
			t.question(p, &q, n, 0)
		}
		server, _ := t.servers.take(p.dst, p.at)
		s := &t.servers.peers[server]
		s.unanswered++
		if s.asked == 0 {
			s.asked = p.at
		}
		t.journal.add(q.id, p.at, record{hash: q.hash, place: uint16(n), server: server, peer: peer, port: p.src.port, out: true})
	case p.egress:
		if where == client {
			t.answer(p, &q, n, n)
		}
	case where == loopback:
		t.answer(p, &q, n, 0)
	default:
		peer := t.peer(p.dst.addr, p.at)
		server, _ := t.servers.take(p.src, p.at)
		s := &t.servers.peers[server]
		s.answered, s.asked, s.unanswered = p.at, 0, 0
		if q.counted {
			t.journal.add(q.id, p.at, record{hash: q.hash, place: uint16(n), server: server, peer: peer, port: p.dst.port,
				rcode: uint8(q.flags & rcodeMask)})
		}
		if t.isLocal(peer, p.dst.addr) {
			t.answer(p, &q, n, 0)
		}
	}
}

// peer gives an address its number.
func (t *tracker) peer(a addr, at int64) uint16 {
	n, fresh := t.peers.take(endpoint{addr: a}, at)
	if fresh {
		_, t.peers.peers[n].local = t.local[a]
	}
	return n
}

func (t *tracker) isLocal(peer uint16, a addr) bool {
	if peer != 0 {
		return t.peers.peers[peer].local
	}
	_, ok := t.local[a]
	return ok
}

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
	e.sign, e.result = sign, resultNone
	if of == 0 {
		e.flags = fromHost
	}
	home.live++
	c.live++
	t.open++
	t.store.index(i)
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
		if e.id != q.id && (sign != goEDNS || !onTime && !atOnce) {
			continue
		}
		t.gather(e)
		t.store.unindex(i)
		t.leaveAlias(e, i)
		e = t.store.at(i)
		t.again(e, p, server)
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

// pairUp finds the other half of a resolver's call.
func (t *tracker) pairUp(c *asker, i uint32, e *entry) {
	lasting := c.history.lasting(e.port, e.nameHash)
	if lasting {
		e.resolver = otherCode
	}
	if Type(e.qtype) != A && Type(e.qtype) != AAAA {
		return
	}
	h := uint64(e.nameHash) | uint64(e.client)<<32
	if e.sign != goEDNS { // only Go's two questions come from two ports
		h |= uint64(e.port) << 48
	}
	h = mix(t.seed, h)
	slot := &t.siblings[h%siblingSize]
	j, tag := slot.entry, uint32(h>>32)
	matches := j != 0 && j != i && slot.tag == tag
	*slot = sibling{tag, i}
	if !matches {
		return
	}
	f := t.store.at(j)
	if !f.is(indexed) || f.is(done|alias) || f.pair != 0 || f.client != e.client || f.nameHash != e.nameHash ||
		f.qtype == e.qtype || Type(f.qtype) != A && Type(f.qtype) != AAAA {
		return
	}
	same := f.port == e.port
	if !same && e.start-f.start > togetherFor || same && f.is(over) && e.start > f.time(f.ended)+linger {
		return
	}
	e.pair, f.pair = j, i
	if lasting {
		f.resolver = otherCode
		return
	}
	e.resolver = c.history.judge(pair{
		apart: e.id - f.id, inOrder: Type(f.qtype) == A, at: e.start, ident: f.ident, lastOne: e.ident,
		to: e.servers[0], sign: max(e.sign, f.sign), sameport: same,
	})
	f.resolver = e.resolver
}

// resolverOf is who asked, by what is known now.
func (t *tracker) resolverOf(e *entry) resolverCode {
	if e.resolver != unknownResolver {
		return e.resolver
	}
	return t.askers.all[e.client].history.alone(e.sign)
}

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
	if server := t.servers.find(p.src); server != 0 || e.servers[0] == 0 {
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
		if !t.isLocal(0, p.src.addr) {
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
		if _, ok := t.local[p.src.addr]; ok {
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
		add(&tr.unreachable, t.sight(p.at, n, endpoint{addr: p.from}.netip(), p.src.netip()))
	}
	t.worry(t.askers.all[e.client], i, e)
}
