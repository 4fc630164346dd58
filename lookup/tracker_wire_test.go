package lookup

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The node of these tests: a pod's link, the link of a CoreDNS pod, an uplink
// and a bridge.
const (
	loLink     int32 = 1
	uplinkLink int32 = 2
	podLink    int32 = 7
	dnsPodLink int32 = 8
	bridgeLink int32 = 9
)

var (
	podAddr     = netip.MustParseAddr("10.244.1.2")
	serviceNS   = netip.MustParseAddrPort("10.96.0.10:53")
	secondNS    = netip.MustParseAddrPort("10.96.0.11:53")
	backendA    = netip.MustParseAddrPort("10.244.3.2:53")
	backendB    = netip.MustParseAddrPort("10.244.3.3:53")
	nodeAddr    = netip.MustParseAddr("192.168.1.1")
	upstreamNS  = netip.MustParseAddrPort("192.168.9.9:53")
	midday      = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	wholeAnswer = dns.RcodeSuccess
)

func endpointOf(a netip.AddrPort) endpoint { return endpoint{addr: addrOf(a.Addr()), port: a.Port()} }

// ask is a question of the pod.
type ask struct {
	name  string
	qtype uint16
	id    uint16
	port  uint16
	ident uint16
	to    netip.AddrPort // the service when it is not set
	via   netip.AddrPort // the server that it is translated to; the first one when it is not set
	edns  bool           // as Go's resolver makes it
	from  netip.Addr     // the pod when it is not set
}

func (a ask) withDefaults() ask {
	if !a.to.IsValid() {
		a.to = serviceNS
	}
	if !a.via.IsValid() {
		a.via = backendA
	}
	if !a.from.IsValid() {
		a.from = podAddr
	}
	return a
}

func (a ask) message() *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(a.name, a.qtype)
	m.Id = a.id
	if a.edns {
		m.SetEdns0(goEDNSSize, false)
	}
	return m
}

// reply is an answer to it with a record of the type that was asked.
func (a ask) reply(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(a.message(), rcode)
	if rcode != dns.RcodeSuccess {
		return m
	}
	h := dns.RR_Header{Name: a.name, Rrtype: a.qtype, Class: dns.ClassINET, Ttl: 30}
	switch a.qtype {
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: h, AAAA: netip.MustParseAddr("2001:db8::1").AsSlice()}}
	case dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: h, A: netip.MustParseAddr("192.0.2.1").AsSlice()}}
	}
	return m
}

// wire is a tracker with packets to give it.
type wire struct {
	t      testing.TB
	start  time.Time
	clock  time.Time // of the ticks
	events []Event
	*tracker
}

func newWire(t testing.TB, cfg trackerConfig) *wire {
	w := &wire{t: t, start: midday, clock: midday}
	w.tracker = newTracker(cfg, func(e Event) { w.events = append(w.events, e) })
	w.links([]link{
		{loLink, "lo", loopback}, {uplinkLink, "eth0", uplink}, {podLink, "cali1", client},
		{dnsPodLink, "cali2", client}, {bridgeLink, "cni0", ignored},
	}, map[addr]struct{}{addrOf(nodeAddr): {}, addrOf(netip.MustParseAddr("127.0.0.1")): {}, addrOf(netip.MustParseAddr("169.254.20.10")): {}})
	w.tick(w.clock.UnixNano())
	return w
}

// until lets the time pass, with a tick every 100 ms.
func (w *wire) until(d time.Duration) {
	for end := w.start.Add(d); w.clock.Before(end); {
		w.clock = w.clock.Add(100 * time.Millisecond)
		w.tick(w.clock.UnixNano())
	}
}

func (w *wire) pass(d time.Duration, link int32, egress bool, from, to netip.AddrPort, ident uint16, m *dns.Msg) {
	w.until(d)
	b, err := m.Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	w.packet(&packet{at: w.start.Add(d).UnixNano(), link: link, egress: egress, src: endpointOf(from), dst: endpointOf(to), message: b, ipID: ident})
}

// asks: the question passes the pod's link only.
func (w *wire) asks(d time.Duration, a ask) {
	a = a.withDefaults()
	w.pass(d, podLink, false, netip.AddrPortFrom(a.from, a.port), a.to, a.ident, a.message())
}

// leaves: it leaves the node on the uplink, translated.
func (w *wire) leaves(d time.Duration, a ask) {
	a = a.withDefaults()
	w.pass(d, uplinkLink, true, netip.AddrPortFrom(a.from, a.port), a.via, a.ident, a.message())
}

// sends: both, 10 µs apart.
func (w *wire) sends(d time.Duration, a ask) {
	w.asks(d, a)
	w.leaves(d+10*time.Microsecond, a)
}

// enters: an answer comes into the node.
func (w *wire) enters(d time.Duration, a ask, m *dns.Msg) {
	a = a.withDefaults()
	w.pass(d, uplinkLink, false, a.via, netip.AddrPortFrom(a.from, a.port), 0, m)
}

// gets: an answer goes to the pod, from the nameserver that it asked.
func (w *wire) gets(d time.Duration, a ask, m *dns.Msg) {
	a = a.withDefaults()
	w.pass(d, podLink, true, a.to, netip.AddrPortFrom(a.from, a.port), 0, m)
}

// getsFrom: an answer goes to the pod from another address.
func (w *wire) getsFrom(d time.Duration, from netip.AddrPort, a ask, m *dns.Msg) {
	a = a.withDefaults()
	w.pass(d, podLink, true, from, netip.AddrPortFrom(a.from, a.port), 0, m)
}

