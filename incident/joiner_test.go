package incident

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// joined collects what a Joiner emits, as cause and pod.
type joined struct {
	*Joiner
	got []string
}

func newJoined(watching bool) *joined {
	j := &joined{}
	j.Joiner = NewJoiner(watching,
		func(c lookup.Client, _ time.Time) workload.Workload {
			return workload.Workload{Pod: "pod-" + c.Addr.Addr().String()}
		},
		func(in Incident) { j.got = append(j.got, fmt.Sprintf("%s %s", in.Cause, in.Workload.Pod)) })
	return j
}

func (j *joined) take() []string {
	got := j.got
	j.got = nil
	return got
}

var tuple = conntrack.Tuple{Source: client, Destination: nameserver}

func orphanAt(at time.Time) conntrack.Orphan {
	return conntrack.Orphan{Time: at, Original: tuple, Backend: loser, Winner: winner, Lateness: time.Second}
}

func TestJoinerPutsBothTogether(t *testing.T) {
	j := newJoined(true)
	j.Finding(ms(1501), orphanAt(ms(1500)))
	expect(t, j.take())
	l := musl(func(l *lookup.Lookup) { saved(l, 4000) })
	j.Lookup(ms(4001), l)
	expect(t, j.take(), "orphaned_answer pod-10.244.1.2")
	j.Tick(ms(1501).Add(2 * remember))
	expect(t, j.take()) // it is explained already
}

func TestJoinerAsksAllNameservers(t *testing.T) {
	j := newJoined(true)
	j.Finding(ms(1501), orphanAt(ms(1500)))
	other := netip.MustParseAddrPort("10.96.0.11:53")
	j.Lookup(ms(4001), musl(func(l *lookup.Lookup) {
		l.Nameserver = other
		l.Asked = append(sights("cali1", client, other, 0), l.Asked...)
	}))
	expect(t, j.take(), "orphaned_answer pod-10.244.1.2")
}

// TestJoinerMindsTheTime: a client that uses a port again is not blamed for
// what happened to the lookup before.
func TestJoinerMindsTheTime(t *testing.T) {
	j := newJoined(true)
	j.Finding(ms(-29_000), orphanAt(ms(-30_000)))
	j.Lookup(ms(10_001), musl(func(*lookup.Lookup) {}))
	expect(t, j.take(), "dropped_on_node pod-10.244.1.2")
}

// TestJoinerAfterwards: what happened to the flow after the lookup is another's.
func TestJoinerAfterwards(t *testing.T) {
	j := newJoined(true)
	j.Finding(ms(60_000), orphanAt(ms(60_000)))
	j.Lookup(ms(60_001), musl(func(*lookup.Lookup) {}))
	expect(t, j.take(), "dropped_on_node pod-10.244.1.2")
}

// TestJoinerUnanswered: the end of an entry is a second after its question.
func TestJoinerUnanswered(t *testing.T) {
	j := newJoined(true)
	j.Finding(ms(11_000), conntrack.Collision{Time: ms(11_500), Original: tuple, Loser: loser})
	j.Lookup(ms(11_001), musl(func(l *lookup.Lookup) { l.Left, l.Entered = left(0.1), entered(1500) }))
	expect(t, j.take(), "orphaned_answer pod-10.244.1.2")
}

// TestJoinerCountsOnce: what conntrack alone was taken to show, and the lookup
// that then turns up all the same, are one.
func TestJoinerCountsOnce(t *testing.T) {
	j := newJoined(true)
	j.Seen(lookup.Blindness{Reason: lookup.AnswersUnseen, Blind: true})
	j.Finding(ms(1501), orphanAt(ms(1500)))
	expect(t, j.take(), "orphaned_answer pod-10.244.1.2")
	j.Lookup(ms(4001), musl(func(l *lookup.Lookup) { saved(l, 4000) }))
	expect(t, j.take())
	later := musl(func(l *lookup.Lookup) {})
	later.Start, later.End = ms(60_000), ms(70_000)
	later.Asked = asked(60_000, 62_500)
	j.Lookup(ms(70_001), later)
	expect(t, j.take(), "dropped_on_node pod-10.244.1.2")
}

// TestJoinerHost: the node's own questions are seen behind the translation.
func TestJoinerHost(t *testing.T) {
	j := newJoined(true)
	j.who = func(lookup.Client, time.Time) workload.Workload { return workload.Workload{Host: true} }
	j.Finding(ms(1501), orphanAt(ms(1500)))
	expect(t, j.take(), "orphaned_answer ")
}

