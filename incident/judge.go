package incident

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// Surroundings are what conntrack showed around the time of a lookup.
type Surroundings struct {
	// Orphans are orphaned answers, and Unanswered are kept collisions without
	// an answer, of the lookup's own flow.
	Orphans    []conntrack.Orphan
	Unanswered []conntrack.Collision
	// Drops are rises of the kernel's counters of dropped packets.
	Drops []conntrack.Drop
	// Blind says why conntrack could not see; empty when it could.
	Blind string
}

// Judge explains a lookup: the incident of its timeout, that of its failure,
// both, or none for a lookup that was neither lost nor failed.
func Judge(l lookup.Lookup, w workload.Workload, s Surroundings) []Incident {
	l.Resolver = resolver(l.Resolver, w)
	var all []Incident
	if l.TimedOut {
		all = append(all, l2i(l, w, judgeTimeout(l, s)))
	}
	if v, ok := judgeFailure(l, w); ok {
		all = append(all, l2i(l, w, v))
	}
	return all
}

// resolver is the library that asked: what its packets told, or, where the
// process was found, the libc that it maps.
func resolver(told lookup.Resolver, w workload.Workload) lookup.Resolver {
	switch libc := lookup.Resolver(w.Libc); libc {
	case lookup.Musl, lookup.Glibc:
		return libc
	default:
		return told
	}
}

// verdict is a cause with its evidence.
type verdict struct {
	cause    Cause
	evidence string
	remedy   string
	backend  netip.AddrPort
}

// l2i makes an incident of a lookup and a verdict.
func l2i(l lookup.Lookup, w workload.Workload, v verdict) Incident {
	in := Incident{
		Time: l.Start, Cause: v.cause, Client: l.Client.Addr, Workload: w, Resolver: l.Resolver,
		Name: l.Name, Type: l.Type.String(), Nameserver: l.Nameserver, Attempts: l.Attempts,
		// After an answer that did not help, some resolvers go on by themselves.
		Waited: waited(l), WaitedExact: v.cause.Timeout(), Count: 1, Evidence: v.evidence, Remedy: v.remedy,
	}
	if v.backend != l.Nameserver {
		in.Backend = v.backend
	}
	return in
}

// waited is how long the client waited.
func waited(l lookup.Lookup) time.Duration {
	switch {
	case l.Outcome == lookup.Timeout && l.Resolver == lookup.Musl:
		return min(muslGivesUp, l.End.Sub(l.Start))
	default:
		return l.End.Sub(l.Start)
	}
}

// judgeTimeout finds why a client had to ask again, or gave up. What was seen
// goes before what was not.
func judgeTimeout(l lookup.Lookup, s Surroundings) verdict {
	p := follow(l)
	if went := servers(l.Left); len(went) > 0 {
		// Both questions of a pair are of one flow: the orphan may be the other's.
		s.Orphans = slices.DeleteFunc(slices.Clone(s.Orphans), func(o conntrack.Orphan) bool { return !slices.Contains(went, o.Backend) })
	}
	if v, ok := p.orphaned(l, s); ok {
		return v
	}
	if v, ok := p.refused(l); ok {
		return v
	}
	if v, ok := p.slow(l); ok {
		return v
	}
	switch {
	case l.Uncertain:
		return verdict{
			cause: Unknown, remedy: uncertainRemedy,
			evidence: join("packets were not seen, or forgotten already, in the time of this lookup", p.again(l)),
		}
	case len(p.entered) > 0 && !p.answeredBefore(p.until):
		e := p.entered[0]
		return verdict{
			cause: DroppedOnNode, remedy: droppedRemedy, backend: e.From,
			evidence: join(fmt.Sprintf("the answer from %v came in by %s %s after the question and never went out on the client's link %s",
				e.From, e.LinkName, p.after(e.At), l.Client.LinkName), p.again(l)),
		}
	case l.LocalNameserver:
		return verdict{
			cause: ServerSilent, remedy: localRemedy,
			evidence: join(fmt.Sprintf("%v gave no answer; questions to it are not seen leaving the node, so its server is on the node itself, or listens on a port that is not in names.ports",
				l.Nameserver), p.again(l)),
		}
	case len(p.left) == 0:
		return p.stayed(l, s)
	default:
		return p.unanswered(l)
	}
}

// answeredBefore tells whether an acceptable answer reached the client before t.
func (p path) answeredBefore(t time.Time) bool {
	return slices.ContainsFunc(p.delivered, func(a lookup.Answer) bool { return a.At.Before(t) })
}

