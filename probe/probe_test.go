package probe

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefuses(t *testing.T) {
	_, err := New(Config{
		Names:       []string{"ok.example", "", "a..b"},
		Nameservers: []netip.AddrPort{{}},
		Interval:    -time.Second,
	})
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{`"" is no domain name`, `"a..b" is no domain name`, "is no address with a port", "interval -1s"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if _, err := New(Config{Names: []string{"a.test"}}); err == nil {
		t.Error("names without a nameserver were taken")
	}
}

// Each name is asked at every interval, first within one, never in step.
func TestRunKeepsTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config{Names: []string{"a.test", "B.test."}, Nameservers: addrPorts("192.0.2.1"), Interval: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		p.ask = func(ctx context.Context, name string) []Result {
			start := time.Now()
			rest(ctx, 5*time.Second)
			return []Result{{Name: name, Time: start}}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Minute)
		defer cancel()
		begin := time.Now()
		times := map[string][]time.Time{}
		if err := p.Run(ctx, func(r Result) { times[r.Name] = append(times[r.Name], r.Time) }); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a.test.", "b.test."} {
			at := times[name]
			if n := len(at); n < 90 || n > 112 {
				t.Fatalf("%s: asked %d times in 100 minutes", name, n)
			}
			if first := at[0].Sub(begin); first >= time.Minute {
				t.Errorf("%s: first asked after %v", name, first)
			}
			seen := map[time.Duration]bool{}
			for i := 1; i < len(at); i++ {
				d := at[i].Sub(at[i-1])
				if seen[d] = true; d < 54*time.Second || d > 66*time.Second+time.Millisecond {
					t.Errorf("%s: asked %v after the last time", name, d)
				}
			}
			if len(seen) < 50 {
				t.Errorf("%s: only %d different intervals", name, len(seen))
			}
		}
	})
}

// Without names nothing happens until the end; and a lookup that the end cut
// short is no timeout.
func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, names := range [][]string{nil, {"a.test"}} {
			p, err := New(Config{Names: names, Nameservers: addrPorts("192.0.2.1"), Interval: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			p.ask = func(ctx context.Context, name string) []Result {
				<-ctx.Done()
				return []Result{{Name: name, Outcome: Timeout}}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			begin := time.Now()
			if err := p.Run(ctx, func(r Result) { t.Errorf("emitted %+v", r) }); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took != time.Hour {
				t.Errorf("%v: ended after %v", names, took)
			}
		}
	})
}

// What no nameserver has answered is asked again after two and a half seconds, once,
// and five seconds are the end.
func TestExchangeAsksAgain(t *testing.T) {
	start := time.Unix(1000, 0)
	x, err := newExchange("a.test.", addrPorts("192.0.2.1", "192.0.2.2"), [2]uint16{7, 77})
	if err != nil {
		t.Fatal(err)
	}
	all := []packet{{0, 0}, {0, 1}, {1, 0}, {1, 1}}
	for _, step := range []struct {
		at   time.Duration
		want []packet
		over bool
	}{
		{0, all, false},
		{2500*time.Millisecond - 1, nil, false},
		{2500 * time.Millisecond, all, false},
		{5*time.Second - 1, nil, false},
		{5 * time.Second, nil, true},
	} {
		now := start.Add(step.at)
		got := x.due(now)
		for _, p := range got {
			x.sent(p, now, nil)
		}
		if diff := cmp.Diff(step.want, got, cmp.AllowUnexported(packet{})); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", step.at, diff)
		}
		if over := x.over(now); over != step.over {
			t.Errorf("after %v it is over: %v", step.at, over)
		}
	}
	if got := x.until().Sub(start); got != 5*time.Second {
		t.Errorf("it waits until %v", got)
	}
}