// answers: it comes in and reaches the pod.
func (w *wire) answers(d time.Duration, a ask, rcode int) {
	w.enters(d, a, a.reply(rcode))
	w.gets(d+10*time.Microsecond, a, a.reply(rcode))
}

// lookups are those that were reported, each in a line.
func (w *wire) lookups() []string {
	var out []string
	for _, e := range w.events {
		if l, ok := e.(Lookup); ok {
			out = append(out, w.line(l))
		}
	}
	return out
}

func (w *wire) line(l Lookup) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %s %s %s", l.Type, l.Name, l.Resolver, l.Outcome)
	for _, f := range []struct {
		set  bool
		name string
	}{{l.TimedOut, "timed_out"}, {l.Slow, "slow"}, {l.Truncated, "truncated"}, {l.TCP, "tcp"}, {l.Uncertain, "uncertain"},
		{l.LocalNameserver, "local_nameserver"}, {l.Client.Host, "host"}} {
		if f.set {
			fmt.Fprintf(&b, " %s", f.name)
		}
	}
	fmt.Fprintf(&b, " %v+%v x%d asked=%d left=%d entered=%d", l.Start.Sub(w.start), l.End.Sub(l.Start).Round(time.Millisecond), l.Attempts,
		len(l.Asked), len(l.Left), len(l.Entered))
	for _, a := range l.Answers {
		strange := ""
		if !a.Acceptable {
			strange = "!"
		}
		fmt.Fprintf(&b, " %s%s@%v", strange, a.Outcome, a.At.Sub(w.start).Round(time.Millisecond))
	}
	for _, u := range l.Unreachable {
		fmt.Fprintf(&b, " unreachable:%v@%s", u.From.Addr(), u.LinkName)
	}
	if p := l.Pair; p != nil {
		fmt.Fprintf(&b, " pair=%v:%s:%v", p.Type, p.Outcome, p.Took.Round(time.Millisecond))
	}
	for _, s := range l.Search {
		fmt.Fprintf(&b, " after=%s:%s:%s", s.Name, s.A, s.AAAA)
	}
	if l.SearchWentOn {
		b.WriteString(" went_on")
	}
	return b.String()
}

// sums adds the totals up, by resolver.
func (w *wire) sums() map[Resolver]Totals {
	out := map[Resolver]Totals{}
	for _, e := range w.events {
		s, ok := e.(Totals)
		if !ok {
			continue
		}
		sum := out[s.Resolver]
		for _, c := range s.Lookups {
			i := slices.IndexFunc(sum.Lookups, func(x Count) bool { return x.Type == c.Type && x.Outcome == c.Outcome })
			if i < 0 {
				sum.Lookups = append(sum.Lookups, c)
			} else {
				sum.Lookups[i].N += c.N
			}
		}
		sum.Retransmissions += s.Retransmissions
		sum.Wasted += s.Wasted
		sum.Durations.Count += s.Durations.Count
		sum.Durations.Sum += s.Durations.Sum
		if s.NameWasted > sum.NameWasted {
			sum.Name, sum.NameWasted = s.Name, s.NameWasted
		}
		out[s.Resolver] = sum
	}
	return out
}

// reported are all events of a kind.
func reported[E Event](w *wire) []E {
	var out []E
	for _, e := range w.events {
		if x, ok := e.(E); ok {
			out = append(out, x)
		}
	}
	return out
}

// pairOf is the A and AAAA question of one call of musl.
func pairOf(name string, id, port uint16) (a, aaaa ask) {
	return ask{name: name, qtype: dns.TypeA, id: id, port: port}, ask{name: name, qtype: dns.TypeAAAA, id: id + 130, port: port}
}

func netipPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func (a ask) clientOf() netip.AddrPort { return netip.AddrPortFrom(a.from, a.port) }

// consistent checks that every lookup that began is accounted for once, and
// that nothing outgrew its bounds.
func (w *wire) consistent() {
	w.t.Helper()
	var live, open, entries uint64
	perPlace := make([]int, len(w.places.all))
	w.each(func(i uint32, e *entry) {
		entries++
		if e.client != 0 {
			perPlace[w.askers.all[e.client].place]++
		}
		if e.is(alias | done) {
			return
		}
		live++
		if !e.is(over) {
			open++
		}
	})
	if sum := w.counted + w.thrown + w.unseen + live; sum != w.begun {
		w.t.Fatalf("%d lookups began; %d were counted, %d thrown away, %d dropped unseen, %d live: %d", w.begun, w.counted, w.thrown, w.unseen, live, sum)
	}
	if open != uint64(w.pending()) {
		w.t.Fatalf("%d lookups are open, pending is %d", open, w.pending())
	}
	if entries != uint64(w.store.live) || w.store.live > w.cfg.pending {
		w.t.Fatalf("%d entries on the wheel, %d live, %d allowed", entries, w.store.live, w.cfg.pending)
	}
	for n, sum := range perPlace {
		if w.places.all[n].live != sum {
			w.t.Fatalf("link %s holds %d entries, it says %d", w.places.all[n].name, sum, w.places.all[n].live)
		}
	}
}

// each visits every entry, by way of the wheel, which holds all of them.
func (t *tracker) each(visit func(uint32, *entry)) {
	for _, f := range t.wheel.fresh[t.wheel.head:] {
		if f.valid(&t.store) {
			visit(f.entry, t.store.at(f.entry))
		}
	}
	for _, i := range t.wheel.slots {
		for ; i != 0; i = t.store.at(i).later {
			visit(i, t.store.at(i))
		}
	}
}
