package conntrack

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	pod      = netip.MustParseAddrPort("10.244.1.2:40000")
	service  = netip.MustParseAddrPort("10.96.0.10:53")
	first    = netip.MustParseAddrPort("10.244.3.2:53")
	second   = netip.MustParseAddrPort("10.244.3.3:53")
	target   = netip.MustParseAddrPort("10.244.3.4:5353") // of a service whose target port is not 53
	otherPod = netip.MustParseAddrPort("10.244.1.3:40000")
	asked    = Tuple{Source: pod, Destination: service}
	noon     = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

// fakeTable stands for the kernel's table: the winner's entry is in it.
type fakeTable map[Tuple]flow

func (f fakeTable) lookup(t Tuple) (flow, bool) {
	x, ok := f[t]
	return x, ok
}

// step is a message, or a tick when it has none, at a time after noon.
type step struct {
	at       time.Duration
	event    event
	status   uint32
	original Tuple
	backend  netip.AddrPort
	start    time.Duration // with stamped: when the entry was made
	stamped  bool
	timeout  time.Duration
}

func (s step) message() message {
	m := message{event: s.event, status: s.status, original: s.original, backend: s.backend, client: s.original.Source, timeout: s.timeout}
	if s.stamped {
		m.start = noon.Add(s.start)
	}
	return m
}

const (
	keptAnswered  = statusNATClash | statusSeenReply
	answerIsNew   = 0
	assuredStatus = statusAssured | statusSeenReply
)

