package lookup

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Clients that ask at the same time keep their pairs apart: an IPv4-only name
// is no incident.
func TestPairsOfManyClients(t *testing.T) {
	w := newWire(t, trackerConfig{})
	at := time.Duration(0)
	for round := range uint16(4000) {
		var calls [8][2]ask
		for i := range calls {
			a, aaaa := pairOf("four.data.svc.cluster.local.", round, uint16(20000+rand.IntN(30000)))
			a.from = netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)})
			aaaa.from = a.from
			calls[i] = [2]ask{a, aaaa}
		}
		at += 20 * time.Millisecond
		for half := range 2 {
			for i := range calls {
				w.sends(at+time.Duration(half*100+i)*time.Microsecond, calls[i][half])
			}
		}
		for i := range calls {
			w.answers(at+time.Millisecond, calls[i][0], wholeAnswer)
			m := calls[i][1].reply(wholeAnswer)
			m.Answer = nil
			w.enters(at+2*time.Millisecond, calls[i][1], m)
			w.gets(at+2*time.Millisecond, calls[i][1], m)
		}
	}
	w.until(at + 20*time.Second)
	for _, l := range reported[Lookup](w) {
		t.Errorf("reported of healthy traffic: %s %s pair=%v", l.Name, l.Outcome, l.Pair)
	}
}

// Totals say when the lookups were, not when they were summed up: by then the
// address may be another pod's.
func TestTimeOfTotals(t *testing.T) {
	w := newWire(t, trackerConfig{})
	a, aaaa := pairOf("fails.test.", 1, 40000)
	w.sends(0, a)
	w.sends(time.Millisecond, aaaa)
	w.answers(5*time.Millisecond, a, dns.RcodeServerFailure)
	w.answers(5*time.Millisecond, aaaa, dns.RcodeServerFailure)
	w.until(10 * time.Second)
	for _, s := range reported[Totals](w) {
		if late := s.Seen.Sub(w.start.Add(5 * time.Millisecond)); late > time.Second {
			t.Errorf("the totals' time is %v after the client's last packet", late)
		}
	}
}