// What is no answer to the question is no answer.
func TestExchangeIsParticular(t *testing.T) {
	ns := addrPorts("192.0.2.1", "192.0.2.2")
	start := time.Unix(1000, 0)
	reply := func(id uint16, name string, qtype uint16, rcode int, rr ...dns.RR) []byte {
		m := new(dns.Msg).SetQuestion(name, qtype)
		m.Id, m.Response, m.Rcode, m.Answer = id, true, rcode, rr
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a, err := dns.NewRR("a.test. 5 IN A 192.0.2.9")
	if err != nil {
		t.Fatal(err)
	}
	alias, err := dns.NewRR("a.test. 5 IN CNAME b.test.")
	if err != nil {
		t.Fatal(err)
	}
	query, err := new(dns.Msg).SetQuestion("a.test.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	query[0], query[1] = 0, 7
	tests := []struct {
		name string
		b    []byte
		from netip.AddrPort
		want Result // of A at the first nameserver
	}{
		{"an answer", reply(7, "a.test.", dns.TypeA, dns.RcodeSuccess, a), ns[0], Result{Outcome: "noerror", Accepted: true}},
		{"in another case", reply(7, "A.tesT.", dns.TypeA, dns.RcodeSuccess, a), ns[0], Result{Outcome: "noerror", Accepted: true}},
		{"an alias of nothing", reply(7, "a.test.", dns.TypeA, dns.RcodeSuccess, alias), ns[0], Result{Outcome: NoData, Accepted: true}},
		{"not found", reply(7, "a.test.", dns.TypeA, dns.RcodeNameError), ns[0], Result{Outcome: "nxdomain", Accepted: true}},
		{"refused is no answer to musl", reply(7, "a.test.", dns.TypeA, dns.RcodeRefused), ns[0], Result{Outcome: "refused"}},
		{"an rcode without a name", reply(7, "a.test.", dns.TypeA, 13), ns[0], Result{Outcome: "rcode_13"}},
		{"another id", reply(8, "a.test.", dns.TypeA, dns.RcodeSuccess, a), ns[0], Result{Outcome: Timeout}},
		{"another name", reply(7, "b.test.", dns.TypeA, dns.RcodeSuccess, a), ns[0], Result{Outcome: Timeout}},
		{"another type", reply(7, "a.test.", dns.TypeMX, dns.RcodeSuccess), ns[0], Result{Outcome: Timeout}},
		{"the question itself", query, ns[0], Result{Outcome: Timeout}},
		{"garbage", []byte("garbage"), ns[0], Result{Outcome: Timeout}},
		{"from an address that was not asked", reply(7, "a.test.", dns.TypeA, dns.RcodeSuccess, a), addrPorts("192.0.2.3")[0],
			Result{Outcome: Timeout, Stray: addrPorts("192.0.2.3")[0]}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			x, err := newExchange("a.test.", ns, [2]uint16{7, 77})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range x.due(start) {
				x.sent(p, start, nil)
			}
			x.answer(tc.b, tc.from, start.Add(time.Millisecond))
			tc.want.Name, tc.want.Type, tc.want.Nameserver, tc.want.Time, tc.want.Attempts = "a.test.", dns.TypeA, ns[0], start, 1
			if tc.want.Took = time.Millisecond; tc.want.Outcome == Timeout {
				tc.want.Took = time.Second
			}
			if diff := cmp.Diff(tc.want, x.results(start.Add(time.Second))[0], byValue); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever comes, and from wherever: what was asked stays in its bounds.
func FuzzAnswer(f *testing.F) {
	good, err := new(dns.Msg).SetQuestion("a.test.", dns.TypeAAAA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	good[0], good[1], good[2] = 0, 77, good[2]|0x80
	servfail := append([]byte(nil), good...)
	servfail[3] |= dns.RcodeServerFailure
	f.Add(good, true, 1)
	f.Add(servfail, true, 9)
	f.Add(good[:11], false, 1)
	f.Fuzz(func(t *testing.T, b []byte, asked bool, times int) {
		ns := addrPorts("192.0.2.1")
		x, err := newExchange("a.test.", ns, [2]uint16{7, 77})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1000, 0)
		for _, p := range x.due(now) {
			x.sent(p, now, nil)
		}
		from := ns[0]
		if !asked {
			from = addrPorts("192.0.2.2")[0]
		}
		again := 0
		for range min(max(times, 0), 20) {
			if _, ok := x.answer(b, from, now); ok {
				again++
			}
		}
		if again > 4 {
			t.Errorf("asked again %d times at once", again)
		}
		for _, r := range x.results(now) {
			if r.Outcome == "" || r.Accepted && (!asked || r.Outcome == Timeout || r.Outcome == "servfail") {
				t.Errorf("%+v", r)
			}
		}
	})
}