func TestTracker(t *testing.T) {
	stray := Tuple{Source: second, Destination: pod} // the late answer's own flow
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	tests := []struct {
		name     string
		table    fakeTable
		dropped  bool // the statistics show a clash drop at noon
		counters bool
		steps    []step
		want     []Finding
	}{
		{
			name:  "kept and answered, then removed",
			table: fakeTable{asked: {backend: first}},
			steps: []step{
				{at: ms(1), event: eventUpdate, status: keptAnswered, original: asked, backend: second},
				{at: ms(900), event: eventUpdate, status: keptAnswered, original: asked, backend: second},
				{at: ms(9000), event: eventDestroy, status: keptAnswered, original: asked, backend: second},
			},
			want: []Finding{Collision{Time: noon.Add(ms(1)), Original: asked, Loser: second, Winner: first, Answered: true}},
		},
		{
			name:  "the message about the answer was lost",
			steps: []step{{at: ms(9000), event: eventDestroy, status: keptAnswered, original: asked, backend: second}},
			want:  []Finding{Collision{Time: noon.Add(ms(9000)), Original: asked, Loser: second, Answered: true}},
		},
		{
			name:  "orphan, and the client asks again",
			table: fakeTable{asked: {backend: first}},
			steps: []step{
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: asked, backend: second, stamped: true},
				{at: ms(1500), event: eventNew, status: answerIsNew, original: stray, backend: pod},
				{at: ms(2500), event: eventUpdate, status: assuredStatus, original: asked, backend: first},
				{at: ms(2501), event: eventUpdate, status: assuredStatus, original: asked, backend: first},
			},
			want: []Finding{
				Orphan{Time: noon.Add(ms(1500)), Original: asked, Backend: second, Winner: first, Lateness: ms(1500), Exact: true},
				SlowFlow{Time: noon.Add(ms(2500)), Original: asked, Backend: first, Witness: AfterOrphan},
			},
		},
		{
			name: "orphan before the end of its entry, without timestamps",
			steps: []step{
				{at: ms(1500), event: eventNew, original: stray, backend: pod},
				{at: ms(1501), event: eventDestroy, status: statusNATClash, original: asked, backend: second},
			},
			want: []Finding{Orphan{Time: noon.Add(ms(1501)), Original: asked, Backend: second, Lateness: time.Second}},
		},
		{
			name: "kept and never answered",
			steps: []step{
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: asked, backend: second},
				{at: ms(1500 + 10001)},
				{at: ms(40000), event: eventNew, original: stray, backend: pod},
			},
			want: []Finding{Collision{Time: noon.Add(ms(1500)), Original: asked, Loser: second}},
		},
		{
			name: "orphan from a target port that an earlier collision taught",
			steps: []step{
				{at: ms(1), event: eventNew, original: Tuple{Source: target, Destination: pod}, backend: pod}, // not yet known
				{at: ms(2), event: eventUpdate, status: keptAnswered, original: Tuple{Source: otherPod, Destination: service}, backend: target},
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: asked, backend: target},
				{at: ms(1500), event: eventNew, original: Tuple{Source: target, Destination: pod}, backend: pod},
			},
			want: []Finding{
				Collision{Time: noon.Add(ms(2)), Original: Tuple{Source: otherPod, Destination: service}, Loser: target, Answered: true},
				Orphan{Time: noon.Add(ms(1500)), Original: asked, Backend: target, Lateness: time.Second},
			},
		},
		{
			name: "the same addresses in another zone",
			steps: []step{
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: Tuple{pod, service, 7}, backend: second},
				{at: ms(1500), event: eventNew, original: stray, backend: pod},
			},
		},
		{
			name: "an orphan in a zone",
			steps: []step{
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: Tuple{pod, service, 7}, backend: second},
				{at: ms(1500), event: eventNew, original: Tuple{second, pod, 7}, backend: pod},
			},
			want: []Finding{Orphan{Time: noon.Add(ms(1500)), Original: Tuple{pod, service, 7}, Backend: second, Lateness: time.Second}},
		},
		{
			name: "an entry that began after it ended: the clock was set",
			steps: []step{
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: asked, backend: second, stamped: true, start: ms(5000)},
				{at: ms(1500), event: eventNew, original: stray, backend: pod},
			},
			want: []Finding{Orphan{Time: noon.Add(ms(1500)), Original: asked, Backend: second, Lateness: time.Second}},
		},
		{
			name: "assured long after an orphan: the port is used again",
			steps: []step{
				{at: ms(1500), event: eventDestroy, status: statusNATClash, original: asked, backend: second},
				{at: ms(1500), event: eventNew, original: stray, backend: pod},
				{at: ms(1500 + 15001), event: eventUpdate, status: assuredStatus, original: asked, backend: first},
			},
			want: []Finding{Orphan{Time: noon.Add(ms(1500)), Original: asked, Backend: second, Lateness: time.Second}},
		},
		{
			name: "a new flow from port 53 that belongs to nothing",
			steps: []step{
				{at: ms(1), event: eventNew, original: stray, backend: pod},
				{at: ms(2000)},
				{at: ms(2001), event: eventDestroy, status: statusNATClash, original: asked, backend: second},
			},
		},
		{
			name: "a collision on a port that is not watched",
			steps: []step{
				{at: ms(1), event: eventUpdate, status: keptAnswered, original: Tuple{pod, netip.MustParseAddrPort("10.96.0.20:443"), 0}, backend: second},
			},
		},
		{
			name:  "an assured flow without a witness",
			table: fakeTable{asked: {backend: first, timeout: 115 * time.Second}},
			steps: []step{
				{at: ms(10000), event: eventUpdate, status: assuredStatus, original: asked, backend: first, timeout: 120 * time.Second},
				{at: ms(16000)},
			},
		},
		{
			name:    "after a drop, quiet since: the client asked again",
			dropped: true,
			table:   fakeTable{asked: {backend: first, timeout: 115 * time.Second}},
			steps: []step{
				{at: ms(2500), event: eventUpdate, status: assuredStatus, original: asked, backend: first, timeout: 120 * time.Second},
				{at: ms(7500)},
			},
			want: []Finding{SlowFlow{Time: noon.Add(ms(2500)), Original: asked, Backend: first, Witness: AfterDrop}},
		},
		{
			name:    "after a drop, still in use: a long-lived socket",
			dropped: true,
			table:   fakeTable{asked: {backend: first, timeout: 119 * time.Second}},
			steps: []step{
				{at: ms(2500), event: eventUpdate, status: assuredStatus, original: asked, backend: first, timeout: 120 * time.Second},
				{at: ms(7500)},
			},
		},
		{
			name:     "the counters show an unanswered question",
			counters: true,
			table:    fakeTable{asked: {backend: first, timeout: 115 * time.Second, counted: true, questions: 3, answers: 2}},
			steps: []step{
				{at: ms(12500), event: eventUpdate, status: assuredStatus, original: asked, backend: first, timeout: 120 * time.Second},
				{at: ms(17500)},
			},
			want: []Finding{SlowFlow{Time: noon.Add(ms(12500)), Original: asked, Backend: first, Witness: Unanswered}},
		},
		{
			name:     "the counters show a reused port: each question answered",
			counters: true,
			table:    fakeTable{asked: {backend: first, timeout: 115 * time.Second, counted: true, questions: 4, answers: 4}},
			steps: []step{
				{at: ms(12500), event: eventUpdate, status: assuredStatus, original: asked, backend: first, timeout: 120 * time.Second},
				{at: ms(17500)},
			},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var got []Finding
			table := tc.table
			if table == nil {
				table = fakeTable{}
			}
			tr := newTracker([]uint16{53}, table, func(f Finding) { got = append(got, f) })
			tr.counters = tc.counters
			if tc.dropped {
				tr.drop(noon)
			}
			for _, s := range tc.steps {
				now := noon.Add(s.at)
				if s.event == 0 {
					tr.tick(now)
				} else {
					tr.message(s.message(), now)
				}
			}
			opts := cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}
			if diff := cmp.Diff(tc.want, got, opts); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// Flows that become ASSURED are wanted only while one could be judged.
