package lookup

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// libc makes the questions that a resolver makes, as captures show them.
type libc struct {
	random *rand.Rand
	shared uint16 // the counter of IPv4 identifications of sockets that are not connected
	port   uint16
	at     time.Duration
	v6     bool
}

func (l *libc) pair(r Resolver, name string) []ask {
	l.port++
	port := 32768 + l.port%28232
	a := ask{name: name, qtype: dns.TypeA, id: uint16(l.random.Uint32()), port: port, ident: uint16(l.random.Uint32())}
	aaaa := a
	aaaa.qtype = dns.TypeAAAA
	switch r {
	case Musl:
		apart := 70 + l.random.IntN(171)
		if l.random.IntN(200) == 0 { // it was interrupted in between
			apart = l.random.IntN(1 << 16)
		}
		aaaa.id = a.id + uint16(apart)
		l.shared += uint16(l.random.IntN(4))
		a.ident, aaaa.ident = l.shared, l.shared+1
		l.shared += 2
	case Glibc:
		aaaa.id, aaaa.ident = uint16(l.random.Uint32()), a.ident+1
	case Go:
		l.port++
		aaaa.id, aaaa.port, aaaa.ident = uint16(l.random.Uint32()), port+1, uint16(l.random.Uint32())
		a.edns, aaaa.edns = true, true
		if l.random.IntN(2) == 0 {
			a, aaaa = aaaa, a
		}
	}
	if l.v6 {
		a.ident, aaaa.ident = 0, 0
	}
	return []ask{a, aaaa}
}

// TestResolver asks a thousand lookups the way the resolvers ask, and counts
// those that are taken for another's.
func TestResolver(t *testing.T) {
	tests := []struct {
		name  string
		mix   []Resolver
		v6    bool
		wrong int // at most, of a thousand
	}{
		{name: "musl", mix: []Resolver{Musl}, wrong: 1},
		{name: "glibc", mix: []Resolver{Glibc}, wrong: 1},
		{name: "go", mix: []Resolver{Go}, wrong: 0},
		{name: "musl and glibc", mix: []Resolver{Musl, Glibc}, wrong: 1},
		{name: "glibc, seldom musl", mix: []Resolver{Glibc, Glibc, Glibc, Glibc, Glibc, Glibc, Glibc, Glibc, Glibc, Musl}, wrong: 2},
		{name: "musl and go", mix: []Resolver{Musl, Go}, wrong: 1},
		{name: "musl over IPv6", mix: []Resolver{Musl}, v6: true, wrong: 1},
		{name: "glibc over IPv6", mix: []Resolver{Glibc}, v6: true, wrong: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wrong, runs := 0, 20
			for seed := range runs {
				w := newWire(t, trackerConfig{slow: 1}) // every lookup is reported
				l := &libc{random: rand.New(rand.NewPCG(uint64(seed), 1)), v6: tt.v6}
				l.shared = uint16(l.random.Uint32())
				for n := range 500 {
					r := tt.mix[n%len(tt.mix)]
					l.at += 20 * ms
					for i, q := range l.pair(r, fmt.Sprintf("n%d.%s.", n, r)) {
						w.asks(l.at+time.Duration(i)*30*time.Microsecond, q)
						w.gets(l.at+2*ms+time.Duration(i)*30*time.Microsecond, q, q.reply(wholeAnswer))
					}
				}
				w.until(l.at + 3*time.Second)
				lookups := reported[Lookup](w)
				if len(lookups) != 1000 {
					t.Fatalf("%d lookups, want 1000", len(lookups))
				}
				for _, l := range lookups {
					if !strings.HasSuffix(l.Name, "."+string(l.Resolver)+".") {
						wrong++
						t.Log(seed, l.Name, l.Type, l.Resolver)
					}
				}
			}
			if mean := float64(wrong) / float64(runs); mean > float64(tt.wrong) {
				t.Errorf("%.1f of a thousand lookups were taken for another resolver's, want at most %d", mean, tt.wrong)
			}
		})
	}
}

func TestResolverOfLoneQuestions(t *testing.T) {
	w := newWire(t, trackerConfig{})
	l := &libc{random: rand.New(rand.NewPCG(1, 1))}
	lone := func(at time.Duration, a ask) {
		w.asks(at, a)
		w.gets(at+ms, a, a.reply(dns.RcodeServerFailure))
	}
	lone(0, ask{name: "first.de.", qtype: dns.TypeA, id: 1, port: 50000, ident: 9})
	for n := range 5 {
		for _, q := range l.pair(Glibc, "git.example.de.") {
			at := time.Second + time.Duration(n)*50*ms
			w.asks(at, q)
			w.gets(at+2*ms, q, q.reply(wholeAnswer))
		}
	}
	w.until(4 * time.Second)
	lone(5*time.Second, ask{name: "second.de.", qtype: dns.TypeA, id: 2, port: 50001, ident: 99})
	// A forwarder asks many names from one socket.
	for n := range 6 {
		lone(10*time.Second+time.Duration(n)*ms*10, ask{name: fmt.Sprintf("f%d.de.", n), qtype: dns.TypeA, id: uint16(n), port: 50002, ident: 99})
	}
	w.until(20 * time.Second)
	got := map[string]Resolver{}
	for _, l := range reported[Lookup](w) {
		got[l.Name] = l.Resolver
	}
	// The first one was reported when the pairs after it had told.
	for name, want := range map[string]Resolver{"first.de.": Glibc, "second.de.": Glibc, "f5.de.": Other} {
		if got[name] != want {
			t.Errorf("%s was asked by %q, want %q", name, got[name], want)
		}
	}
}

// TestMuslRetry: a call whose ids were far apart, because its thread was
// interrupted between them, is musl's all the same when it asks again as musl.
func TestMuslRetry(t *testing.T) {
	for after, want := range map[time.Duration]Resolver{2503 * time.Millisecond: Musl, 5003 * time.Millisecond: Glibc} {
		w := newWire(t, trackerConfig{})
		a, aaaa := pairOf("git.example.de.", 1, 40000)
		aaaa.id = 30000
		w.sends(0, a)
		w.sends(20*time.Microsecond, aaaa)
		w.answers(time.Millisecond, a, dns.RcodeSuccess)
		w.sends(after, aaaa)
		w.until(30 * time.Second)
		l := reported[Lookup](w)[0]
		if l.Resolver != want || l.Type != AAAA {
			t.Errorf("asked again after %v: %s of %s, want %s", after, l.Type, l.Resolver, want)
		}
	}
}
