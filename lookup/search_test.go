package lookup

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// usualList is the search list of a pod.
var usualList = []string{"ci.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""}

// call makes a resolver's call: pairs for the names of a search list, with an
// rcode for each. It gives the time when it is over.
func (w *wire) call(at time.Duration, port uint16, base string, list []string, rcodes ...int) time.Duration {
	for i, rcode := range rcodes {
		a, aaaa := pairOf(base+list[i], port*7+uint16(i)*300, port+uint16(i))
		w.sends(at, a)
		w.sends(at+time.Millisecond/2, aaaa)
		w.answers(at+2*ms, a, rcode)
		w.answers(at+3*ms, aaaa, rcode)
		at += 4 * ms
	}
	return at
}

func TestSearch(t *testing.T) {
	const nx, ok = dns.RcodeNameError, dns.RcodeSuccess
	nodata := func(w *wire, at time.Duration, a, aaaa ask) {
		w.sends(at, a)
		w.sends(at+ms/2, aaaa)
		for i, q := range []ask{a, aaaa} {
			m := q.reply(ok)
			m.Answer = nil
			w.gets(at+time.Duration(2+i)*ms, q, m)
		}
	}
	tests := []struct {
		name   string
		script func(w *wire)
		wasted uint64
		worst  int
		who    string
		want   []string
	}{
		{
			name:   "a name outside of the cluster",
			script: func(w *wire) { w.call(0, 40000, "git.example.de.", usualList, nx, nx, nx, ok) },
			wasted: 6, worst: 6, who: "git.example.de.",
		},
		{
			name:   "a service of another namespace",
			script: func(w *wire) { w.call(0, 40000, "registry.infra.", usualList, nx, ok) },
			wasted: 2, worst: 2, who: "registry.infra.svc.cluster.local.",
		},
		{
			name:   "a name that does not exist anywhere",
			script: func(w *wire) { w.call(0, 40000, "nowhere.example.de.", usualList, nx, nx, nx, nx) },
		},
		{
			name: "several processes at once",
			script: func(w *wire) {
				for i, suffix := range usualList {
					for p := range uint16(4) {
						rcode := nx
						if i == 3 {
							rcode = ok
						}
						w.call(time.Duration(i)*50*ms+time.Duration(p)*5*ms, 40000+p*100+uint16(i), fmt.Sprintf("h%d.example.de.", p),
							[]string{suffix}, rcode)
					}
				}
			},
			wasted: 24, worst: 6, who: "h0.example.de.",
		},
		{
			name: "two processes that ask the same at once",
			script: func(w *wire) {
				for i, suffix := range usualList {
					rcode := nx
					if i == 3 {
						rcode = ok
					}
					at := time.Duration(i) * 20 * ms
					a, aaaa := pairOf("git.example.de."+suffix, 1000+uint16(i), 40000+uint16(i))
					b, bbbb := pairOf("git.example.de."+suffix, 9000+uint16(i), 41000+uint16(i))
					for _, q := range []ask{a, b, aaaa, bbbb} {
						w.sends(at, q)
					}
					for _, q := range []ask{a, b, aaaa, bbbb} {
						w.answers(at+ms, q, rcode)
					}
				}
			},
			wasted: 12, worst: 6, who: "git.example.de.",
		},
		{
			name: "one name after the other is no search",
			script: func(w *wire) {
				w.call(0, 40000, "www.", []string{"a.de.", "b.de.", "c.de."}, nx, nx, ok)
			},
		},
		{
			name: "a list of strange suffixes is learned",
			script: func(w *wire) {
				list := []string{"corp.example.com.", "lab.example.org.", ""}
				for i := range 3 {
					w.call(time.Duration(i)*10*time.Second, 40000+uint16(i)*100, fmt.Sprintf("h%d.", i), list, nx, nx, ok)
				}
			},
			wasted: 2 + 4 + 4, worst: 4, who: "h1.",
		},
		{
			name: "NODATA stops musl",
			script: func(w *wire) {
				at := w.call(0, 40000, "git.example.de.", usualList, nx)
				a, aaaa := pairOf("git.example.de.svc.cluster.local.", 5, 40001)
				nodata(w, at, a, aaaa)
			},
			want: []string{"A git.example.de.svc.cluster.local. musl nodata 4ms+2ms x1 asked=1 left=1 entered=0 nodata@6ms pair=AAAA:nodata:3ms " +
				"after=git.example.de.ci.svc.cluster.local.:nxdomain:nxdomain"},
		},
		{
			name: "NODATA does not stop glibc",
			script: func(w *wire) {
				a, aaaa := pairOf("git.example.de.svc.cluster.local.", 5, 40001)
				aaaa.id = a.id + 30000
				nodata(w, 0, a, aaaa)
				next, nextAAAA := pairOf("git.example.de.cluster.local.", 500, 40002)
				nextAAAA.id = next.id + 20000
				w.sends(5*ms, next)
				w.sends(6*ms, nextAAAA)
				w.answers(7*ms, next, ok)
				w.answers(8*ms, nextAAAA, ok)
			},
			wasted: 2, worst: 2, who: "git.example.de.cluster.local.",
			want: []string{"A git.example.de.svc.cluster.local. glibc nodata 0s+2ms x1 asked=1 left=1 entered=0 nodata@2ms pair=AAAA:nodata:3ms went_on"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWire(t, trackerConfig{})
			tt.script(w)
			w.until(w.clock.Sub(w.start) + 15*time.Second)
			if diff := cmp.Diff(tt.want, w.lookups()); diff != "" {
				t.Errorf("lookups (-want +got):\n%s", diff)
			}
			var wasted uint64
			var worst Totals
			for _, s := range w.sums() {
				wasted += s.Wasted
				if s.NameWasted > worst.NameWasted {
					worst = s
				}
			}
			if wasted != tt.wasted || worst.NameWasted != tt.worst || worst.Name != tt.who {
				t.Errorf("wasted %d, at most %d for %s; want %d, %d for %s", wasted, worst.NameWasted, worst.Name, tt.wasted, tt.worst, tt.who)
			}
			w.consistent()
		})
	}
}

func TestRelate(t *testing.T) {
	wireName := func(s string) []byte {
		b := make([]byte, maxName)
		n, err := dns.PackDomainName(s, b, 0, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}
	tests := []struct {
		before, name string
		want         relation
	}{
		{"git.de.ci.svc.cluster.local.", "git.de.svc.cluster.local.", follows},
		{"git.de.cluster.local.", "GIT.de.", follows},
		{"git.de.", "git.de.cluster.local.", follows},
		{"git.de.corp.example.com.", "git.de.example.org.", perhaps},
		{"git.de.", "hub.de.", unrelated},
		{"git.de.", "git.de.", unrelated},
		{"git.de.xsvc.local.", "git.de.svc.local.", perhaps},
		{".", "git.de.", unrelated},
		{"git.de.", ".", unrelated},
		{"a.b.", "a.", follows},
	}
	for _, tt := range tests {
		if got, _, _ := relate(wireName(tt.before), wireName(tt.name)); got != tt.want {
			t.Errorf("%s after %s: %d, want %d", tt.name, tt.before, got, tt.want)
		}
	}
}
