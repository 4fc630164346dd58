package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
)

func newTestMetrics(from reader) (*prometheus.Registry, *metrics) {
	registry := prometheus.NewPedanticRegistry()
	return registry, newMetrics(registry, Version{"v1", "abc", "go1"}, from, slog.New(slog.DiscardHandler))
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
	registry, _ := newTestMetrics(newFakeSensor())
	compare(t, registry, `
# HELP nodestead_build_info Always 1; the labels are the version, the commit and the Go release that the agent was built from.
# TYPE nodestead_build_info gauge
nodestead_build_info{commit="abc",goversion="go1",version="v1"} 1
# HELP nodestead_conntrack_collisions_total Number of collisions of two DNS questions that were sent to different backends: kept (the entry lived for its one second) or orphaned (the answer came after that).
# TYPE nodestead_conntrack_collisions_total counter
nodestead_conntrack_collisions_total{namespace="",pod="",resolver="",result="kept"} 0
nodestead_conntrack_collisions_total{namespace="",pod="",resolver="",result="orphaned"} 0
# HELP nodestead_dns_lookup_timeouts_total Number of DNS lookups whose client had to ask again or gave up, by cause.
# TYPE nodestead_dns_lookup_timeouts_total counter
nodestead_dns_lookup_timeouts_total{cause="orphaned_answer",namespace="",pod="",resolver=""} 0
nodestead_dns_lookup_timeouts_total{cause="unknown",namespace="",pod="",resolver=""} 0
`, "build_info", "conntrack_collisions_total", "dns_lookup_timeouts_total")
	var blind strings.Builder
	blind.WriteString(`
# HELP nodestead_sensor_blind 1 while the sensor cannot see, by reason; 0 otherwise.
# TYPE nodestead_sensor_blind gauge
`)
	for _, reason := range conntrack.Reasons() {
		fmt.Fprintf(&blind, "nodestead_sensor_blind{reason=%q,sensor=\"conntrack\"} 0\n", reason)
	}
	compare(t, registry, blind.String(), "sensor_blind")
}

func TestMetricsCount(t *testing.T) {
	_, m := newTestMetrics(newFakeSensor())
	for _, finding := range []conntrack.Finding{
		orphan(), orphan(),
		conntrack.Collision{Answered: true}, conntrack.Collision{}, conntrack.Collision{},
		conntrack.SlowFlow{}, conntrack.Drop{}, conntrack.Loss{},
		conntrack.Blindness{Reason: conntrack.NoTrack, Blind: true},
		conntrack.Blindness{Reason: conntrack.EventsOff, Blind: true},
		conntrack.Blindness{Reason: conntrack.EventsOff},
	} {
		m.count(finding)
	}
	for what, check := range map[string]struct {
		metric prometheus.Collector
		want   float64
	}{
		"timeouts":   {m.timeouts.WithLabelValues("", "", "", "orphaned_answer"), 2},
		"unanswered": {m.timeouts.WithLabelValues("", "", "", "unknown"), 2},
		"orphaned":   {m.collisions.WithLabelValues("", "", "", "orphaned"), 2},
		"kept":       {m.collisions.WithLabelValues("", "", "", "kept"), 3},
		"notrack":    {m.blind.WithLabelValues("conntrack", "notrack"), 1},
		"events off": {m.blind.WithLabelValues("conntrack", "events_off"), 0},
	} {
		if got := testutil.ToFloat64(check.metric); got != check.want {
			t.Errorf("%s = %v, want %v", what, got, check.want)
		}
	}
}

func TestMetricsAtScrape(t *testing.T) {
	fake := newFakeSensor()
	fake.counters = conntrack.Counters{Messages: 11, Lost: 12}
	fake.statistics = func() (conntrack.Statistics, error) {
		return conntrack.Statistics{
			ClashResolved: 1, InsertFailed: 2, Drop: 3, EarlyDrop: 4, ChainTooLong: 5, SearchRestart: 6, Entries: 7, Limit: 8,
		}, nil
	}
	registry, _ := newTestMetrics(fake)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, family := range families {
		name, ours := strings.CutPrefix(family.GetName(), "nodestead_")
		if ours && (strings.HasPrefix(name, "conntrack_") || strings.HasPrefix(name, "sensor_")) {
			metric := family.GetMetric()[0]
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
		collector := &sensorCollector{from: fake, log: NewLogger(&got, LogConfig{Format: Text})}
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

// TestMetricsDocumented holds docs/metrics.md: a row for each metric, with its
// type and labels, and each reason and cause.
func TestMetricsDocumented(t *testing.T) {
	registry, _ := newTestMetrics(newFakeSensor())
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
	for _, cause := range incident.Causes() {
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
	registry, _ := newTestMetrics(newFakeSensor())
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
