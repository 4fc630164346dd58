package lookup

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const ms = time.Millisecond

func TestLookups(t *testing.T) {
	a, aaaa := pairOf("git.example.de.", 1000, 40000)
	tests := []struct {
		name   string
		script func(w *wire)
		want   []string
	}{
		{
			name: "healthy",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.answers(6*ms, aaaa, wholeAnswer)
			},
		},
		{
			name: "a plain NXDOMAIN of both",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, dns.RcodeNameError)
				w.answers(6*ms, aaaa, dns.RcodeNameError)
			},
		},
		{
			name: "slow",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(1500*ms, a, wholeAnswer)
				w.answers(6*ms, aaaa, wholeAnswer)
			},
			want: []string{"A git.example.de. musl noerror slow 0s+1.5s x1 asked=1 left=1 entered=1 noerror@1.5s pair=AAAA:noerror:5ms"},
		},
		{
			name: "the answer was lost on the node, and musl asked again",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.enters(6*ms, aaaa, aaaa.reply(wholeAnswer))
				w.sends(2500*ms, aaaa)
				w.answers(2506*ms, aaaa, wholeAnswer)
			},
			want: []string{"AAAA git.example.de. musl noerror timed_out slow 1ms+2.505s x2 asked=2 left=2 entered=2 noerror@2.506s pair=A:noerror:5ms"},
		},
		{
			name: "an orphaned answer, from an address that was not asked",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.enters(1500*ms, aaaa, aaaa.reply(wholeAnswer))
				w.getsFrom(1501*ms, backendA, aaaa, aaaa.reply(wholeAnswer))
				w.sends(2500*ms, aaaa)
				w.answers(2506*ms, aaaa, wholeAnswer)
			},
			want: []string{"AAAA git.example.de. musl noerror timed_out slow 1ms+2.505s x2 asked=2 left=2 entered=2 !noerror@1.501s noerror@2.506s pair=A:noerror:5ms"},
		},
		{
			name: "the slow server answers the first question after the second was asked",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.sends(2500*ms, aaaa)
				w.answers(3000*ms, aaaa, wholeAnswer)
				w.answers(5400*ms, aaaa, wholeAnswer)
			},
			want: []string{"AAAA git.example.de. musl noerror timed_out slow 1ms+2.999s x2 asked=2 left=2 entered=2 noerror@3s noerror@5.4s pair=A:noerror:5ms"},
		},
		{
			name: "never answered, musl",
			script: func(w *wire) {
				w.sends(0, a)
				w.asks(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.asks(2500*ms, aaaa)
			},
			want: []string{"AAAA git.example.de. musl timeout timed_out 1ms+5s x2 asked=2 left=0 entered=0 pair=A:noerror:5ms"},
		},
		{
			name: "musl had given up when the answer came",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.sends(2500*ms, aaaa)
				w.answers(5200*ms, aaaa, wholeAnswer)
			},
			want: []string{"AAAA git.example.de. musl timeout timed_out 1ms+5s x2 asked=2 left=2 entered=1 noerror@5.2s pair=A:noerror:5ms"},
		},
		{
			name: "two nameservers at once are one attempt",
			script: func(w *wire) {
				second := a
				second.to, second.via = secondNS, backendB
				w.sends(0, a)
				w.sends(ms, second)
				w.sends(2500*ms, a)
				w.sends(2501*ms, second)
				w.answers(2510*ms, second, wholeAnswer)
				w.answers(2511*ms, a, wholeAnswer)
			},
			want: []string{"A git.example.de. musl noerror timed_out slow 0s+2.51s x2 asked=4 left=4 entered=2 noerror@2.51s noerror@2.511s"},
		},
		{
			name: "SERVFAIL, and musl's resends",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				for i := range 6 {
					at := time.Duration(10+10*i) * ms
					w.answers(at, aaaa, dns.RcodeServerFailure)
					if i < 5 {
						w.sends(at+ms, aaaa)
					}
				}
				w.sends(2560*ms, aaaa)
				w.answers(2570*ms, aaaa, dns.RcodeServerFailure)
			},
			want: []string{"AAAA git.example.de. musl servfail slow 1ms+2.569s x7 asked=7 left=7 entered=7 servfail@10ms servfail@20ms servfail@30ms servfail@40ms " +
				"servfail@50ms servfail@60ms servfail@2.57s pair=A:noerror:5ms"},
		},
		{
			name: "SERVFAIL, then an answer",
			script: func(w *wire) {
				w.sends(0, a)
				w.answers(5*ms, a, dns.RcodeServerFailure)
				w.sends(6*ms, a)
				w.answers(9*ms, a, wholeAnswer)
			},
		},
		{
			name: "glibc turns to the next nameserver from another socket",
			script: func(w *wire) {
				next := a
				next.to, next.via, next.port = secondNS, backendB, 40001
				w.sends(0, a)
				w.sends(5003*ms, next)
				w.answers(5010*ms, next, wholeAnswer)
				w.enters(5020*ms, a, a.reply(wholeAnswer))
			},
			want: []string{"A git.example.de. other noerror timed_out slow 0s+5.01s x2 asked=2 left=2 entered=2 noerror@5.01s"},
		},
		{
			// As glibc 2.36 does it for a name of one family: by RES_DFLRETRY, twice.
			name: "glibc asks its only nameserver again after a failure, from another socket",
			script: func(w *wire) {
				next := a
				next.port = 40001
				for i, q := range []ask{a, next} {
					at := time.Duration(i) * 2 * ms
					w.sends(at, q)
					w.answers(at+ms, q, dns.RcodeServerFailure)
				}
			},
			want: []string{"A git.example.de. other servfail 0s+3ms x2 asked=2 left=2 entered=2 servfail@1ms servfail@3ms"},
		},
		{
			name: "two calls that fail have the same id by chance",
			script: func(w *wire) {
				next := a
				next.port = 40001
				for i, q := range []ask{a, next} {
					at := time.Duration(i) * 10 * ms
					w.sends(at, q)
					w.answers(at+ms, q, dns.RcodeRefused)
				}
			},
			want: []string{
				"A git.example.de. other refused 10ms+1ms x1 asked=1 left=1 entered=1 refused@11ms",
				// Behind the node's NAT they cannot be told apart.
				"A git.example.de. other refused 0s+1ms x1 asked=1 left=2 entered=2 refused@1ms",
			},
		},
		{
			name: "Go asks again from another socket with another id",
			script: func(w *wire) {
				first := ask{name: "git.example.de.", qtype: dns.TypeA, id: 7, port: 40000, edns: true}
				again := ask{name: "git.example.de.", qtype: dns.TypeA, id: 8000, port: 40100, edns: true}
				w.sends(0, first)
				w.sends(5001*ms, again)
				w.answers(5010*ms, again, wholeAnswer)
			},
			want: []string{"A git.example.de. go noerror timed_out slow 0s+5.01s x2 asked=2 left=2 entered=1 noerror@5.01s"},
		},
		{
			name: "one family does not exist",
			script: func(w *wire) {
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.answers(5*ms, a, wholeAnswer)
				w.answers(6*ms, aaaa, dns.RcodeNameError)
			},
			want: []string{"AAAA git.example.de. musl nxdomain 1ms+5ms x1 asked=1 left=1 entered=1 nxdomain@6ms pair=A:noerror:5ms"},
		},
		{
			name: "no address of one family is usual",
			script: func(w *wire) {
				empty := aaaa.reply(wholeAnswer)
				empty.Answer = nil
				w.sends(0, a)
				w.sends(ms, aaaa)
				w.gets(4*ms, aaaa, empty)
				w.answers(5*ms, a, wholeAnswer)
			},
		},
		{
			name: "no address of either family",
			script: func(w *wire) {
				for _, q := range []ask{a, aaaa} {
					m := q.reply(wholeAnswer)
					m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "x.example.de."}}
					w.sends(0, q)
					w.gets(5*ms, q, m)
				}
			},
			want: []string{"A git.example.de. musl nodata 0s+5ms x1 asked=1 left=1 entered=0 nodata@5ms pair=AAAA:nodata:5ms"},
		},
		{
			name: "truncated, and no TCP",
			script: func(w *wire) {
				m := a.reply(wholeAnswer)
				m.Truncated = true
				w.sends(0, a)
				w.gets(5*ms, a, m)
			},
			want: []string{"A git.example.de. other noerror truncated 0s+5ms x1 asked=1 left=1 entered=0 noerror@5ms"},
		},
		{
			name: "truncated, then TCP",
			script: func(w *wire) {
				m := a.reply(wholeAnswer)
				m.Truncated = true
				w.sends(0, a)
				w.gets(5*ms, a, m)
				w.packet(&packet{at: w.start.Add(6 * ms).UnixNano(), link: podLink, kind: connect,
					src: endpoint{addr: addrOf(podAddr), port: 50000}, dst: endpointOf(serviceNS)})
			},
			want: []string{"A git.example.de. other noerror truncated tcp 0s+5ms x1 asked=1 left=1 entered=0 noerror@5ms"},
		},
		{
			name: "an answer to another question does not end it",
			script: func(w *wire) {
				other := a
				other.name = "other.example.de."
				w.sends(0, a)
				w.gets(5*ms, a, other.reply(wholeAnswer))
			},
			want: []string{"A git.example.de. other timeout timed_out 0s+5s x1 asked=1 left=1 entered=0"},
		},
		{
			name: "unreachable, with the question as it was translated",
			script: func(w *wire) {
				b, err := a.message().Pack()
				if err != nil {
					w.t.Fatal(err)
				}
				w.sends(0, a)
				w.packet(&packet{at: w.start.Add(2 * ms).UnixNano(), link: uplinkLink, kind: unreachable, from: addrOf(backendA.Addr()),
					src: endpoint{addr: addrOf(nodeAddr), port: 1234}, dst: endpointOf(backendA), message: b})
				w.packet(&packet{at: w.start.Add(3 * ms).UnixNano(), link: podLink, egress: true, kind: unreachable, from: addrOf(backendA.Addr()),
					src: endpoint{addr: addrOf(podAddr), port: a.port}, dst: endpointOf(serviceNS), message: b[:2]})
			},
			want: []string{"A git.example.de. other timeout timed_out 0s+5s x1 asked=1 left=1 entered=0 unreachable:10.244.3.2@eth0 unreachable:10.244.3.2@cali1"},
		},
		{
			name: "the node itself asks",
			script: func(w *wire) {
				q := ask{name: "git.example.de.", qtype: dns.TypeA, id: 5, port: 40000, from: nodeAddr, to: upstreamNS, via: upstreamNS}
				w.leaves(0, q)
				w.leaves(5000*ms, q)
				w.enters(5010*ms, q, q.reply(wholeAnswer))
			},
			want: []string{"A git.example.de. other noerror timed_out slow host 0s+5.01s x2 asked=2 left=2 entered=1 noerror@5.01s"},
		},
		{
			name: "a server in the node's own network: no question leaves, and one is not answered",
			script: func(w *wire) {
				w.until(ms) // samples are taken from now on
				for n := range uint16(3) {
					q := ask{name: "git.example.de.", qtype: dns.TypeA, id: n, port: 41000 + n}
					w.asks(time.Duration(n+1)*100*ms, q)
					w.gets(time.Duration(n+1)*100*ms+5*ms, q, q.withDefaults().reply(wholeAnswer))
				}
				w.asks(time.Second, ask{name: "git.example.de.", qtype: dns.TypeA, id: 9, port: 42000})
			},
			want: []string{"A git.example.de. other timeout timed_out local_nameserver 1s+5s x1 asked=1 left=0 entered=0"},
		},
		{
			name: "the node asks itself: lo is seen once",
			script: func(w *wire) {
				q := ask{name: "git.example.de.", qtype: dns.TypeA, id: 5, port: 40000}.withDefaults()
				local := serviceNS
				for _, egress := range []bool{true, false} {
					w.pass(0, loLink, egress, q.clientOf(), local, 0, q.message())
				}
				for _, egress := range []bool{true, false} {
					w.pass(1200*ms, loLink, egress, local, q.clientOf(), 0, q.reply(wholeAnswer))
				}
			},
			want: []string{"A git.example.de. other noerror slow local_nameserver host 0s+1.2s x1 asked=1 left=0 entered=0 noerror@1.2s"},
		},
		{
			name: "a pod's question, masqueraded",
			script: func(w *wire) {
				masked := a
				masked.from, masked.port = nodeAddr, 61000
				w.asks(0, a)
				w.leaves(ms, masked)
				w.enters(1500*ms, masked, a.reply(wholeAnswer))
				w.gets(1501*ms, a, a.reply(wholeAnswer))
			},
			want: []string{"A git.example.de. other noerror slow 0s+1.501s x1 asked=1 left=1 entered=1 noerror@1.501s"},
		},
		{
			name: "a CoreDNS pod on the same node",
			script: func(w *wire) {
				from := a.withDefaults().clientOf()
				w.asks(0, a)
				w.pass(0, bridgeLink, true, from, backendA, 0, a.message())
				w.pass(0, dnsPodLink, true, from, backendA, 0, a.message())
				w.pass(1200*ms, dnsPodLink, false, backendA, from, 0, a.reply(wholeAnswer))
				w.gets(1201*ms, a, a.reply(wholeAnswer))
			},
			want: []string{"A git.example.de. other noerror slow 0s+1.201s x1 asked=1 left=1 entered=1 noerror@1.201s"},
		},
		{
			name: "another node's question to a CoreDNS pod here",
			script: func(w *wire) {
				stranger := netipPort("10.244.9.9:40000")
				w.pass(0, uplinkLink, false, stranger, backendA, 0, a.message())
				w.pass(0, dnsPodLink, true, stranger, backendA, 0, a.message())
			},
		},
		{
			name: "NodeLocal DNSCache",
			script: func(w *wire) {
				q := a
				q.to = netipPort("169.254.20.10:53")
				w.asks(0, q)
			},
			want: []string{"A git.example.de. other timeout timed_out local_nameserver 0s+5s x1 asked=1 left=0 entered=0"},
		},
		{
			name: "packets were lost meanwhile",
			script: func(w *wire) {
				w.sends(0, a)
				w.lost(w.start.Add(100*ms).UnixNano(), w.start.Add(200*ms).UnixNano())
			},
			want: []string{"A git.example.de. other timeout timed_out uncertain 0s+5s x1 asked=1 left=1 entered=0"},
		},
		{
			name: "the port and the id come back with another name",
			script: func(w *wire) {
				other := a
				other.name = "other.example.de."
				w.sends(0, a)
				w.answers(5*ms, a, wholeAnswer)
				w.sends(10*ms, other)
				w.answers(1300*ms, other, wholeAnswer)
			},
			want: []string{"A other.example.de. other noerror slow 10ms+1.29s x1 asked=1 left=1 entered=1 noerror@1.3s"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWire(t, trackerConfig{})
			tt.script(w)
			w.until(25 * time.Second)
			if diff := cmp.Diff(tt.want, w.lookups()); diff != "" {
				t.Errorf("lookups (-want +got):\n%s", diff)
			}
			w.consistent()
			if w.store.live != 0 || w.open != 0 {
				t.Errorf("%d entries and %d lookups are left", w.store.live, w.open)
			}
			if n := len(w.troubles) - 1 - len(w.freeTroubles); n != 0 {
				t.Errorf("the evidence of %d lookups is left", n)
			}
		})
	}
}
