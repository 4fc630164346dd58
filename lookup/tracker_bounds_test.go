package lookup

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestStalled(t *testing.T) {
	a, aaaa := pairOf("git.example.de.", 1, 40000)
	w := newWire(t, trackerConfig{})
	w.sends(0, a)
	w.sends(ms, aaaa)
	w.answers(5*ms, a, wholeAnswer)
	w.until(1100 * ms)
	if got := reported[Stalled](w); len(got) != 0 {
		t.Errorf("stalled before a second was seen: %v", got)
	}
	w.until(1500 * ms)
	w.sends(2500*ms, aaaa)
	w.until(20 * time.Second)
	want := []Stalled{{Client: Client{Addr: netip.AddrPortFrom(podAddr, 40000), Link: int(podLink), LinkName: "cali1"}, Start: midday.Add(ms)}}
	got := reported[Stalled](w)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
}

func TestTotals(t *testing.T) {
	w := newWire(t, trackerConfig{})
	at := time.Duration(0)
	for n := range uint16(10) {
		at = w.call(at, 40000+10*n, fmt.Sprintf("n%d.example.de.", n), usualList, dns.RcodeNameError, dns.RcodeNameError, dns.RcodeNameError, dns.RcodeSuccess)
	}
	a, _ := pairOf("lost.example.de.", 1, 50000)
	w.sends(at, a)
	w.sends(at+2500*ms, a)
	w.until(20 * time.Second)
	got := map[string]uint64{}
	var durations, retransmissions uint64
	var sum time.Duration
	for _, s := range w.sums() {
		durations += s.Durations.Count
		retransmissions += s.Retransmissions
		sum += s.Durations.Sum
		for _, c := range s.Lookups {
			got[fmt.Sprint(c.Type, " ", c.Outcome)] += c.N
		}
	}
	want := map[string]uint64{"A nxdomain": 30, "AAAA nxdomain": 30, "A noerror": 10, "AAAA noerror": 10, "A timeout": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lookups (-want +got):\n%s", diff)
	}
	// An A lookup takes 2.01 ms here, an AAAA lookup 2.51 ms.
	if durations != 80 || sum != 40*(2010+2510)*time.Microsecond || retransmissions != 1 {
		t.Errorf("%d durations with a sum of %v, %d retransmissions; want 80, %v, 1", durations, sum, retransmissions, 40*(2010+2510)*time.Microsecond)
	}
	for _, s := range reported[Totals](w) {
		if s.Client.Addr != netip.AddrPortFrom(podAddr, 0) || s.Client.LinkName != "cali1" {
			t.Fatalf("totals of %+v", s.Client)
		}
	}
	w.consistent()
}

func TestDurations(t *testing.T) {
	bound := func(i int) float64 { // of a native bucket, in seconds
		d := Durations{}
		d.add(1)
		if d.Native[0] != 1 {
			t.Fatal("the shortest is not in the first bucket")
		}
		return float64(nativeBounds[i]) / 1e9
	}
	if got := bound(-NativeOffset); got != 1 {
		t.Errorf("the bucket of schema index 0 ends at %v s, want 1", got)
	}
	for _, tt := range []struct {
		took            time.Duration
		classic, native int // native without the offset
	}{
		{time.Second, 10, 0}, {time.Second + 1, 11, 1}, {2 * time.Second, 11, 8}, {time.Hour, len(DurationBounds), nativeBuckets - 1 + NativeOffset},
		{500 * time.Microsecond, 0, -87}, {500*time.Microsecond + 1, 1, -87}, {1, 0, NativeOffset}, {0, 0, NativeOffset}, {16 * time.Second, len(DurationBounds), 32},
	} {
		var d Durations
		d.add(int64(tt.took))
		if d.Classic[tt.classic] != 1 || d.Native[tt.native-NativeOffset] != 1 {
			t.Errorf("%v is in %v and %v, want classic %d, native %d", tt.took, d.Classic, d.Native, tt.classic, tt.native)
		}
	}
}

