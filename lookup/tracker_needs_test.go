package lookup

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// What was seen beyond the clients' links is needed as long as a lookup has no
// answer, or one that will be reported; else it may be skipped.
func TestNeeds(t *testing.T) {
	const asked = 10 * ms
	a, aaaa := pairOf("git.example.de.", 1, 40000)
	tests := []struct {
		name   string
		script func(w *wire)
		need   bool
	}{
		{"nothing asked", func(*wire) {}, false},
		{"answered", func(w *wire) { w.asks(asked, a); w.gets(asked+ms, a, a.reply(wholeAnswer)) }, false},
		{"a pair answered", func(w *wire) {
			w.asks(asked, a)
			w.asks(asked, aaaa)
			w.gets(asked+ms, a, a.reply(wholeAnswer))
			w.gets(asked+ms, aaaa, aaaa.reply(dns.RcodeSuccess))
		}, false},
		{"not answered", func(w *wire) { w.asks(asked, a) }, true},
		{"one of a pair not answered", func(w *wire) {
			w.asks(asked, a)
			w.asks(asked, aaaa)
			w.gets(asked+ms, a, a.reply(wholeAnswer))
		}, true},
		{"not answered, but began later", func(w *wire) { w.asks(asked+100*ms, a) }, false},
		{"an error", func(w *wire) { w.asks(asked, a); w.gets(asked+ms, a, a.reply(dns.RcodeServerFailure)) }, true},
		{"a name of one family does not exist", func(w *wire) {
			w.asks(asked, a)
			w.asks(asked, aaaa)
			w.gets(asked+ms, a, a.reply(wholeAnswer))
			w.gets(asked+ms, aaaa, aaaa.reply(dns.RcodeNameError))
		}, true},
		{"an answer from elsewhere", func(w *wire) { w.asks(asked+100*ms, a); w.getsFrom(asked+101*ms, backendB, a, a.reply(wholeAnswer)) }, true},
		{"not answered for long", func(w *wire) { w.asks(asked, a); w.until(3 * time.Second) }, true},
		{"given up and told", func(w *wire) { w.asks(asked, a); w.until(20 * time.Second) }, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			w := newWire(t, trackerConfig{})
			tc.script(w)
			if got := w.needs(w.start.Add(50 * ms).UnixNano()); got != tc.need {
				t.Errorf("needs: %v, want %v", got, tc.need)
			}
		})
	}
}

// What came too late for its turn counts, and what was skipped makes uncertain.
func TestSkipped(t *testing.T) {
	const asked = 500 * ms
	a, _ := pairOf("git.example.de.", 1, 40000)
	const timeout = "A git.example.de. other timeout timed_out "
	tests := []struct {
		name    string
		skipped time.Duration
		late    time.Duration // when its packet beyond the client's link is handed over; 0 for never
		want    string
	}{
		{"nothing skipped", 0, 0, timeout + "500ms+5s x1 asked=1 left=0 entered=0"},
		{"skipped before it began", asked - ms, 0, timeout + "500ms+5s x1 asked=1 left=0 entered=0"},
		{"skipped after it began", asked + ms, 0, timeout + "uncertain 500ms+5s x1 asked=1 left=0 entered=0"},
		{"not skipped, but late", asked - ms, asked + time.Duration(outOfOrder) - 10*ms, timeout + "500ms+5s x1 asked=1 left=1 entered=0"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			w := newWire(t, trackerConfig{})
			w.asks(asked, a)
			w.until(asked + 200*ms)
			if tc.skipped > 0 {
				w.skipped(w.start.Add(tc.skipped).UnixNano())
			}
			if tc.late > 0 {
				w.until(tc.late)
				// A packet of the node's own comes in time, before it.
				own := ask{name: "own.test.", qtype: dns.TypePTR, id: 77, port: 41000, from: nodeAddr, via: upstreamNS}
				w.leaves(tc.late, own)
				w.enters(tc.late, own, own.reply(wholeAnswer))
				clock := w.clock
				w.leaves(asked+10*time.Microsecond, a)
				w.clock = clock
			}
			w.until(20 * time.Second)
			if diff := cmp.Diff([]string{tc.want}, w.lookups()); diff != "" {
				t.Errorf("lookups (-want +got):\n%s", diff)
			}
		})
	}
}