// orphaned: the answer reached the client's link from an address that it never
// asked, or would have, if nothing on the node had dropped it.
func (p path) orphaned(l lookup.Lookup, s Surroundings) (verdict, bool) {
	backends := servers(l.Left)
	for _, b := range l.Backends {
		backends = append(backends, b.Addr)
	}
	for _, o := range s.Orphans {
		backends = append(backends, o.Backend)
	}
	winner := ""
	for _, o := range s.Orphans {
		if o.Winner.IsValid() {
			winner = fmt.Sprintf("the question that it collided with went to %v", o.Winner)
		}
	}
	for _, a := range p.strange {
		if slices.Contains(backends, a.From) {
			return verdict{
				cause: OrphanedAnswer, remedy: orphanRemedy, backend: a.From,
				evidence: join(fmt.Sprintf("answer arrived from %v %s after the question; its conntrack entry had lived %v",
					a.From, p.after(a.At), clashLifetime), winner),
			}, true
		}
	}
	if len(s.Orphans) > 0 {
		o := s.Orphans[0]
		return verdict{
			cause: OrphanedAnswer, remedy: orphanRemedy, backend: o.Backend,
			evidence: join(fmt.Sprintf("answer arrived from %v more than %v after the question; its conntrack entry had lived %v",
				o.Backend, clashLifetime, clashLifetime), winner),
		}, true
	}
	// A policy that lets only known flows pass drops the late answer.
	for _, c := range s.Unanswered {
		for _, e := range p.entered {
			if e.From == c.Loser && e.At.Sub(p.start) > clashLifetime && !p.answeredBefore(p.until) {
				return verdict{
					cause: OrphanedAnswer, remedy: orphanRemedy, backend: c.Loser,
					evidence: fmt.Sprintf("answer came in from %v by %s %s after the question; its conntrack entry had lived %v, and without it the node dropped the answer",
						c.Loser, e.LinkName, p.after(e.At), clashLifetime),
				}, true
			}
		}
	}
	return verdict{}, false
}

// refused: an ICMP error says that the server cannot be reached.
func (p path) refused(l lookup.Lookup) (verdict, bool) {
	if len(l.Unreachable) == 0 {
		return verdict{}, false
	}
	u := l.Unreachable[0]
	v := verdict{
		cause: StaleBackend, remedy: staleRemedy, backend: u.To,
		evidence: join(fmt.Sprintf("%v answered that %v is unreachable (ICMP)", u.From.Addr(), u.To), p.again(l)),
	}
	if slices.ContainsFunc(l.Asked, func(q lookup.Sight) bool { return q.To == u.To }) {
		// Not a server behind it, but the address itself: nothing is behind it.
		v.remedy = noEndpointsRemedy
	}
	return v, true
}

// slow: an acceptable answer came, but after the client had asked again or
// given up, and it was an answer to the question before.
func (p path) slow(l lookup.Lookup) (verdict, bool) {
	if len(p.delivered) == 0 || p.answeredBefore(p.until) && p.retry {
		return verdict{}, false
	}
	if len(p.left) == 0 && !l.LocalNameserver && len(l.Left) > 0 || len(p.entered) > 0 {
		return verdict{}, false // the first question, or its answer, was lost
	}
	first := p.delivered[0]
	what := "answer"
	if failed(first.Outcome) {
		what = "answer " + word(first.Outcome)
	}
	came := fmt.Sprintf("the %s of %v came %s after the question", what, first.From, p.after(first.At))
	remedy := slowRemedy
	if failed(first.Outcome) {
		remedy = failureRemedy
	}
	if !p.retry {
		return verdict{cause: SlowAnswer, remedy: remedy, backend: p.backend(), evidence: join(came, "the client had given up")}, true
	}
	// With the first question lost and the second one answered at once, there
	// is one answer, and it is soon after the retry. A slow server answers both.
	answers := p.answers(l)
	if answers < 2 && first.At.Sub(p.lastBefore(l, first.At)) <= atOnce {
		return verdict{}, false
	}
	seen := "and no other"
	if answers > 1 {
		seen = "and another for the second question"
	}
	return verdict{
		cause: SlowAnswer, remedy: remedy, backend: p.backend(),
		evidence: fmt.Sprintf("%s, %s; the client had asked again after %s", came, seen, p.after(p.until)),
	}, true
}

// answers is how many answers one server gave: several nameservers may have been
// asked at once, and one packet may pass several links (a VLAN and what it is on).
func (p path) answers(l lookup.Lookup) int {
	most := 0
	counts, last := map[netip.AddrPort]int{}, map[netip.AddrPort]time.Time{}
	count := func(from netip.AddrPort, at time.Time) {
		if at.Sub(last[from]) > onePacket {
			counts[from]++
		}
		last[from] = at
		most = max(most, counts[from])
	}
	for _, e := range l.Entered {
		count(e.From, e.At)
	}
	clear(counts)
	clear(last)
	for _, a := range p.delivered {
		count(a.From, a.At)
	}
	return most
}