// TestKinds: a client cannot fill the memory with types.
func TestKinds(t *testing.T) {
	w := newWire(t, trackerConfig{})
	for n := range uint16(1000) {
		q := ask{name: "git.example.de.", qtype: 100 + n, id: n, port: 40000 + n}
		w.asks(time.Duration(n)*ms, q)
		w.gets(time.Duration(n)*ms+ms/2, q, q.reply(dns.RcodeNameError))
	}
	w.until(5 * time.Second)
	var n, others uint64
	kinds := 0
	for _, s := range w.sums() {
		for _, c := range s.Lookups {
			n += c.N
			kinds++
			if c.Type == otherType {
				others += c.N
			}
		}
	}
	if n != 1000 || kinds != maxKinds+1 || others != 1000-maxKinds {
		t.Errorf("%d lookups of %d kinds, %d of them other, want 1000 of %d, %d", n, kinds, others, maxKinds+1, 1000-maxKinds)
	}
}

// TestFlood: a pod that floods throws away its own lookups, and only those.
func TestFlood(t *testing.T) {
	const room = 2000
	w := newWire(t, trackerConfig{pending: room})
	victims := 100
	for n := range uint16(victims) {
		w.pass(0, dnsPodLink, false, netip.AddrPortFrom(backendA.Addr(), 30000+n), serviceNS, 0, ask{name: "quiet.example.de.", qtype: dns.TypeA, id: n}.message())
	}
	m, err := ask{name: "flood.example.de." + strings.Repeat("a123456789.", 20), qtype: dns.TypeA}.message().Pack()
	if err != nil {
		t.Fatal(err)
	}
	short, err := ask{name: "flood.de.", qtype: dns.TypeA}.message().Pack()
	if err != nil {
		t.Fatal(err)
	}
	p := packet{at: w.start.Add(10 * ms).UnixNano(), link: podLink, dst: endpointOf(serviceNS), message: m}
	for n := range 50000 {
		if n%2 == 0 { // as long as it may be, or short
			p.message = m
		} else {
			p.message = short
		}
		p.src = endpoint{addr: addrOf(netip.AddrFrom4([4]byte{10, 250, byte(n >> 8), byte(n)})), port: uint16(n * 31)}
		binary.BigEndian.PutUint16(p.message, uint16(n))
		w.packet(&p)
	}
	w.consistent()
	if w.store.live < room/8 || w.store.live > room || w.begun != uint64(50000+victims) {
		t.Errorf("%d entries, %d began; want at most %d, %d", w.store.live, w.begun, room, 50000+victims)
	}
	if n := w.places.all[w.places.find(dnsPodLink)].live; n != victims {
		t.Errorf("the quiet pod has %d lookups left, want %d", n, victims)
	}
	if n := len(w.askers.all); n > maxPerPlace+10 {
		t.Errorf("%d clients", n)
	}
	w.until(2 * time.Minute)
	w.consistent()
	if w.store.live != 0 || w.askers.named != 0 {
		t.Errorf("%d entries and %d clients are left", w.store.live, w.askers.named)
	}
	timeouts := map[string]uint64{}
	for _, s := range reported[Totals](w) {
		for _, c := range s.Lookups {
			timeouts[s.Client.LinkName] += c.N
		}
	}
	if timeouts["cali2"] != uint64(victims) {
		t.Errorf("%d lookups of the quiet pod were counted, want %d", timeouts["cali2"], victims)
	}
	if got := uint64(victims) + timeouts["cali1"] + w.discarded(); got != w.begun {
		t.Errorf("%d counted or thrown away, %d began", got, w.begun)
	}
}

