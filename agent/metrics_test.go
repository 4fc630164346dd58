package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
	"github.com/nodestead/nodestead/workload"
)

func newTestMetrics(from reader) (*prometheus.Registry, *metrics) {
	registry := prometheus.NewPedanticRegistry()
	registerCommon(registry, Version{"v1", "abc", "go1"})
	return registry, newMetrics(registry, true, readers{from, (&fakeLookups{}).Counters}, slog.New(slog.DiscardHandler))
}

func compare(t *testing.T, registry *prometheus.Registry, want string, names ...string) {
	t.Helper()
	for i, name := range names {
		names[i] = "nodestead_" + name
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestMetricsStartAtZero(t *testing.T) {
	registry, m := newTestMetrics(newFakeSensor())
	compare(t, registry, `
# HELP nodestead_build_info Always 1; the labels are the version, the commit and the Go release that the agent was built from.
# TYPE nodestead_build_info gauge
nodestead_build_info{commit="abc",goversion="go1",version="v1"} 1
# HELP nodestead_conntrack_collisions_total Number of collisions of two DNS questions that were sent to different backends: kept (the entry lived for its one second) or orphaned (the answer came after that).
# TYPE nodestead_conntrack_collisions_total counter
nodestead_conntrack_collisions_total{namespace="",pod="",resolver="",result="kept"} 0
nodestead_conntrack_collisions_total{namespace="",pod="",resolver="",result="orphaned"} 0
`, "build_info", "conntrack_collisions_total")
	for _, cause := range incident.TimeoutCauses() {
		if n := testutil.ToFloat64(m.timeouts.WithLabelValues("", "", "", string(cause))); n != 0 {
			t.Errorf("timeouts by %s begin at %v", cause, n)
		}
	}
	if n := testutil.CollectAndCount(m.timeouts); n != len(incident.TimeoutCauses()) {
		t.Errorf("%d series of timeouts at the start", n)
	}
	if n := testutil.CollectAndCount(m.failures); n != len(incident.FailureCauses()) {
		t.Errorf("%d series of failures at the start", n)
	}
	var blind strings.Builder
	blind.WriteString(`
# HELP nodestead_sensor_blind 1 while the sensor cannot see, by reason; 0 otherwise.
# TYPE nodestead_sensor_blind gauge
`)
	for _, reason := range conntrack.Reasons() {
		fmt.Fprintf(&blind, "nodestead_sensor_blind{reason=%q,sensor=\"conntrack\"} 0\n", reason)
	}
	for _, reason := range lookup.Reasons() {
		fmt.Fprintf(&blind, "nodestead_sensor_blind{reason=%q,sensor=\"lookup\"} 0\n", reason)
	}
	compare(t, registry, blind.String(), "sensor_blind")
}

func TestMetricsCount(t *testing.T) {
	registry, m := newTestMetrics(newFakeSensor())
	w := workload.Workload{Namespace: "ci", Pod: "runner"}
	m.incident(incident.Incident{Cause: incident.OrphanedAnswer, Workload: w, Resolver: lookup.Musl, Count: 2})
	m.incident(incident.Incident{Cause: incident.ServerFailure, Workload: w, Resolver: lookup.Glibc, Count: 1})
	m.collision(w, lookup.Musl, kept)
	m.blindness(conntrackSensor, "notrack", true)
	m.totals(lookup.Totals{
		Resolver:        lookup.Go,
		Lookups:         []lookup.Count{{Type: lookup.A, Outcome: lookup.NoError, N: 3}, {Type: 4711, Outcome: lookup.Timeout, N: 4}},
		Retransmissions: 5, Wasted: 6,
	}, w)
	m.probe(probe.Result{Name: "x.", Type: 28, Nameserver: loser, Outcome: "nodata", Took: time.Millisecond})
	compare(t, registry, `
# HELP nodestead_dns_lookups_total Number of DNS lookups that ended, by how: an rcode in lower case, nodata or timeout.
# TYPE nodestead_dns_lookups_total counter
nodestead_dns_lookups_total{namespace="ci",outcome="noerror",qtype="A",resolver="go"} 3
nodestead_dns_lookups_total{namespace="ci",outcome="timeout",qtype="other",resolver="go"} 4
# HELP nodestead_dns_retransmissions_total Number of DNS questions that a client sent again.
# TYPE nodestead_dns_retransmissions_total counter
nodestead_dns_retransmissions_total{namespace="ci",resolver="go"} 5
# HELP nodestead_dns_search_wasted_total Number of DNS questions for names of a search list that do not exist, before the one that does.
# TYPE nodestead_dns_search_wasted_total counter
nodestead_dns_search_wasted_total{namespace="ci"} 6
# HELP nodestead_probe_lookups_total Number of DNS lookups that the agent made itself, by nameserver and outcome.
# TYPE nodestead_probe_lookups_total counter
nodestead_probe_lookups_total{name="x.",nameserver="10.244.3.2:53",outcome="nodata",qtype="AAAA"} 1
`, "dns_lookups_total", "dns_retransmissions_total", "dns_search_wasted_total", "probe_lookups_total")
	for what, check := range map[string]struct {
		metric prometheus.Collector
		want   float64
	}{
		"timeouts": {m.timeouts.WithLabelValues("ci", "runner", "musl", "orphaned_answer"), 2},
		"failures": {m.failures.WithLabelValues("ci", "runner", "glibc", "server_failure"), 1},
		"kept":     {m.collisions.WithLabelValues("ci", "runner", "musl", "kept"), 1},
		"notrack":  {m.blind.WithLabelValues("conntrack", "notrack"), 1},
	} {
		if got := testutil.ToFloat64(check.metric); got != check.want {
			t.Errorf("%s = %v, want %v", what, got, check.want)
		}
	}
	m.pods = false
	m.incident(incident.Incident{Cause: incident.OrphanedAnswer, Workload: w, Resolver: lookup.Musl, Count: 7})
	if got := testutil.ToFloat64(m.timeouts.WithLabelValues("ci", "", "musl", "orphaned_answer")); got != 7 {
		t.Errorf("without pods as labels %v timeouts, want 7", got)
	}
}

// TestDurations gives the same times to the agent's histogram and to the
// library's own, and compares what a scrape sees.
func TestDurations(t *testing.T) {
	want := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", Buckets: bounds(), NativeHistogramBucketFactor: math.Pow(2, 1.0/8)})
	d := &durations{all: make(map[durationKey]*durationSum)}
	for _, took := range []time.Duration{
		30 * time.Microsecond, 500 * time.Microsecond, 501 * time.Microsecond, 900 * time.Microsecond, 902 * time.Microsecond,
		time.Millisecond, 30 * time.Millisecond, 2500 * time.Millisecond, 9 * time.Second, 12 * time.Second,
	} {
		want.Observe(took.Seconds())
		one := lookup.Durations{Count: 1, Sum: took}
		one.Classic[sort.Search(len(lookup.DurationBounds), func(i int) bool { return took <= lookup.DurationBounds[i] })]++
		one.Native[int(math.Ceil(8*math.Log2(took.Seconds())))-lookup.NativeOffset]++
		d.add(durationKey{"ci", "musl"}, one)
	}
	var reference, got dto.Metric
	if err := want.Write(&reference); err != nil {
		t.Fatal(err)
	}
	series := make(chan prometheus.Metric, 1)
	d.Collect(series)
	if err := (<-series).Write(&got); err != nil {
		t.Fatal(err)
	}
	if len(got.Label) != 2 {
		t.Errorf("labels %v", got.Label)
	}
	reference.Histogram.CreatedTimestamp = nil
	if diff := cmp.Diff(reference.Histogram, got.Histogram, cmpopts.EquateApprox(0, 1e-9), cmpopts.IgnoreUnexported(dto.Histogram{}, dto.Bucket{}, dto.BucketSpan{})); diff != "" {
		t.Errorf("histogram (-library +agent):\n%s", diff)
	}
}

func TestSeriesOfPodsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m := newTestMetrics(newFakeSensor())
		series := func() int {
			n := 0
			for _, v := range []prometheus.Collector{m.timeouts, m.failures, m.collisions} {
				n += testutil.CollectAndCount(v)
			}
			return n
		}
		zero := series()
		w := workload.Workload{Namespace: "ci", Pod: "runner"}
		lost := func(w workload.Workload) {
			m.incident(incident.Incident{Cause: incident.Unknown, Workload: w, Count: 1})
			m.incident(incident.Incident{Cause: incident.ServerFailure, Workload: w, Count: 1})
			m.collision(w, lookup.Musl, kept)
		}
		alive := false
		check := func(after time.Duration, want int) {
			t.Helper()
			pass(after)
			m.expire(time.Now(), func(workload.Workload) bool { return alive })
			if n := series() - zero; n != want {
				t.Errorf("%d series of pods, want %d", n, want)
			}
		}
		lost(w)
		check(time.Hour, 3)
		m.left(w)
		check(5*time.Minute, 3)
		check(time.Second, 0)

		// Another pod of that name has come.
		lost(w)
		m.left(w)
		alive = true
		check(time.Minute, 3)
		alive = false
		check(time.Hour, 3)
		if len(m.gone) != 0 {
			t.Error("it waits for a pod that is there")
		}

		// One of that name in another namespace, and one of another name, stay.
		lost(workload.Workload{Namespace: "web", Pod: "runner"})
		lost(workload.Workload{Namespace: "ci", Pod: "helper"})
		m.left(w)
		check(keepSeries+time.Second, 6)
	})
}

