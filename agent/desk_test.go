package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

var runner = workload.Workload{Namespace: "ci", Pod: "runner", Container: "helper"}

// newTestDesk is a desk with a lookup sensor and a runtime that knows pods.
func newTestDesk(pods map[netip.Addr]workload.Workload) (*desk, *fakeFinder) {
	f := &fakeFinder{pods: pods}
	m := newMetrics(prometheus.NewRegistry(), true, readers{}, slog.New(slog.DiscardHandler))
	return newDesk(true, f, m, newReporter(slog.New(slog.DiscardHandler)), &history{}, newBoard()), f
}

// lost is a lookup of the runner that the retry saved.
func lost(at time.Time) lookup.Lookup {
	return lookup.Lookup{
		Client: lookup.Client{Addr: original.Source, LinkName: "cali1"}, Nameserver: original.Destination,
		Name: "git.example.de.", Type: lookup.AAAA, Resolver: lookup.Musl,
		Start: at, End: at.Add(4 * time.Second), Outcome: lookup.NoError, TimedOut: true, Attempts: 2,
		Answers: []lookup.Answer{{Sight: lookup.Sight{At: at.Add(1500 * time.Millisecond), From: loser}}},
	}
}

// TestDeskJoins: what both sensors saw is one incident, of the pod.
func TestDeskJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := newTestDesk(map[netip.Addr]workload.Workload{original.Source.Addr(): runner})
		began := time.Now()
		d.event(lookup.Totals{Client: lookup.Client{Addr: netip.AddrPortFrom(original.Source.Addr(), 0)}, Resolver: lookup.Musl, At: began})
		pass(1500 * time.Millisecond)
		o := orphan()
		o.Time = time.Now()
		d.finding(o)
		pass(2500 * time.Millisecond)
		d.event(lost(began))
		if n := testutil.ToFloat64(d.metrics.timeouts.WithLabelValues("ci", "runner", "musl", "orphaned_answer")); n != 1 {
			t.Errorf("%v timeouts, want one", n)
		}
		d.event(lookup.Totals{Client: lookup.Client{Host: true}, At: time.Now(), Lookups: []lookup.Count{{Outcome: lookup.NoError, N: 3}, {Outcome: lookup.Timeout, N: 1}}})
		if h := newHourView(d.board.minutes.hour(time.Now())); h.Lookups != 4 || h.Lost != 1 || h.Failed != 0 {
			t.Errorf("the hour has %d lookups, %d lost, %d failed, want 4, 1, 0", h.Lookups, h.Lost, h.Failed)
		}
		if n := testutil.ToFloat64(d.metrics.collisions.WithLabelValues("ci", "runner", "musl", "orphaned")); n != 1 {
			t.Errorf("%v collisions, want one", n)
		}
		if n := len(d.history.ring); n != 1 || d.history.ring[0].Workload.Container != "helper" {
			t.Errorf("history %+v", d.history.ring)
		}
	})
}

// TestDeskWaitsForTheName: the first totals of a new pod come before the
// runtime shows it; those of what nobody knows are counted all the same.
func TestDeskWaitsForTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newTestDesk(map[netip.Addr]workload.Workload{})
		totals := func(client string) lookup.Totals {
			return lookup.Totals{
				Client: lookup.Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(client), 0)}, Resolver: lookup.Musl, At: time.Now(),
				Lookups: []lookup.Count{{Type: lookup.A, Outcome: lookup.NoError, N: 1}},
			}
		}
		counted := func(namespace string, want float64) {
			t.Helper()
			if n := testutil.ToFloat64(d.metrics.lookups.WithLabelValues(namespace, "musl", "A", "noerror")); n != want {
				t.Errorf("%v lookups in namespace %q, want %v", n, namespace, want)
			}
		}
		d.event(totals("10.0.0.1"))
		d.event(totals("10.0.0.2"))
		pass(2 * time.Second)
		f.pods[netip.MustParseAddr("10.0.0.1")] = runner
		d.totalWaiting(time.Now())
		counted("ci", 1)
		counted("", 0)
		pass(totalWait)
		d.totalWaiting(time.Now())
		counted("", 1)

		d.event(totals("10.0.0.3"))
		d.finish()
		counted("", 2)
	})
}

// TestDeskLocates: a lookup that waits has its process looked for.
func TestDeskLocates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newTestDesk(nil)
		for range 3 * stalledQueue { // more than fit never block
			d.event(lookup.Stalled{Client: lookup.Client{Addr: original.Source}})
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.locate(ctx) }()
		synctest.Wait()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(f.located); n != stalledQueue || f.located[0] != original.Source {
			t.Errorf("%d lookups were located", n)
		}
	})
}

