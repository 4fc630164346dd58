package lookup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/internal/lab"
)

// The tests of this file let real resolvers ask in a node in a box, to see that
// what the tracker takes for granted about them is so. They need root.

// observed is a node with a sensor that runs.
type observed struct {
	*lab.Lab
	t      *testing.T
	mu     sync.Mutex
	events []Event
}

func observe(t *testing.T, cfg Config) *observed {
	t.Helper()
	o := &observed{Lab: lab.ForTest(t), t: t}
	var s *Sensor
	if err := o.Node().Do(func() (err error) {
		s, err = Open(cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Run(ctx, func(e Event) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.events = append(o.events, e)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
	return o
}

// server makes a DNS server behind a service address.
func (o *observed) server(addr string, rules ...lab.Rule) (*lab.Server, netip.Addr) {
	o.t.Helper()
	s, err := o.AddServer(rules...)
	if err != nil {
		o.t.Fatal(err)
	}
	service, to := netip.MustParseAddr(addr), s.Addr4
	if service.Is6() {
		to = s.Addr6
	}
	if err := o.AddService(service, lab.Random, to); err != nil {
		o.t.Fatal(err)
	}
	return s, service
}

func (o *observed) pod(name string, nameservers ...netip.Addr) *lab.Pod {
	o.t.Helper()
	p, err := o.AddPod(lab.PodConfig{Name: name, Nameservers: nameservers})
	if err != nil {
		o.t.Fatal(err)
	}
	return p
}

func (o *observed) resolve(p *lab.Pod, r lab.Resolver, names ...string) []lab.Answer {
	o.t.Helper()
	answers, err := p.Resolve(o.t.Context(), r, 1, names...)
	if err != nil {
		o.t.Fatal(err)
	}
	return answers
}

// lookups waits for n lookups, of these names if there are any, and gives them.
func (o *observed) lookups(n int, names ...string) []Lookup {
	o.t.Helper()
	var out []Lookup
	err := lab.Until(o.t.Context(), 20*time.Second, func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if out = out[:0]; len(o.events) > 0 {
			for _, e := range o.events {
				if l, ok := e.(Lookup); ok && (len(names) == 0 || slices.Contains(names, l.Name)) {
					out = append(out, l)
				}
			}
		}
		if len(out) < n {
			return fmt.Errorf("%d lookups, want %d", len(out), n)
		}
		return nil
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return out
}

var anyAddress = lab.Rule{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}

// TestRealResolvers: real resolvers are told apart, also in one pod, over IPv4
// and IPv6.
func TestRealResolvers(t *testing.T) {
	o := observe(t, Config{Slow: 1}) // every lookup is reported
	_, service4 := o.server("10.96.0.10", anyAddress)
	_, service6 := o.server("fd00:96::a", anyAddress)
	const rounds, calls = 5, 20
	want := 0
	for _, service := range []netip.Addr{service4, service6} {
		pods := map[string]*lab.Pod{}
		for _, name := range []string{"musl", "glibc", "go", "mixed"} {
			pods[name] = o.pod(fmt.Sprintf("%s-%d", name, service.BitLen()), service)
		}
		for round := range rounds {
			for name, r := range map[string]lab.Resolver{"musl": lab.MuslStatic, "glibc": lab.Glibc, "go": lab.Go} {
				var names []string
				for n := range calls {
					names = append(names, fmt.Sprintf("n%d-%d-%d.%s.test.", service.BitLen(), round, n, name))
				}
				o.resolve(pods[name], r, names...)
				if service.Is4() || r != lab.MuslStatic {
					// Over IPv6 a pod's few musl calls among many of glibc's
					// have nothing but their ids to go by.
					o.resolve(pods["mixed"], r, names...)
					want += 2 * calls
				}
				want += 2 * calls
			}
		}
	}
	wrong := map[string]int{}
	lookups := o.lookups(want)
	for _, l := range lookups {
		if labels := dns.SplitDomainName(l.Name); labels[1] != string(l.Resolver) {
			wrong[fmt.Sprintf("%s as %s by IPv%d", labels[1], l.Resolver, map[bool]int{true: 4, false: 6}[l.Client.Addr.Addr().Is4()])]++
		}
	}
	total := 0
	for _, n := range wrong {
		total += n
	}
	t.Logf("%d of %d lookups were taken for another resolver's: %v", total, len(lookups), wrong)
	// In every third run there is a call of two lookups or more of them; six calls are one run in 200,000.
	if len(lookups) != want || total > want/200 {
		t.Errorf("%d of %d lookups (want %d) were taken for another resolver's: %v", total, len(lookups), want, wrong)
	}
}

// TestRealRetries: what each resolver does when an answer is missing is one
// lookup that timed out.
func TestRealRetries(t *testing.T) {
	o := observe(t, Config{})
	_, one := o.server("10.96.0.10", anyAddress)
	tests := []struct {
		resolver lab.Resolver
		want     Resolver
		silent   bool // the first of two nameservers never answers
		sockets  int
	}{
		{resolver: lab.MuslStatic, want: Musl, sockets: 1},
		{resolver: lab.Glibc, want: Glibc, sockets: 1},
		{resolver: lab.Go, want: Go, sockets: 2},
		{resolver: lab.Glibc, want: Glibc, silent: true, sockets: 2},
		{resolver: lab.Go, want: Go, silent: true, sockets: 2},
	}
	const tries = 3
	names := make([]string, len(tests)) // of the try that counts
	var wg sync.WaitGroup
	for i, tt := range tests {
		name := func(try int) string { return fmt.Sprintf("lost%d-%d.test.", i, try) }
		var rules []lab.Rule
		for try := range tries {
			lost := lab.Rule{Name: name(try), Type: dns.TypeAAAA, Times: 1, Drop: true}
			if tt.silent {
				// glibc stays with a nameserver that answered one of the two.
				lost.Type, lost.Times = 0, 0
			}
			rules = append(rules, lost)
		}
		_, first := o.server(fmt.Sprintf("10.96.1.%d", i+1), append(rules, anyAddress)...)
		nameservers := []netip.Addr{first}
		if tt.silent {
			nameservers = append(nameservers, one)
		}
		p := o.pod(fmt.Sprintf("pod%d", i), nameservers...)
		// One in 128 of glibc's pairs looks like musl's, where nothing more is known of the pod.
		if _, err := p.Resolve(t.Context(), tt.resolver, 60, "warm.test"); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			// Go's retry is known by its time, after five seconds: where the client stands still
			// then it is not.
			for try := range tries {
				names[i] = name(try)
				answers, err := p.Resolve(t.Context(), tt.resolver, 1, strings.TrimSuffix(names[i], "."))
				if err != nil {
					t.Error(err)
					return
				}
				if tt.resolver != lab.Go || answers[0].Took < 5*time.Second+90*time.Millisecond {
					return
				}
				t.Logf("it proves nothing: %+v", answers)
			}
			t.Errorf("%s stood still each time", tt.resolver)
		})
	}
	wg.Wait()
	lookups := o.lookups(len(tests)+2, names...) // of the silent nameserver both types are lost
	for i, tt := range tests {
		var mine []Lookup
		for _, l := range lookups {
			if l.Name == names[i] && l.Type == AAAA {
				mine = append(mine, l)
			}
		}
		if len(mine) != 1 {
			t.Errorf("%s: %d lookups were reported: %+v", tt.resolver, len(mine), mine)
			continue
		}
		l := mine[0]
		var sockets []netip.AddrPort
		for _, s := range l.Asked {
			if !slices.Contains(sockets, s.From) {
				sockets = append(sockets, s.From)
			}
		}
		if l.Resolver != tt.want || !l.TimedOut || l.Outcome != NoError || l.Attempts != 2 || len(l.Asked) != 2 ||
			len(l.Left) != 2 || len(l.Entered) != 1 || len(sockets) != tt.sockets || l.Pair == nil || l.Uncertain {
			t.Errorf("%s: %+v from %d sockets", tt.resolver, l, len(sockets))
		}
	}
}