// TestBlind: where answers never pass a pod's link, those that enter the node
// count, and no timeout is made up.
func TestBlind(t *testing.T) {
	w := newWire(t, trackerConfig{})
	at := time.Duration(0)
	for n := range uint16(60) {
		a, aaaa := pairOf("git.example.de.", n*1000, 40000+n)
		for _, q := range []ask{a, aaaa} {
			w.sends(at, q)
			if n != 50 {
				w.enters(at+2*ms, q, q.reply(wholeAnswer))
			}
		}
		at += 50 * ms
	}
	w.until(30 * time.Second)
	if got := w.lookups(); len(got) != 0 {
		t.Errorf("lookups were reported: %q", got)
	}
	if got := len(reported[Stalled](w)); got > 120 {
		t.Errorf("%d lookups stalled", got)
	}
	counts := map[Outcome]uint64{}
	for _, s := range w.sums() {
		for _, c := range s.Lookups {
			counts[c.Outcome] += c.N
		}
	}
	if diff := cmp.Diff(map[Outcome]uint64{NoError: 118}, counts); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	got := reported[Blindness](w)
	if len(got) != 1 || !got[0].Blind || got[0].Reason != AnswersUnseen || !strings.Contains(got[0].Evidence, "cali1") {
		t.Fatalf("blindness %+v", got)
	}
	a, _ := pairOf("git.example.de.", 1, 50000)
	w.sends(31*time.Second, a)
	w.answers(31*time.Second+ms, a, wholeAnswer)
	if got = reported[Blindness](w); len(got) != 2 || got[1].Blind {
		t.Errorf("blindness %+v, want its end", got)
	}
	w.consistent()
}

// TestNotBlind: a pod whose answers are all dropped on the node asks again, and
// its lookups are lost.
func TestNotBlind(t *testing.T) {
	w := newWire(t, trackerConfig{})
	at := time.Duration(0)
	for n := range uint16(20) {
		a, aaaa := pairOf("git.example.de.", n*1000, 40000+n)
		for _, again := range []time.Duration{0, 2500 * ms} {
			for _, q := range []ask{a, aaaa} {
				w.sends(at+again, q)
				w.enters(at+again+2*ms, q, q.reply(wholeAnswer))
			}
		}
		at += 6 * time.Second
	}
	w.until(at + 30*time.Second)
	if got := reported[Blindness](w); len(got) != 0 {
		t.Errorf("blindness %+v", got)
	}
	lost := reported[Lookup](w)
	for _, l := range lost {
		if l.Outcome != Timeout || len(l.Entered) != 2 {
			t.Errorf("%s: %s, entered %v", l.Name, l.Outcome, l.Entered)
		}
	}
	if len(lost) != 40 {
		t.Errorf("%d lookups were lost, want all 40", len(lost))
	}
}

// TestBackends: a lost lookup shows which of its nameserver's servers are silent.
func TestBackends(t *testing.T) {
	w := newWire(t, trackerConfig{})
	at := time.Duration(0)
	for n := range uint16(10) {
		a, aaaa := pairOf("git.example.de.", n*1000, 40000+n)
		aaaa.via = backendB
		w.sends(at, a)
		w.sends(at, aaaa)
		w.answers(at+2*ms, a, wholeAnswer)
		if n < 5 {
			w.answers(at+2*ms, aaaa, wholeAnswer)
		}
		at += 100 * ms
	}
	w.until(20 * time.Second)
	lookups := reported[Lookup](w)
	if len(lookups) != 5 {
		t.Fatalf("%d lookups, want 5", len(lookups))
	}
	want := []Backend{
		{Addr: backendA, Answered: midday.Add(902 * ms)},
		{Addr: backendB, Answered: midday.Add(402 * ms), Asked: midday.Add(500*ms + 10*time.Microsecond), Unanswered: 5},
	}
	if diff := cmp.Diff(want, lookups[0].Backends, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
}

// TestBackendsOfMany: that many lookups of another nameserver end at the same moment
// hides no server of this one.
func TestBackendsOfMany(t *testing.T) {
	w := newWire(t, trackerConfig{})
	for n := range uint16(100) {
		a, _ := pairOf("git.example.de.", n*500, 40000+n)
		a.to, a.via = secondNS, netip.MustParseAddrPort("10.244.3.4:53")
		w.sends(0, a)
		w.answers(2*ms, a, wholeAnswer)
	}
	a, aaaa := pairOf("git.example.de.", 60000, 50000)
	aaaa.via = backendB
	w.sends(3*ms, a)
	w.sends(3*ms, aaaa)
	w.answers(5*ms, a, wholeAnswer)
	w.until(20 * time.Second)
	lookups := reported[Lookup](w)
	if len(lookups) != 1 {
		t.Fatalf("%d lookups, want 1", len(lookups))
	}
	var got []netip.AddrPort
	for _, b := range lookups[0].Backends {
		got = append(got, b.Addr)
	}
	if !slices.Equal(got, []netip.AddrPort{backendA, backendB}) {
		t.Errorf("the servers behind the nameserver are %v", got)
	}
}

// TestForgotten: when the journal no longer reaches back, that is said.
func TestForgotten(t *testing.T) {
	a, _ := pairOf("git.example.de.", 1, 40000)
	w := newWire(t, trackerConfig{})
	w.sends(0, a)
	m, err := ask{name: "x.de.", qtype: dns.TypeA, id: 9}.message().Pack()
	if err != nil {
		t.Fatal(err)
	}
	noise := packet{at: w.start.Add(10 * ms).UnixNano(), link: uplinkLink, egress: true, src: endpointOf(upstreamNS), dst: endpointOf(backendA), message: m}
	for range journalSize + 1 {
		w.packet(&noise)
	}
	w.until(20 * time.Second)
	want := []string{"A git.example.de. other timeout timed_out uncertain 0s+5s x1 asked=1 left=0 entered=0"}
	if diff := cmp.Diff(want, w.lookups()); diff != "" {
		t.Errorf("lookups (-want +got):\n%s", diff)
	}
}

// TestClockSet: when the clock is set, what is pending is not lost lookups.
func TestClockSet(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		a, aaaa := pairOf("git.example.de.", 1, 40000)
		w := newWire(t, trackerConfig{})
		w.sends(0, a)
		w.until(200 * ms)
		w.start, w.clock = w.start.Add(by), w.clock.Add(by)
		w.until(time.Second)
		w.sends(time.Second, aaaa)
		w.until(20 * time.Second)
		want := []string{"AAAA git.example.de. other timeout timed_out 1s+5s x1 asked=1 left=1 entered=0"}
		if diff := cmp.Diff(want, w.lookups()); diff != "" {
			t.Errorf("clock set by %v: lookups (-want +got):\n%s", by, diff)
		}
		if w.discarded() != 1 || w.pending() != 0 {
			t.Errorf("clock set by %v: %d thrown away, %d pending", by, w.discarded(), w.pending())
		}
		w.consistent()
	}
}