// lastBefore is when the client asked last before t.
func (p path) lastBefore(l lookup.Lookup, t time.Time) time.Time {
	last := p.start
	for _, q := range l.Asked {
		if q.At.Before(t) {
			last = q.At
		}
	}
	return last
}

func (p path) backend() netip.AddrPort {
	if len(p.left) > 0 {
		return p.left[0].To
	}
	return netip.AddrPort{}
}

// stayed: the question was seen on the client's link and nowhere else.
func (p path) stayed(l lookup.Lookup, s Surroundings) verdict {
	never := fmt.Sprintf("the question came in by %s and was not seen leaving the node", l.Client.LinkName)
	for _, d := range s.Drops {
		if !p.during(d) {
			continue
		}
		counters := fmt.Sprintf("at that time conntrack dropped %d packets", d.Clash+d.TableFull+d.ChainTooLong)
		if d.TableFull > 0 {
			return verdict{
				cause: TableFull, remedy: tableRemedy,
				evidence: join(never, fmt.Sprintf("%s, %d of them because the table was full (%d entries of %d)", counters, d.TableFull, d.Entries, d.Limit), p.again(l)),
			}
		}
		if d.Clash > 0 {
			return verdict{
				cause: CollisionDropped, remedy: collisionRemedy,
				evidence: join(never, fmt.Sprintf("%s, %d of them because their entries collided (insert_failed)", counters, d.Clash), p.again(l)),
			}
		}
	}
	for _, d := range s.Drops {
		if p.during(d) && d.ChainTooLong > 0 {
			return verdict{
				cause: DroppedOnNode, remedy: chainRemedy,
				evidence: join(never, fmt.Sprintf("at that time conntrack dropped %d packets, because a chain of its hash table was too long (chaintoolong)", d.ChainTooLong), p.again(l)),
			}
		}
	}
	conntrackSays := "conntrack dropped nothing at that time"
	if s.Blind != "" {
		conntrackSays = "conntrack cannot tell: " + s.Blind
	}
	return verdict{cause: DroppedOnNode, remedy: droppedRemedy, evidence: join(never, conntrackSays, p.again(l))}
}

// during tells whether the kernel dropped packets while the first attempt was
// on its way: the statistics are read once a second.
func (p path) during(d conntrack.Drop) bool {
	const slack = 50 * time.Millisecond
	return !p.start.Before(d.From.Add(-slack)) && !p.start.After(d.To.Add(slack))
}

// unanswered: the question left, and nothing came in.
func (p path) unanswered(l lookup.Lookup) verdict {
	asked := servers(p.left)
	went := fmt.Sprintf("the question left by %s for %s, and nothing came back", p.left[0].LinkName, list(asked))
	for _, addr := range asked {
		if others, ok := p.stale(l, addr); ok {
			return verdict{
				cause: StaleBackend, remedy: staleRemedy, backend: addr,
				evidence: join(went, fmt.Sprintf("%v has answered nothing for %v or more (%d questions since), while %s answered", addr, lately, unansweredBy(l, addr), list(others)), p.again(l)),
			}
		}
	}
	return verdict{cause: ServerSilent, remedy: silentRemedy, backend: asked[0], evidence: join(went, p.again(l))}
}

// lately is how long a server must have been silent to be called gone, and how
// far before a lookup an answer says that a server is there.
const lately = 10 * time.Second

// stale tells whether a backend answers nothing any more, while others of the
// same nameserver do. A server that answered shortly before is silent for this
// name, or just now; that is another cause.
func (p path) stale(l lookup.Lookup, addr netip.AddrPort) (others []netip.AddrPort, ok bool) {
	copies := uint64(0) // of one question: it may pass several links
	for _, s := range p.left {
		if s.To == addr {
			copies++
		}
	}
	for _, b := range l.Backends {
		switch {
		case b.Addr == addr:
			ok = b.Answered.Before(l.Start.Add(-lately)) && b.Unanswered > copies
		case b.Answered.After(l.Start) || b.Answered.After(l.Start.Add(-lately)) && b.Unanswered == 0:
			others = append(others, b.Addr)
		}
	}
	return others, ok && len(others) > 0
}

func unansweredBy(l lookup.Lookup, addr netip.AddrPort) uint64 {
	for _, b := range l.Backends {
		if b.Addr == addr {
			return b.Unanswered
		}
	}
	return 0
}

// join puts what is not empty together.
func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}