// TestJoinerForgets: a flow that was explained may be used again much later.
func TestJoinerForgets(t *testing.T) {
	j := newJoined(true)
	j.Lookup(ms(10_001), musl(func(*lookup.Lookup) {}))
	j.take()
	j.Tick(ms(10_001).Add(3 * remember))
	if len(j.judged) != 0 {
		t.Error("it is remembered for ever")
	}
}

// TestJoinerWithoutALoss: what conntrack found hurt nobody, as long as the
// lookups were seen.
func TestJoinerWithoutALoss(t *testing.T) {
	j := newJoined(true)
	j.Finding(ms(1501), orphanAt(ms(1500)))
	j.Finding(ms(11_000), conntrack.Collision{Time: ms(11_000), Original: tuple, Loser: loser})
	j.Tick(ms(11_000).Add(2 * remember))
	expect(t, j.take())
	if len(j.orphans)+len(j.unanswered) != 0 {
		t.Error("it remembers them for ever")
	}
}

func TestJoinerAlone(t *testing.T) {
	orphan, unanswered := orphanAt(ms(1500)), conntrack.Collision{Time: ms(1600), Original: tuple, Loser: loser}
	both := []string{"orphaned_answer pod-10.244.1.2", "unknown pod-10.244.1.2"}
	give := func(j *joined) {
		j.Finding(ms(1700), orphan)
		j.Finding(ms(1700), unanswered)
		j.Finding(ms(1700), conntrack.Collision{Time: ms(1600), Original: tuple, Loser: loser, Answered: true})
	}
	t.Run("no lookup sensor", func(t *testing.T) {
		j := newJoined(false)
		give(j)
		expect(t, j.take(), both...)
	})
	t.Run("it is blind", func(t *testing.T) {
		j := newJoined(true)
		j.Seen(lookup.Blindness{Reason: lookup.NoLinks, Blind: true})
		give(j)
		expect(t, j.take(), both...)
		j.Seen(lookup.Blindness{Reason: lookup.NoLinks})
		give(j)
		expect(t, j.take())
	})
	t.Run("it lost packets", func(t *testing.T) {
		j := newJoined(true)
		give(j)
		j.Seen(lookup.Loss{From: ms(1000), To: ms(2000), Packets: 9}) // said later
		j.Tick(ms(1700).Add(remember + time.Second))
		expect(t, j.take(), both...)
	})
}

func TestJoinerBounds(t *testing.T) {
	j := newJoined(true)
	for i := range 3 * maxRemembered {
		o := orphanAt(ms(float64(i)))
		o.Original.Source = netip.AddrPortFrom(client.Addr(), uint16(i))
		j.Finding(ms(float64(i)), o)
		j.Finding(ms(float64(i)), orphanAt(ms(float64(i))))
		j.Finding(ms(float64(i)), conntrack.Drop{Clash: 1, To: ms(float64(i))})
		j.Seen(lookup.Loss{To: ms(float64(i))})
	}
	if len(j.orphans) > maxRemembered || len(j.drops) > maxRemembered || len(j.losses) > maxRemembered {
		t.Errorf("%d orphans, %d drops, %d losses are remembered", len(j.orphans), len(j.drops), len(j.losses))
	}
}

func TestAdvice(t *testing.T) {
	w := workload.Workload{Namespace: "ci", Pod: "runner"}
	if _, ok := FromTotals(lookup.Totals{Wasted: 3, NameWasted: 3}, w); ok {
		t.Error("three useless questions are worth advice")
	}
	a, ok := FromTotals(lookup.Totals{Wasted: 16, Name: "git.example.de.", NameWasted: 8}, w)
	if !ok || a.Topic != SearchAmplification || a.Count != 16 || a.Name != "git.example.de." ||
		a.Evidence != "git.example.de. cost 8 useless questions, because it has fewer dots than ndots and the search list comes first" {
		t.Errorf("advice %+v", a)
	}
	if _, ok := FromCollision(conntrack.Collision{Original: tuple, Loser: loser}); ok {
		t.Error("advice without a winner")
	}
	b, ok := FromCollision(conntrack.Collision{Original: tuple, Loser: loser, Winner: winner})
	if !ok || b.Topic != RandomBackends || b.Nameserver != nameserver {
		t.Errorf("advice %+v", b)
	}
	if a.Key() == b.Key() || a.Key() != (AdviceKey{Topic: SearchAmplification, Namespace: "ci", Pod: "runner"}) {
		t.Errorf("keys %+v and %+v", a.Key(), b.Key())
	}
	if m := MergeAdvice(a, a); m.Count != 32 {
		t.Errorf("merged count %d", m.Count)
	}
}
