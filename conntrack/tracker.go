package conntrack

import (
	"net/netip"
	"slices"
	"time"
)

// How long the tracker remembers, and how much.
const (
	// orphanWait is how long after a kept loser's end its answer is still
	// expected. musl gives up 5 s after the question; DNS servers give up their
	// own upstreams in that time, too.
	orphanWait = 10 * time.Second
	// reportedWait covers the kernel's lazy removal of a kept loser: its
	// garbage collector passes at least every minute.
	reportedWait = 75 * time.Second
	// retryWait is how long after an orphan its client may ask again from the
	// same port.
	retryWait = 15 * time.Second
	// dropWait is how long after a drop its client asks again: musl after
	// 2.5 s, glibc after 5 s.
	dropWait = 6 * time.Second
	// settle is how long after ASSURED a flow is looked at again. A client that
	// only asked again is quiet by then.
	settle = 5 * time.Second
	// strayWait is how long an answer without an entry waits for the end of
	// the entry that it belonged to, when the messages come in that order.
	strayWait = time.Second

	maxUnanswered = 16384
	maxReported   = 16384
	maxStrays     = 4096
	maxOrphaned   = 4096
	maxCandidates = 4096
)

// path names one entry's reply direction: who answers whom. No two entries of
// the table share it.
type path struct {
	backend, client netip.AddrPort
	zone            uint16
}

// flow is an entry of the table as it is now.
type flow struct {
	backend            netip.AddrPort
	timeout            time.Duration // what is left of its life
	counted            bool          // the counters are known
	questions, answers uint64        // packets in the original and the reply direction
}

// table answers what the tracker asks of the kernel's table.
type table interface {
	// lookup finds the entry of an original tuple; false when there is none.
	lookup(Tuple) (flow, bool)
}

// tracker turns messages into findings. It does no input or output of its own
// beside asking the table, and is not safe for concurrent use.
type tracker struct {
	asked     []uint16 // the ports that clients ask: the configured ones
	answering []uint16 // those, and what servers were seen to answer from
	table     table
	emit      func(Finding)

	unanswered map[path]loser      // kept losers that ended without a reply
	reported   map[path]time.Time  // kept losers that were reported at their answer
	strays     map[path]time.Time  // answers from a port of ours that belong to no entry
	orphaned   map[Tuple]time.Time // tuples that had an orphaned answer
	candidates map[Tuple]candidate // flows that became ASSURED and may be slow
	forgot     time.Time           // when reported was full for the last time
	dropped    time.Time           // when the statistics last showed a clash drop
	counters   bool                // the kernel counts packets (nf_conntrack_acct)
}

// loser is a kept loser that ended unanswered.
type loser struct {
	original Tuple
	start    time.Time // when it was made, zero when unknown
	ended    time.Time // when its end was read
}

// candidate is a flow that became ASSURED.
type candidate struct {
	at      time.Time
	timeout time.Duration // what its life was then
	backend netip.AddrPort
	dropped bool // the kernel had dropped packets shortly before
}

func newTracker(ports []uint16, t table, emit func(Finding)) *tracker {
	return &tracker{
		asked: ports, answering: slices.Clone(ports), table: t, emit: emit,
		unanswered: map[path]loser{},
		reported:   map[path]time.Time{},
		strays:     map[path]time.Time{},
		orphaned:   map[Tuple]time.Time{},
		candidates: map[Tuple]candidate{},
	}
}

// message takes one message that was read at now.
func (t *tracker) message(m message, now time.Time) {
	p := path{backend: m.backend, client: m.client, zone: m.original.Zone}
	clash := m.status&statusNATClash != 0
	asked := slices.Contains(t.asked, m.original.Destination.Port())
	switch {
	case clash && asked:
		t.learn(p.backend.Port())
		switch m.event {
		case eventUpdate:
			t.answered(m, p, now)
		case eventDestroy:
			t.ended(m, p, now)
		case eventNew: // the kernel does not announce a kept loser
		}
	case clash: // of a port that is none of ours
	case m.event == eventUpdate && asked && m.status&statusAssured != 0:
		t.assured(m, now)
	case m.event == eventNew && slices.Contains(t.answering, m.original.Source.Port()):
		// The new flow's original direction is the answer's way.
		p = path{backend: m.original.Source, client: m.original.Destination, zone: m.original.Zone}
		if l, ok := t.unanswered[p]; ok {
			t.orphan(l, p, now)
		} else if len(t.strays) < maxStrays {
			t.strays[p] = now
		}
	}
}

// answered: a kept loser got its answer in time.
func (t *tracker) answered(m message, p path, now time.Time) {
	if m.status&statusSeenReply == 0 {
		return
	}
	if _, ok := t.reported[p]; ok {
		return // an update for another reason, such as a changed mark
	}
	if len(t.reported) < maxReported {
		t.reported[p] = now
	} else {
		t.forgot = now
	}
	t.emit(Collision{Time: now, Original: m.original, Loser: p.backend, Winner: t.winner(m.original), Answered: true})
}