func TestMetricsAtScrape(t *testing.T) {
	fake := newFakeSensor()
	fake.counters = conntrack.Counters{Messages: 11, Lost: 12}
	fake.statistics = func() (conntrack.Statistics, error) {
		return conntrack.Statistics{
			ClashResolved: 1, InsertFailed: 2, Drop: 3, EarlyDrop: 4, ChainTooLong: 5, SearchRestart: 6, Entries: 7, Limit: 8,
		}, nil
	}
	registry, m := newTestMetrics(fake)
	seed(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, family := range families {
		name, ours := strings.CutPrefix(family.GetName(), "nodestead_")
		if ours && (strings.HasPrefix(name, "conntrack_") || strings.HasPrefix(name, "sensor_")) {
			metric := family.GetMetric()[0] // conntrack's comes before that of lookup
			got[name] = metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	want := map[string]float64{
		"conntrack_clash_resolved_total": 1, "conntrack_insert_failed_total": 2, "conntrack_drop_total": 3,
		"conntrack_early_drop_total": 4, "conntrack_chain_too_long_total": 5, "conntrack_search_restart_total": 6,
		"conntrack_entries": 7, "conntrack_entries_limit": 8,
		"sensor_messages_total": 11, "sensor_lost_total": 12,
		"sensor_blind": 0, "conntrack_collisions_total": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestStatisticsThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFakeSensor()
		fake.statistics = func() (conntrack.Statistics, error) { return conntrack.Statistics{}, errors.New("read statistics: no") }
		var got logs
		collector := &sensorCollector{from: readers{conntrack: fake}, log: NewLogger(&got, LogConfig{Format: Text})}
		const line = `level=WARN msg="conntrack statistics are missing from the metrics" err="read statistics: no"`
		for _, want := range [][]string{{line}, nil, nil, nil, {line}, nil} {
			if n := testutil.CollectAndCount(collector); n != 2 {
				t.Errorf("%d metrics, want only those of the sensor itself", n)
			}
			expect(t, got.take(), want...)
			pass(15 * time.Second)
		}
	})
}

// seed gives every metric that has no known label values a series.
func seed(m *metrics) {
	m.totals(lookup.Totals{
		Lookups: []lookup.Count{{Type: lookup.A, Outcome: lookup.NoError, N: 1}}, Durations: lookup.Durations{Count: 1},
		Retransmissions: 1, Wasted: 1,
	}, workload.Workload{})
	m.probe(probe.Result{Nameserver: loser})
}

// TestSeriesOfNamespacesThatAreGone: a cluster that makes a namespace for each
// preview must not fill the agent.
func TestSeriesOfNamespacesThatAreGone(t *testing.T) {
	_, m := newTestMetrics(newFakeSensor())
	now := time.Now()
	series := func() (n int) {
		for _, c := range []prometheus.Collector{m.lookups, m.retransmissions, m.wasted, m.durations} {
			n += testutil.CollectAndCount(c)
		}
		return n
	}
	lookups := func(namespace string, at time.Time) {
		m.totals(lookup.Totals{
			At: at, Lookups: []lookup.Count{{Type: lookup.A, Outcome: lookup.NoError, N: 1}}, Durations: lookup.Durations{Count: 1},
			Retransmissions: 1, Wasted: 1,
		}, workload.Workload{Namespace: namespace})
	}
	for i := range 100 {
		lookups(fmt.Sprintf("preview-%d", i), now)
	}
	lookups("kept", now.Add(time.Hour))
	lookups("", now)
	m.expire(now.Add(keepNamespace), func(workload.Workload) bool { return false })
	if n := series(); n != 4*102 {
		t.Errorf("%d series, want those of all namespaces", n)
	}
	m.expire(now.Add(keepNamespace+time.Second), func(workload.Workload) bool { return false })
	if n := series(); n != 4*2 || len(m.used) != 1 {
		t.Errorf("%d series of %d namespaces, want those of one and of none", n, len(m.used))
	}
}

// newSeededRegistry has a series of each metric of both halves, and of what they share.
func newSeededRegistry() *prometheus.Registry {
	registry, m := newTestMetrics(newFakeSensor())
	seed(m)
	newTrustMetrics(registry, Default().Trust).set(full())
	registerEvents(registry, func() uint64 { return 1 })
	return registry
}

// TestMetricsDocumented holds docs/metrics.md: a row for each metric, with its
// type and labels, and each reason and cause.
func TestMetricsDocumented(t *testing.T) {
	registry := newSeededRegistry()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "nodestead_") {
			continue
		}
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		slices.Sort(labels)
		have = append(have, family.GetName()+" "+strings.ToLower(family.GetType().String())+" "+strings.Join(labels, ","))
	}

	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range conntrack.Reasons() {
		if !strings.Contains(string(page), fmt.Sprintf("`%s`", reason)) {
			t.Errorf("docs/metrics.md lacks the reason %s", reason)
		}
	}
	for _, reason := range lookup.Reasons() {
		if !strings.Contains(string(page), fmt.Sprintf("`%s`", reason)) {
			t.Errorf("docs/metrics.md lacks the reason %s", reason)
		}
	}
	for _, cause := range slices.Concat(incident.TimeoutCauses(), incident.FailureCauses()) {
		if !strings.Contains(string(page), fmt.Sprintf("`%s`", cause)) {
			t.Errorf("docs/metrics.md lacks the cause %s", cause)
		}
	}
	var documented []string
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 || !strings.Contains(cells[1], "nodestead_") {
			continue
		}
		plain := func(cell string) string { return strings.NewReplacer("`", "", " ", "").Replace(cell) }
		labels := strings.Split(plain(cells[3]), ",")
		slices.Sort(labels)
		documented = append(documented, plain(cells[1])+" "+plain(cells[2])+" "+strings.Join(labels, ","))
		if strings.TrimSpace(cells[4]) == "" || strings.TrimSpace(cells[5]) == "" {
			t.Errorf("the row of %s lacks its meaning, or what to do", cells[1])
		}
	}
	slices.Sort(have)
	slices.Sort(documented)
	if diff := cmp.Diff(have, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented):\n%s", diff)
	}
}

func TestPromlint(t *testing.T) {
	registry := newSeededRegistry()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