func TestTrackerWants(t *testing.T) {
	tr := newTracker([]uint16{53}, fakeTable{}, func(Finding) {})
	wants := func(why string, now time.Time, want bool) {
		t.Helper()
		if got := tr.wanted(now).assured; got != want {
			t.Errorf("%s: wants assured flows: %v, want %v", why, got, want)
		}
	}
	wants("at first", noon, false)
	tr.message(message{event: eventDestroy, status: statusNATClash, original: asked, backend: second, client: pod}, noon)
	tr.message(message{event: eventNew, original: Tuple{Source: second, Destination: pod}}, noon)
	wants("after an orphan", noon, true)
	tr.tick(noon.Add(retryWait + 1))
	wants("when its client no longer asks", noon.Add(retryWait+1), false)
	tr.drop(noon)
	wants("after a drop", noon.Add(dropWait), true)
	wants("long after a drop", noon.Add(dropWait+1), false)
	tr.counters = true
	wants("with counters", noon.Add(time.Hour), true)
	for port := range uint16(100) {
		tr.message(message{
			event: eventUpdate, status: keptAnswered, original: asked,
			backend: netip.AddrPortFrom(second.Addr(), 6000+port), client: pod,
		}, noon)
	}
	if _, err := tr.wanted(noon).filter(); err != nil {
		t.Errorf("after a hundred target ports: %v", err)
	}
}

// What could not be remembered is not reported a second time.
func TestTrackerForgets(t *testing.T) {
	collisions := 0
	tr := newTracker([]uint16{53}, fakeTable{}, func(Finding) { collisions++ })
	const n = maxReported + 100
	for _, e := range []event{eventUpdate, eventDestroy} {
		for i := range n {
			client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 40000)
			tr.message(message{event: e, status: keptAnswered, original: Tuple{Source: client, Destination: service}, backend: second, client: client}, noon)
		}
	}
	if collisions != n {
		t.Errorf("%d collisions were reported %d times", n, collisions)
	}
}

// Everything that is remembered is bounded, and a bound loses no collision.
func TestTrackerIsBounded(t *testing.T) {
	collisions := 0
	tr := newTracker([]uint16{53}, fakeTable{}, func(f Finding) {
		if _, ok := f.(Collision); ok {
			collisions++
		}
	})
	const n = 20000
	for i := range n {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 40000)
		original := Tuple{Source: client, Destination: service}
		tr.message(message{event: eventDestroy, status: statusNATClash, original: original, backend: second, client: client}, noon)
		tr.message(message{event: eventUpdate, status: keptAnswered, original: original, backend: first, client: client}, noon)
		tr.message(message{event: eventNew, original: Tuple{Source: netip.AddrPortFrom(first.Addr(), 53), Destination: client}, backend: client, client: first}, noon)
	}
	if len(tr.unanswered) > maxUnanswered || len(tr.reported) > maxReported || len(tr.strays) > maxStrays {
		t.Errorf("remembered %d, %d, %d: more than the bounds", len(tr.unanswered), len(tr.reported), len(tr.strays))
	}
	tr.finish()
	if collisions != 2*n {
		t.Errorf("reported %d of %d collisions", collisions, 2*n)
	}
	tr.tick(noon.Add(time.Hour))
	if left := len(tr.unanswered) + len(tr.reported) + len(tr.strays) + len(tr.orphaned) + len(tr.candidates); left != 0 {
		t.Errorf("%d things remembered after an hour", left)
	}
}
