package lookup

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzTracker gives the tracker packets, times and mishaps as the input says.
// Whatever comes, every lookup that began is accounted for once, nothing grows
// beyond its bound, and in the end nothing is left.
func FuzzTracker(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 3, 3, 3, 0, 0})
	f.Add([]byte{0, 1, 2, 3, 200, 0, 1, 2, 3, 250, 4, 1, 2, 3, 255, 5, 9, 9, 9, 9, 6, 0, 0, 0, 0, 7, 1, 1, 1, 1})
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x10\x00\x01\x08\x00\x00\x05\x01\x08\x00\x10\x05\xff\x00\x00\x00\x00\xff\x0b\x00\x00\x00\xff\x0a00000"))
	names := []string{"git.example.de.ci.svc.cluster.local.", "git.example.de.svc.cluster.local.", "git.example.de.cluster.local.", "git.example.de.",
		"a-name-that-is-quite-long-and-does-not-fit.into-an-entry.without-a-block.of-its-own.example.de."}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeA, dns.TypeAAAA, dns.TypePTR}
	rcodes := []int{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused}
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWire(t, trackerConfig{pending: 40})
		w.emit = func(e Event) {
			if l, ok := e.(Lookup); ok && (l.Attempts < 1 || len(l.Asked) > MaxSights || l.End.Before(l.Start)) {
				t.Fatalf("%+v", l)
			}
		}
		at := time.Duration(0)
		if len(script) > 5*400 {
			script = script[:5*400]
		}
		for ; len(script) >= 5; script = script[5:] {
			what, who, which, how, pause := script[0], script[1], script[2], script[3], script[4]
			at += time.Duration(pause) * time.Duration(pause) * 50 * time.Microsecond
			w.until(at)
			q := ask{
				name: names[int(which)%len(names)], qtype: types[int(which)/8%len(types)], id: uint16(who) % 7, port: 40000 + uint16(who)/16,
				edns: how&0x40 != 0, ident: uint16(who) * uint16(how),
			}
			if how&0x20 != 0 {
				q.to, q.via = secondNS, backendB
			}
			if how&0x10 != 0 {
				q.from = nodeAddr
			}
			m := q.reply(rcodes[int(how)%len(rcodes)])
			m.Truncated = how&0x80 != 0
			switch what % 16 {
			default:
				w.sends(at, q)
			case 1:
				w.asks(at, q)
			case 2:
				w.leaves(at, q)
			case 3:
				w.enters(at, q, m)
			case 4:
				w.gets(at, q, m)
			case 5:
				w.getsFrom(at, backendB, q, m)
			case 6, 7:
				w.enters(at, q, m)
				w.gets(at, q, m)
			case 8, 9:
				b, err := q.message().Pack()
				if err != nil {
					t.Fatal(err)
				}
				if what%16 == 8 {
					b = b[:int(which)%len(b)]
				}
				w.packet(&packet{at: w.start.Add(at).UnixNano(), link: uplinkLink, kind: unreachable, src: endpointOf(q.withDefaults().clientOf()),
					dst: endpointOf(q.withDefaults().to), message: b})
			case 10:
				w.packet(&packet{at: w.start.Add(at).UnixNano(), link: podLink, kind: connect, src: endpointOf(q.withDefaults().clientOf()),
					dst: endpointOf(q.withDefaults().to)})
			case 11:
				w.lost(w.start.Add(at-time.Second).UnixNano(), w.start.Add(at).UnixNano())
			case 12:
				w.start, w.clock = w.start.Add(time.Duration(int8(how))*time.Second), w.clock.Add(time.Duration(int8(how))*time.Second)
			case 13:
				links := []link{{uplinkLink, "eth0", uplink}, {podLink, "cali1", client}}
				w.links(links[:int(how)%3], map[addr]struct{}{addrOf(nodeAddr): {}})
			case 14:
				w.packet(&packet{at: w.start.Add(at).UnixNano(), link: podLink, egress: how&1 != 0, src: endpointOf(q.withDefaults().clientOf()),
					dst: endpointOf(q.withDefaults().to), message: script})
			case 15:
				if until := w.start.Add(at - time.Duration(how)*4*time.Millisecond).UnixNano(); !w.needs(until) {
					w.skipped(until)
				}
			}
			w.consistent()
			held := 0
			for _, i := range w.wheel.slots {
				for ; i != 0; i = w.store.at(i).later {
					held++
				}
			}
			if held != w.wheel.held {
				t.Fatalf("%d entries are in slots, it says %d", held, w.wheel.held)
			}
		}
		w.until(at + 3*time.Minute)
		w.consistent()
		if w.store.live != 0 || w.pending() != 0 || len(w.troubles)-1 != len(w.freeTroubles) {
			t.Fatalf("%d entries, %d lookups, the evidence of %d are left", w.store.live, w.pending(), len(w.troubles)-1-len(w.freeTroubles))
		}
		if w.askers.named != 0 {
			t.Fatalf("%d clients are left", w.askers.named)
		}
	})
}

// FuzzMessage parses anything.
func FuzzMessage(f *testing.F) {
	a, aaaa := pairOf("git.example.de.", 1, 1)
	for _, m := range []*dns.Msg{a.message(), a.reply(dns.RcodeSuccess), aaaa.reply(dns.RcodeSuccess), a.reply(dns.RcodeNameError)} {
		m.Compress = true
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q question
		if q.parse(b) != good {
			return
		}
		if q.sign(b); len(q.name) > maxName || q.end > len(b) {
			t.Fatalf("%+v", q)
		}
		r := q.outcome(b)
		var m dns.Msg
		if err := m.Unpack(b); err != nil || !q.counted || len(m.Question) != 1 || len(m.Answer) != int(binary.BigEndian.Uint16(b[6:])) {
			return
		}
		if got := present(q.name); dns.CountLabel(got) != dns.CountLabel(m.Question[0].Name) || m.Question[0].Qtype != q.qtype || m.Id != q.id {
			t.Fatalf("%q %d, want %+v", got, q.qtype, m.Question[0])
		}
		has := false
		for _, rr := range m.Answer {
			has = has || rr.Header().Rrtype == q.qtype
		}
		if m.Rcode == dns.RcodeSuccess && !m.Truncated && q.qtype != dns.TypeANY && has != (r == resultNoError) {
			t.Fatalf("result %d, has a record of the type: %v", r, has)
		}
	})
}