func TestFinish(t *testing.T) {
	w := newWire(t, trackerConfig{})
	a, aaaa := pairOf("git.example.de.", 1, 40000)
	w.sends(0, a)
	w.sends(ms, aaaa)
	w.answers(5*ms, a, wholeAnswer)
	w.sends(2500*ms, aaaa)
	fresh, _ := pairOf("fresh.example.de.", 500, 40001)
	w.sends(2600*ms, fresh)
	short, _ := pairOf("short.example.de.", 900, 40002)
	w.sends(2600*ms, short)
	w.answers(2601*ms, short, wholeAnswer)
	w.until(2700 * ms)
	w.finish()
	w.consistent()
	want := []string{"AAAA git.example.de. musl timeout timed_out uncertain 1ms+2.699s x2 asked=2 left=2 entered=0 pair=A:noerror:5ms"}
	if diff := cmp.Diff(want, w.lookups()); diff != "" {
		t.Errorf("lookups (-want +got):\n%s", diff)
	}
	var n uint64
	for _, s := range w.sums() {
		for _, c := range s.Lookups {
			n += c.N
		}
	}
	if n != 3 || w.pending() != 1 {
		t.Errorf("%d lookups counted, %d pending; want 3, 1", n, w.pending())
	}
}

// TestLinks: a pod that went takes its lookups along, and another may get its
// link's index.
func TestLinks(t *testing.T) {
	w := newWire(t, trackerConfig{})
	a, _ := pairOf("git.example.de.", 1, 40000)
	w.sends(0, a)
	w.links([]link{{uplinkLink, "eth0", uplink}}, nil)
	w.asks(ms, ask{name: "unseen.de.", qtype: dns.TypeA, id: 5, port: 1})
	w.links([]link{{uplinkLink, "eth0", uplink}, {podLink, "cali9", client}}, nil)
	b, _ := pairOf("new.example.de.", 2, 40000)
	w.sends(2*ms, b)
	w.until(20 * time.Second)
	want := []string{"A new.example.de. other timeout timed_out 2ms+5s x1 asked=1 left=1 entered=0"}
	if diff := cmp.Diff(want, w.lookups()); diff != "" {
		t.Errorf("lookups (-want +got):\n%s", diff)
	}
	if got := reported[Lookup](w); len(got) == 1 && got[0].Client.LinkName != "cali9" {
		t.Errorf("the client is at %s", got[0].Client.LinkName)
	}
	w.consistent()
}

