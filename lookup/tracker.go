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
	sameMoment  = 10 * millisecond               // by which one packet's times at two links may be out of order
	sameAttempt = 50 * millisecond               // within which all nameservers are asked
	atOnceFor   = 5 * millisecond                // after a failure, until glibc begins anew with its nameservers
	askedAgain  = 900 * millisecond              // what asks again later than that had timed out
	togetherFor = 50 * millisecond               // A and AAAA from two sockets
	quietFor    = 3 * second                     // after an error, before it is final: musl asks again after 2.5 s
	searchWait  = second                         // in which a search goes on
	tcpWait     = 2 * second
	clientLimit = 5 * second  // musl gives up then; the others give each attempt so long by default
	giveUp      = 10 * second // after the first question
	giveUpRetry = 6 * second  // after the last one
	maxLife     = 60 * second
	// contentAfter is when a client that has no answer would have asked again.
	contentAfter = 5500 * millisecond
	clockJump    = 10 * second
)

const (
	defaultPending = 100000
	defaultSlow    = time.Second
	recentSize     = 8192
	siblingSize    = 8192
	// Of the lookups that end in a tick some are looked at for the servers behind
	// their nameserver. One nameserver must not take the place of others, of which
	// there may be no more lookups.
	samplesPerTick = 60
	samplesOfOne   = 3
	// sampleWait is until a packet that went another way than the lookup's was
	// read or given back unread, in nanoseconds.
	sampleWait = 500e6
	blindAfter = 20 // questions
	maxWaiting = 64 // lookups in trouble that a client is watched for
	maxProbes  = 1024
)

// trackerConfig is what the tracker needs to know.
type trackerConfig struct {
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
	local   local
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
	sampled                        []entry // copies
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
		places: newPlaces(), askers: newAskers(seed), servers: newEndpoints(seed),
		store: newStore(cfg.pending), journal: newJournal(),
		recent: make([]uint32, recentSize), siblings: make([]sibling, siblingSize),
		troubles: make([]*trouble, 1), found: make([]passed, 0, 4*MaxSights),
	}
}

// links takes a new picture of the node's links and of its own addresses.
func (t *tracker) links(links []link, addrs map[addr]struct{}) {
	t.places.update(links, t.now)
	t.local = newLocal(addrs)
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
		if t.local.has(p.src.addr) && !t.forwarded(p, &q) {
			t.question(p, &q, n, 0)
		}
		server, _ := t.servers.take(p.dst, p.at)
		s := &t.servers.peers[server]
		s.unanswered++
		if s.asked == 0 {
			s.asked = p.at
		}
		t.journal.add(q.id, p.at, record{hash: q.hash, place: uint16(n), server: server, port: p.src.port, out: true})
	case p.egress:
		if where == client {
			t.answer(p, &q, n, n)
		}
	case where == loopback:
		t.answer(p, &q, n, 0)
	default:
		server, _ := t.servers.take(p.src, p.at)
		s := &t.servers.peers[server]
		s.answered, s.asked, s.unanswered = p.at, 0, 0
		if q.counted {
			t.journal.add(q.id, p.at, record{hash: q.hash, place: uint16(n), server: server, port: p.dst.port,
				rcode: uint8(q.flags & rcodeMask)})
		}
		if t.local.has(p.dst.addr) {
			t.answer(p, &q, n, 0)
		}
	}
}
