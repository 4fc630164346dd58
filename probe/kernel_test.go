package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// The tests of this file compare with the real musl, in a node in a box. They
// need root.

var answer = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// fromPod is a probe that asks from a pod.
func fromPod(t *testing.T, p *lab.Pod, nameservers ...netip.Addr) *Probe {
	t.Helper()
	cfg := Config{Listen: func(network string) (conn *net.UDPConn, err error) {
		err = p.Do(func() error {
			conn, err = net.ListenUDP(network, nil)
			return err
		})
		return conn, err
	}}
	for _, ns := range nameservers {
		cfg.Nameservers = append(cfg.Nameservers, netip.AddrPortFrom(ns, 53))
	}
	probe, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return probe
}

// scene is what the two servers do with a name, and what a probe must make of it.
type scene struct {
	name string
	both bool // both servers are nameservers, else the first one only
	six  bool // the first one is asked at its IPv6 address
	// rules of each server; the name is filled in.
	rules [2][]lab.Rule
	want  []string
}

// later is when a server answers that is to be the second one, and before anybody
// asks again, also where one of them stands still.
const later = time.Second

var scenes = []scene{
	{name: "healthy", rules: [2][]lab.Rule{{{Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "AAAA 1: noerror accepted x1"}},
	{name: "healthy6", six: true, rules: [2][]lab.Rule{{{Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "AAAA 1: noerror accepted x1"}},
	{name: "negative", rules: [2][]lab.Rule{{{Type: dns.TypeA, Rcode: dns.RcodeNameError}, {}}},
		want: []string{"A 1: nxdomain accepted x1", "AAAA 1: nodata accepted x1"}},
	{name: "aaaa-lost-once", rules: [2][]lab.Rule{{{Type: dns.TypeAAAA, Times: 1, Drop: true}, {Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "AAAA 1: noerror accepted x2"}},
	{name: "silent", rules: [2][]lab.Rule{{{Drop: true}}},
		want: []string{"A 1: timeout x2", "AAAA 1: timeout x2"}},
	{name: "aaaa-servfail", rules: [2][]lab.Rule{{{Type: dns.TypeAAAA, Rcode: dns.RcodeServerFailure}, {Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "AAAA 1: servfail x10"}},
	{name: "servfail-twice", rules: [2][]lab.Rule{{{Type: dns.TypeAAAA, Times: 2, Rcode: dns.RcodeServerFailure}, {Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "AAAA 1: noerror accepted x3"}},
	{name: "refused", rules: [2][]lab.Rule{{{Rcode: dns.RcodeRefused}}},
		want: []string{"A 1: refused x2", "AAAA 1: refused x2"}},
	{name: "truncated", rules: [2][]lab.Rule{{{Truncated: true}}},
		want: []string{"A 1: noerror accepted x1 truncated", "AAAA 1: noerror accepted x1 truncated"}},
	{name: "slow", rules: [2][]lab.Rule{{{Delay: 4 * time.Second, Addrs: answer}}},
		want: []string{"A 1: noerror accepted x2", "AAAA 1: noerror accepted x2"}},
	{name: "two", both: true, rules: [2][]lab.Rule{{{Addrs: answer}}, {{Delay: later, Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "A 2: noerror x1", "AAAA 1: noerror accepted x1", "AAAA 2: noerror x1"}},
	{name: "two-one-silent", both: true, rules: [2][]lab.Rule{{{Drop: true}}, {{Addrs: answer}}},
		want: []string{"A 1: timeout x1", "A 2: noerror accepted x1", "AAAA 1: timeout x1", "AAAA 2: noerror accepted x1"}},
	{name: "two-both-silent-once", both: true, rules: [2][]lab.Rule{{{Type: dns.TypeA, Times: 1, Drop: true}, {Addrs: answer}}, {{Type: dns.TypeA, Drop: true}, {Delay: later, Addrs: answer}}},
		want: []string{"A 1: noerror accepted x2", "A 2: timeout x2", "AAAA 1: noerror accepted x1", "AAAA 2: noerror x1"}},
	{name: "two-one-servfail", both: true, rules: [2][]lab.Rule{{{Type: dns.TypeAAAA, Rcode: dns.RcodeServerFailure}, {Addrs: answer}}, {{Delay: later, Addrs: answer}}},
		want: []string{"A 1: noerror accepted x1", "A 2: noerror x1", "AAAA 1: servfail x5", "AAAA 2: noerror accepted x1"}},
	{name: "two-late-servfail", both: true, rules: [2][]lab.Rule{{{Type: dns.TypeAAAA, Drop: true}, {Addrs: answer}}, {{Type: dns.TypeAAAA, Drop: true}, {Delay: later, Rcode: dns.RcodeServerFailure}}},
		want: []string{"A 1: noerror accepted x1", "A 2: servfail x1", "AAAA 1: timeout x2", "AAAA 2: timeout x2"}},
	{name: "two-one-refuses", both: true, rules: [2][]lab.Rule{{{Rcode: dns.RcodeRefused}}, {{Delay: later, Rcode: dns.RcodeNameError}}},
		want: []string{"A 1: refused x1", "A 2: nxdomain accepted x1", "AAAA 1: refused x1", "AAAA 2: nxdomain accepted x1"}},
}

// In every scene the servers cannot tell the probe from the real musl: the same
// questions, in the same order, in the same of the two rounds, from one socket with
// one id for each type.
func TestAsksAsMuslDoes(t *testing.T) {
	l := lab.ForTest(t)
	var servers [2]*lab.Server
	for i := range servers {
		var rules []lab.Rule
		for _, s := range scenes {
			for _, who := range []string{"musl", "probe"} { // Times are counted for each
				for _, r := range s.rules[i] {
					r.Name = who + "." + s.name + ".test."
					rules = append(rules, r)
				}
			}
		}
		s, err := l.AddServer(rules...)
		if err != nil {
			t.Fatal(err)
		}
		s.Record(true)
		servers[i] = s
	}
	nameservers := func(s scene) []netip.Addr {
		switch {
		case s.both:
			return []netip.Addr{servers[0].Addr4, servers[1].Addr4}
		case s.six:
			return []netip.Addr{servers[0].Addr6}
		default:
			return []netip.Addr{servers[0].Addr4}
		}
	}
	results := make([][]Result, len(scenes))
	var all errgroup.Group
	for i, s := range scenes {
		pod, err := l.AddPod(lab.PodConfig{Name: s.name, Nameservers: nameservers(s)})
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() error {
			_, err := pod.Resolve(t.Context(), lab.MuslStatic, 1, "musl."+s.name+".test.")
			return err
		})
		probe := fromPod(t, pod, nameservers(s)...)
		all.Go(func() error {
			results[i] = probe.Ask(t.Context(), "probe."+s.name+".TEST")
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			for n, server := range servers {
				musl, err := asked(server, "musl."+s.name+".test.")
				if err != nil {
					t.Error(err)
				}
				mine, err := asked(server, "probe."+s.name+".test.")
				if err != nil {
					t.Error(err)
				}
				t.Logf("server %d was asked by musl %v", n+1, musl)
				if diff := cmp.Diff(musl, mine); diff != "" {
					t.Errorf("server %d was asked (-musl +probe):\n%s", n+1, diff)
				}
			}
			if diff := cmp.Diff(s.want, summary(results[i], nameservers(s))); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		})
	}
}

// asked are the questions for a name that a server got, as "A", and "A @2.5s"
// for those that came in the round of the retry, give or take the second for which
// client or server may stand still: TestExchangeAsksAgain is about the exact time. It is an
// error when they don't come from one port, with one id for each type.
func asked(s *lab.Server, name string) ([]string, error) {
	var out []string
	ids, from := map[uint16]uint16{}, netip.AddrPort{}
	var start time.Time
	for _, q := range s.Recorded() {
		if q.Name != name || q.TCP { // TCP: musl from 1.2.4, after a truncated answer
			continue
		}
		if start.IsZero() {
			start, from = q.Arrived, q.Client
		}
		if id, ok := ids[q.Type]; ok && id != q.ID || from != q.Client {
			return nil, fmt.Errorf("%s: a question from %v with id %d after one from %v with id %d", name, q.Client, q.ID, from, id)
		}
		ids[q.Type] = q.ID
		text := dns.TypeToString[q.Type]
		switch d := q.Arrived.Sub(start); {
		case d < retry/2:
		case d > retry-1100*time.Millisecond && d < retry+1500*time.Millisecond:
			text += " @2.5s"
		default:
			text += " @" + d.String()
		}
		out = append(out, text)
	}
	if len(ids) == 2 && ids[dns.TypeA] == ids[dns.TypeAAAA] {
		return nil, fmt.Errorf("%s: A and AAAA have one id", name)
	}
	return out, nil
}

// summary is one line for each result, without what differs from run to run.
func summary(results []Result, nameservers []netip.Addr) []string {
	var out []string
	for _, r := range results {
		line := fmt.Sprintf("%s %d: %s", dns.TypeToString[r.Type], 1+slices.Index(nameservers, r.Nameserver.Addr()), r.Outcome)
		if r.Accepted {
			line += " accepted"
		}
		line += fmt.Sprintf(" x%d", r.Attempts)
		if r.Truncated {
			line += " truncated"
		}
		if r.Stray.IsValid() {
			line += " stray"
		}
		if r.Err != nil {
			line += " " + r.Err.Error()
		}
		out = append(out, line)
	}
	return out
}

// A collision whose loser's answer comes too late: the probe is hit as musl is,
// and sees the answer that came from an address it never asked.
func TestSeesTheOrphan(t *testing.T) {
	l := lab.ForTest(t)
	// Only the first questions have to wait: the retry is answered at once, and long before the
	// probe gives up.
	rules := []lab.Rule{{Name: "*", Times: 1, Addrs: answer, Delay: 1200 * time.Millisecond}, {Name: "*", Addrs: answer}}
	var servers []*lab.Server
	var backends []netip.Addr
	for range 2 {
		s, err := l.AddServer()
		if err != nil {
			t.Fatal(err)
		}
		servers, backends = append(servers, s), append(backends, s.Addr4)
	}
	service := netip.MustParseAddr("10.96.0.10")
	if err := l.AddService(service, lab.Alternate, backends...); err != nil {
		t.Fatal(err)
	}
	h, err := l.Hold(2, 250*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := l.AddPod(lab.PodConfig{Name: "canary"})
	if err != nil {
		t.Fatal(err)
	}
	probe := fromPod(t, pod, service)
	var results []Result
	for h.Full() == 0 { // the questions of a probe that stands still between them do not collide
		for _, s := range servers {
			s.SetRules(rules...)
		}
		results = probe.Ask(t.Context(), "a.test")
	}
	lost := 0
	for _, r := range results {
		if !r.Stray.IsValid() {
			if r.Attempts != 1 || r.Took > 2400*time.Millisecond {
				t.Errorf("the other one: %+v", r)
			}
			continue
		}
		lost++
		if !slices.Contains(backends, r.Stray.Addr()) || r.Attempts != 2 || !r.Accepted || r.Took < retry || r.Took > 4800*time.Millisecond {
			t.Errorf("the orphan: %+v", r)
		}
	}
	if lost != 1 {
		t.Errorf("%d of two questions were hit: %+v", lost, results)
	}
}

// What cannot be sent is told, and an end of the context ends the lookup.
func TestAskWithoutANetwork(t *testing.T) {
	l := lab.ForTest(t)
	pod, err := l.AddPod(lab.PodConfig{Name: "canary"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	probe := fromPod(t, pod, netip.MustParseAddr("192.0.2.53"))
	probe.listen = func(network string) (conn *net.UDPConn, err error) {
		err = pod.Do(func() error { // from the loopback's address nothing can leave
			conn, err = net.ListenUDP(network, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			return err
		})
		return conn, err
	}
	begin := time.Now()
	results := probe.Ask(ctx, "a.test")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if len(results) != 2 {
		t.Fatalf("results %+v", results)
	}
	for _, r := range results {
		if r.Outcome != Timeout || r.Attempts != 0 || !errors.Is(r.Err, unix.EINVAL) {
			t.Errorf("result %+v", r)
		}
	}
}