// TestDeskBounds: what strangers can make as much of as they like is bounded.
func TestDeskBounds(t *testing.T) {
	d, _ := newTestDesk(nil)
	now := time.Now()
	for i := range 3 * maxWaiting {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		d.event(lookup.Totals{Client: lookup.Client{Addr: netip.AddrPortFrom(addr, 0)}, Resolver: lookup.Musl, At: now, Seen: now})
	}
	if len(d.waiting) > maxWaiting || len(d.resolvers) > maxResolvers {
		t.Errorf("%d totals wait, %d resolvers are remembered", len(d.waiting), len(d.resolvers))
	}
}

// TestDeskSlow: a slow lookup has a line of its own, unless it is an incident.
func TestDeskSlow(t *testing.T) {
	d, _ := newTestDesk(nil)
	d.reporter.debug = true
	l := lost(time.Now())
	l.Slow = true
	d.event(l)
	if n := len(d.reporter.queue); n != 1 {
		t.Errorf("%d lines about an incident, want its own", n)
	}
	l.TimedOut, l.Attempts = false, 1
	d.event(l)
	if n := len(d.reporter.queue); n != 2 {
		t.Errorf("%d lines, want one more about a slow lookup", n)
	}
}

func TestDeskSlowFlows(t *testing.T) {
	d, _ := newTestDesk(nil)
	slow := conntrack.SlowFlow{Original: original, Witness: conntrack.AfterDrop}
	d.finding(slow)
	if n := len(d.reporter.queue); n != 0 {
		t.Errorf("%d lines about what the lookups tell better", n)
	}
	d.watching = false
	d.finding(slow)
	if n := len(d.reporter.queue); n != 1 {
		t.Errorf("%d lines without a lookup sensor, want one", n)
	}
}

func TestHistory(t *testing.T) { synctest.Test(t, testHistory) }

func testHistory(t *testing.T) {
	h := &history{}
	now := time.Now()
	for i := range historyLength + 10 {
		in := incident.Incident{
			Time: now.Add(time.Duration(i-historyLength-9) * time.Second), Cause: incident.SlowAnswer, Evidence: "seen", Remedy: "do",
			Workload: workload.Workload{Namespace: "ci", Pod: "a"}, Client: original.Source, Waited: 1500 * time.Millisecond, WaitedExact: true,
		}
		if i%2 == 0 {
			in.Cause, in.Workload.Pod, in.Workload.Namespace = incident.Truncated, "b", "prod"
		}
		h.add(in)
	}
	ask := func(query string) (status int, incidents []map[string]any) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/api/v1/incidents?"+query, nil))
		var page struct{ Incidents []map[string]any }
		if w.Code == 200 {
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || page.Incidents == nil {
				t.Fatalf("%s gives %s (%v)", query, w.Body, err)
			}
		}
		return w.Code, page.Incidents
	}
	count := func(query string, want int) {
		t.Helper()
		if status, all := ask(query); status != 200 || len(all) != want {
			t.Errorf("%q gives %d and %d incidents, want %d", query, status, len(all), want)
		}
	}
	count("", historyLength)
	count("pod=a", historyLength/2)
	count("pod=ci/a", historyLength/2)
	count("pod=prod/a", 0)
	count("namespace=prod", historyLength/2)
	count("cause=slow_answer", historyLength/2)
	count("cause=unknown", 0)
	count("since=4s500ms", 5)
	count("until=10s&since=13s500ms", 4)
	count("since="+url.QueryEscape(now.Add(-90*time.Second).Format(time.RFC3339)), 91)
	for _, bad := range []string{"cause=bad_luck", "since=yesterday", "until=", "color=red"} {
		if status, _ := ask(bad); status != 400 {
			t.Errorf("%q gives %d, want 400", bad, status)
		}
	}
	_, all := ask("pod=a")
	newest := all[0]
	if at, err := time.Parse(time.RFC3339Nano, newest["time"].(string)); err != nil || !at.Equal(now.Round(0)) {
		t.Errorf("the first is of %v, want the newest of %v", newest["time"], now)
	}
	delete(newest, "time")
	want := map[string]any{
		"cause": "slow_answer", "namespace": "ci", "pod": "a", "client": "10.244.1.2:41000", "waited_seconds": 1.5, "evidence": "seen", "remedy": "do",
	}
	if diff := cmp.Diff(want, newest); diff != "" {
		t.Errorf("incident (-want +got):\n%s", diff)
	}
}