func TestMalformed(t *testing.T) {
	good, err := ask{name: "git.example.de.", qtype: dns.TypeA}.message().Pack()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	tests := []struct {
		name    string
		message []byte
		begun   uint64
		bad     uint64
	}{
		{"a question", good, 1, 0},
		{"nothing", nil, 0, 1},
		{"a header only", good[:headerLen], 0, 1},
		{"cut in the name", good[:20], 0, 1},
		{"cut in the type", good[:len(good)-3], 0, 1},
		{"two questions", edit(func(b []byte) []byte { b[5] = 2; return b }), 0, 1},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b }), 0, 1},
		{"a pointer in the question", edit(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), 0, 1},
		{"a name that is too long", append(append(good[:headerLen:headerLen], []byte(strings.Repeat("\x01a", 128))...), 0, 0, 1, 0, 1), 0, 1},
		{"the longest name", append(append(good[:headerLen:headerLen], []byte(strings.Repeat("\x01a", 127))...), 0, 0, 1, 0, 1), 1, 0},
		{"a notification", edit(func(b []byte) []byte { b[2] |= 4 << 3; return b }), 0, 0},
	}
	for _, tt := range tests {
		w := newWire(t, trackerConfig{})
		w.packet(&packet{at: w.start.UnixNano(), link: podLink, src: endpointOf(netip.AddrPortFrom(podAddr, 1)), dst: endpointOf(serviceNS), message: tt.message})
		if w.begun != tt.begun || w.malformed() != tt.bad {
			t.Errorf("%s: %d lookups and %d malformed, want %d, %d", tt.name, w.begun, w.malformed(), tt.begun, tt.bad)
		}
	}
}

// TestLongNames: they are kept whole, and reported as asked.
func TestLongNames(t *testing.T) {
	w := newWire(t, trackerConfig{})
	var want []string
	for n := range 25 {
		name := strings.Repeat("Aa\\.456789.", 1+n)[:11*(1+n)]
		if n%10 == 0 {
			name = "weird\\000\\200" + name
		}
		w.asks(time.Duration(n)*ms, ask{name: name, qtype: dns.TypeA, id: uint16(n), port: 40000 + uint16(n)})
		want = append(want, name)
	}
	w.until(20 * time.Second)
	var got []string
	for _, l := range reported[Lookup](w) {
		got = append(got, l.Name)
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// TestBusyJournal: a lookup's evidence is kept before others overwrite it.
func TestBusyJournal(t *testing.T) {
	a, aaaa := pairOf("git.example.de.", 1, 40000)
	w := newWire(t, trackerConfig{})
	m, err := ask{name: "x.de.", qtype: dns.TypeA, id: 9}.message().Pack()
	if err != nil {
		t.Fatal(err)
	}
	// The journal reaches back two seconds.
	step := 2 * time.Second / journalSize
	noise := packet{link: uplinkLink, egress: true, src: endpointOf(upstreamNS), dst: endpointOf(backendA), message: m}
	at := time.Duration(0)
	busy := func(until time.Duration) {
		for ; at < until; at += step {
			if at > w.clock.Sub(w.start)+100*ms {
				w.until(at - 100*ms)
			}
			noise.at = w.start.Add(at).UnixNano()
			w.packet(&noise)
		}
	}
	w.sends(0, a)
	w.sends(ms, aaaa)
	w.answers(5*ms, a, wholeAnswer)
	w.enters(6*ms, aaaa, aaaa.reply(wholeAnswer))
	busy(2500 * ms)
	w.sends(2500*ms, aaaa)
	w.answers(2506*ms, aaaa, wholeAnswer)
	busy(6 * time.Second)
	want := []string{"AAAA git.example.de. musl noerror timed_out slow 1ms+2.505s x2 asked=2 left=2 entered=2 noerror@2.506s pair=A:noerror:5ms"}
	if diff := cmp.Diff(want, w.lookups()); diff != "" {
		t.Errorf("lookups (-want +got):\n%s", diff)
	}
}