// ended: a kept loser was removed.
func (t *tracker) ended(m message, p path, now time.Time) {
	if m.status&statusSeenReply != 0 {
		if _, ok := t.reported[p]; ok {
			delete(t.reported, p)
		} else if now.Sub(t.forgot) > reportedWait {
			// The message about its answer was lost.
			t.emit(Collision{Time: now, Original: m.original, Loser: p.backend, Winner: t.winner(m.original), Answered: true})
		}
		return
	}
	l := loser{original: m.original, start: m.start, ended: now}
	if _, ok := t.strays[p]; ok {
		t.orphan(l, p, now)
		return
	}
	if len(t.unanswered) >= maxUnanswered {
		t.unansweredCollision(l, p)
		return
	}
	t.unanswered[p] = l
}

// orphan: the answer to a kept loser came after the loser had ended.
func (t *tracker) orphan(l loser, p path, now time.Time) {
	delete(t.unanswered, p)
	delete(t.strays, p)
	if len(t.orphaned) < maxOrphaned {
		t.orphaned[l.original] = now
	}
	o := Orphan{Time: now, Original: l.original, Backend: p.backend, Winner: t.winner(l.original), Lateness: keptFor}
	if late := now.Sub(l.start); !l.start.IsZero() && late > keptFor {
		o.Lateness, o.Exact = late, true
	}
	t.emit(o)
}

// keptFor is the life of a kept loser: HZ jiffies, fixed (nf_conntrack_core.c).
const keptFor = time.Second

func (t *tracker) unansweredCollision(l loser, p path) {
	t.emit(Collision{Time: l.ended, Original: l.original, Loser: p.backend, Winner: t.winner(l.original)})
}

// winner is the backend of the entry that the original tuple leads to: the
// loser is hashed in its reply direction only, so it is never the one found.
func (t *tracker) winner(original Tuple) netip.AddrPort {
	f, _ := t.table.lookup(original)
	return f.backend
}

// assured: a packet passed a flow more than two seconds after its first.
func (t *tracker) assured(m message, now time.Time) {
	at, ok := t.orphaned[m.original]
	dropped := now.Sub(t.dropped) <= dropWait
	switch {
	case ok && now.Sub(at) <= retryWait:
		delete(t.orphaned, m.original)
		t.emit(SlowFlow{Time: now, Original: m.original, Backend: m.backend, Witness: AfterOrphan})
	case !t.counters && !dropped:
		// No witness can come up: a long-lived socket or a reused port, most likely.
	case len(t.candidates) < maxCandidates:
		t.candidates[m.original] = candidate{at: now, timeout: m.timeout, backend: m.backend, dropped: dropped}
	}
}

// learn notes a port that a server answers from. It differs from the one that
// clients ask where a service has another target port (OpenShift's DNS: 5353),
// and it is where orphaned answers come from.
func (t *tracker) learn(port uint16) {
	if !slices.Contains(t.answering, port) && len(t.answering) < maxPorts {
		t.answering = append(t.answering, port)
	}
}

// wanted says which messages are needed from now on. Flows that become ASSURED
// are, while one could be told from a long-lived socket or a reused port.
func (t *tracker) wanted(now time.Time) wanted {
	return wanted{
		asked: t.asked, answering: t.answering,
		assured: t.counters || len(t.orphaned) > 0 || now.Sub(t.dropped) <= dropWait,
	}
}

// drop notes that packets were dropped because their entries collided.
func (t *tracker) drop(at time.Time) { t.dropped = at }

// tick judges what is due at now and forgets what is over.
func (t *tracker) tick(now time.Time) {
	for p, l := range t.unanswered {
		if now.Sub(l.ended) > orphanWait {
			delete(t.unanswered, p)
			t.unansweredCollision(l, p)
		}
	}
	for original, c := range t.candidates {
		if now.Sub(c.at) >= settle {
			delete(t.candidates, original)
			t.judge(original, c, now)
		}
	}
	forget(t.reported, now, reportedWait)
	forget(t.strays, now, strayWait)
	forget(t.orphaned, now, retryWait)
}

// finish reports what is still pending.
func (t *tracker) finish() {
	for p, l := range t.unanswered {
		delete(t.unanswered, p)
		t.unansweredCollision(l, p)
	}
}

// judge tells a slow flow from a long-lived socket, which is still in use.
func (t *tracker) judge(original Tuple, c candidate, now time.Time) {
	f, ok := t.table.lookup(original)
	if !ok {
		return
	}
	// Each packet sets the entry's life back to what it was at c.at, so what
	// is gone of it is the time since the last packet, to a second.
	quiet := c.timeout - f.timeout
	if quiet < now.Sub(c.at)/2 {
		return
	}
	switch {
	case f.counted && f.questions > f.answers:
		t.emit(SlowFlow{Time: c.at, Original: original, Backend: c.backend, Witness: Unanswered})
	case c.dropped:
		t.emit(SlowFlow{Time: c.at, Original: original, Backend: c.backend, Witness: AfterDrop})
	}
}

func forget[K comparable](seen map[K]time.Time, now time.Time, after time.Duration) {
	for k, at := range seen {
		if now.Sub(at) > after {
			delete(seen, k)
		}
	}
}
