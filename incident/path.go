package incident

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/lookup"
)

const (
	// burst is the time in which several questions of one lookup are one
	// attempt: musl asks all nameservers at once. A real retry comes after
	// seconds (musl 2.5, glibc 5).
	burst = 900 * time.Millisecond
	// skew is by how much the order of two packets in the ring may differ from
	// that of their times.
	skew = 2 * time.Millisecond
	// atOnce is how soon after a retry an answer is taken for the answer to
	// that retry, and not for a late one to the question before, when only one
	// answer was seen.
	atOnce = 100 * time.Millisecond
	// onePacket is how close together a packet's sights at several links are.
	onePacket = 5 * time.Millisecond
	// muslGivesUp is when musl gives up (attempts:2 timeout:5, res_msend.c).
	muslGivesUp = 5 * time.Second
)

// path is the way of a lookup's first attempt through the node.
type path struct {
	start time.Time // of the first attempt
	until time.Time // when the client asked again, or the lookup's end
	retry bool      // it asked again
	last  time.Time // the last time it asked

	left      []lookup.Sight  // questions that left, before until
	entered   []lookup.Sight  // answers that came in, before until
	delivered []lookup.Answer // acceptable answers at the client's link, at any time
	strange   []lookup.Answer // others
}

func follow(l lookup.Lookup) path {
	p := path{start: l.Start, until: l.End, last: l.Start}
	for _, q := range l.Asked {
		if q.At.Sub(l.Start) >= burst && !p.retry {
			p.until, p.retry = q.At, true
		}
		p.last = q.At
	}
	early := func(s lookup.Sight) bool { return s.At.Before(p.until) && !s.At.Before(p.start.Add(-skew)) }
	for _, s := range l.Left {
		if early(s) {
			p.left = append(p.left, s)
		}
	}
	for _, s := range l.Entered {
		if early(s) {
			p.entered = append(p.entered, s)
		}
	}
	for _, a := range l.Answers {
		if a.Acceptable {
			p.delivered = append(p.delivered, a)
		} else {
			p.strange = append(p.strange, a)
		}
	}
	return p
}

// servers are the servers that questions went to, each once, in order.
func servers(left []lookup.Sight) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range left {
		if !slices.Contains(all, s.To) {
			all = append(all, s.To)
		}
	}
	return all
}

func list(addrs []netip.AddrPort) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, " and ")
}

// after gives a time as the time since the first question, as "1.502s".
func (p path) after(t time.Time) string { return round(t.Sub(p.start)) }

// round gives a time to the millisecond, or to the microsecond where it is
// shorter.
func round(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// again says what the client did next.
func (p path) again(l lookup.Lookup) string {
	switch {
	case !p.retry && l.Outcome == lookup.Timeout:
		return "the client gave up"
	case !p.retry:
		return ""
	case l.Outcome == lookup.Timeout:
		return fmt.Sprintf("the client asked again after %s and gave up", p.after(p.until))
	default:
		return fmt.Sprintf("the client asked again after %s", p.after(p.until))
	}
}
