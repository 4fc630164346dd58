package deploy

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// metric is a row of docs/metrics.md, which a test of agent compares with what the
// agent exports.
type metric struct {
	name, kind string
	labels     []string
	words      []string // all that stands in backticks in its meaning
}

var quoted = regexp.MustCompile("`([^`]+)`")

// readMetrics gives the metrics that the agent exports, by name.
func readMetrics(t *testing.T) map[string]metric {
	t.Helper()
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]metric)
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 || !strings.HasPrefix(cells[1], " `nodestead_") {
			continue
		}
		m := metric{name: words(cells[1])[0], kind: strings.TrimSpace(cells[2]), labels: words(cells[3]), words: words(cells[4])}
		all[m.name] = m
	}
	if len(all) < 30 {
		t.Fatalf("docs/metrics.md has %d metrics", len(all))
	}
	return all
}

// words are the texts in backticks.
func words(cell string) []string {
	var out []string
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		out = append(out, m[1])
	}
	return out
}

// values are the documented values of the label cause.
func values(metrics ...metric) []string {
	var out []string
	for _, m := range metrics {
		out = append(out, slices.DeleteFunc(slices.Clone(m.words), func(w string) bool { return w == "cause" })...)
	}
	return out
}

// scrapeLabels are those that Prometheus gives to a series, as docs/operate.md
// asks for; series of other exporters than us that expressions may use.
var (
	scrapeLabels = []string{"cluster", "instance", "job", "node"}
	foreign      = map[string][]string{
		"up": nil, "ALERTS": {"alertname", "alertstate", "severity"},
		"process_cpu_seconds_total": nil, "process_resident_memory_bytes": nil, "process_start_time_seconds": nil,
	}
)

var (
	// A series, with what selects it.
	selector = regexp.MustCompile(`\b([a-zA-Z_][a-zA-Z0-9_]*(?::[a-zA-Z0-9_:]+)?)\s*(\{[^}]*\})?`)
	matcher  = regexp.MustCompile(`([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	series   = regexp.MustCompile(`^(nodestead[_:]|process_|go_|up$|ALERTS$)`)
	literal  = regexp.MustCompile(`"[^"]*"`)
)

// used is what an expression uses: metrics, without the suffixes of histograms.
// What it says about them is held against docs/metrics.md; recorded are the
// series that rules make, with the labels that those have.
func used(expr string, metrics map[string]metric, recorded map[string][]string) (names []string, problems []string) {
	labels := slices.Concat(scrapeLabels, []string{"le"})
	for _, s := range selector.FindAllStringSubmatch(expr, -1) {
		if !series.MatchString(s[1]) {
			continue
		}
		m, has := lookUp(s[1], metrics)
		own, isRecorded := recorded[s[1]]
		other, isForeign := foreign[s[1]]
		switch {
		case has:
			names, own = append(names, m.name), m.labels
		case isRecorded:
		case isForeign:
			own = other
		default:
			problems = append(problems, "there is no metric "+s[1])
			continue
		}
		labels = append(labels, own...)
		for _, match := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(own, match[1]) && !slices.Contains(scrapeLabels, match[1]) && match[1] != "le" {
				problems = append(problems, fmt.Sprintf("%s has no label %s", s[1], match[1]))
			}
			if has && slices.Contains([]string{"reason", "result", "cause", "sensor", "outcome"}, match[1]) {
				for value := range strings.SplitSeq(match[3], "|") {
					if !slices.Contains(m.words, value) && !slices.Contains(outcomes(), value) && !strings.Contains(value, "$") {
						problems = append(problems, fmt.Sprintf("%s has no %s %q", s[1], match[1], value))
					}
				}
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(literal.ReplaceAllString(expr, ""), -1) {
		for label := range strings.SplitSeq(g[2], ",") {
			if label = strings.TrimSpace(label); label != "" && !slices.Contains(labels, label) {
				problems = append(problems, fmt.Sprintf("%s (%s): no series of the expression has that label", g[1], label))
			}
		}
	}
	return names, problems
}

// lookUp finds a metric by the name of one of its series.
func lookUp(name string, metrics map[string]metric) (metric, bool) {
	if m, ok := metrics[name]; ok {
		return m, true
	}
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			m, ok := metrics[base]
			return m, ok && m.kind == "histogram"
		}
	}
	return metric{}, false
}

// outcomes are the values of the label outcome, of which docs/metrics.md does not
// list the rcodes.
func outcomes() []string {
	out := []string{"nodata", "timeout"}
	for _, name := range dns.RcodeToString {
		out = append(out, strings.ToLower(name))
	}
	return out
}

// readRecorded are the series that the rules record, with the labels of what they
// are made of: none of them aggregates.
func readRecorded(t *testing.T, metrics map[string]metric) map[string][]string {
	t.Helper()
	out := make(map[string][]string)
	for _, r := range readRules(t) {
		if r.Record == "" {
			continue
		}
		names, problems := used(r.Expr, metrics, nil)
		if len(problems) > 0 || len(names) == 0 {
			t.Errorf("%s is made of %v: %v", r.Record, names, problems)
			continue
		}
		out[r.Record] = metrics[names[0]].labels
	}
	return out
}

// notUsed are the metrics that are in no alert and no dashboard, and why.
var notUsed = map[string]string{
	"nodestead_events_lost_total":              "what is in no Event is in the log and in the metrics, which have the alerts",
	"nodestead_conntrack_search_restart_total": "harmless, as docs/metrics.md says",
}

// TestMetricsOfRulesAndDashboardsExist: each metric, label and value in an
// expression is one that the agent exports, and each that it exports is used.
func TestMetricsOfRulesAndDashboardsExist(t *testing.T) {
	metrics := readMetrics(t)
	recorded := readRecorded(t, metrics)
	seen := make(map[string]bool)
	check := func(where, expr string) {
		names, problems := used(expr, metrics, recorded)
		for _, name := range names {
			seen[name] = true
		}
		for _, p := range problems {
			t.Errorf("%s: %s", where, p)
		}
	}
	queried := make(map[string]bool)
	for _, r := range readRules(t) {
		check(r.Alert+r.Record, r.Expr)
		for _, text := range r.Annotations {
			check(r.Alert+", annotations", unquoted(text))
			check(r.Alert+", annotations", labelsOf(r.Expr, text))
		}
	}
	for _, d := range readDashboards(t) {
		for _, e := range d.expressions() {
			check(d.Title+": "+e.where, plain(e.expr))
			for name := range recorded {
				queried[name] = queried[name] || strings.Contains(e.expr, name)
			}
		}
	}
	for name := range metrics {
		if why, ok := notUsed[name]; ok == seen[name] {
			t.Errorf("%s: used in an alert or a dashboard: %v; reason why not: %q", name, seen[name], why)
		}
	}
	for name := range recorded {
		if !queried[name] {
			t.Errorf("%s is recorded, and no dashboard needs it", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(notUsed)) {
		if _, ok := metrics[name]; !ok {
			t.Errorf("%s is not used and does not exist", name)
		}
	}
}

// unquoted gives the expressions in a template of an annotation: there %q stands
// for a quoted text.
func unquoted(template string) string {
	if !strings.Contains(template, "query") {
		return ""
	}
	return strings.ReplaceAll(template, "%q", `"$x"`)
}

var label = regexp.MustCompile(`\$labels\.(\w+)`)

// labelsOf makes an expression of the labels that a template has of an alert's
// series, so that they are checked like those of an aggregation.
func labelsOf(expr, template string) string {
	var names []string
	for _, m := range label.FindAllStringSubmatch(template, -1) {
		names = append(names, m[1])
	}
	return expr + " by (" + strings.Join(names, ",") + ")"
}

// TestUsed: what is wrong with an expression is found.
func TestUsed(t *testing.T) {
	metrics := readMetrics(t)
	for _, tt := range []struct{ expr, problem string }{
		{`sum by (namespace) (rate(nodestead_dns_lookups_total{outcome!~"noerror|nodata"}[5m]))`, ""},
		{`histogram_quantile(0.9, sum by (le, resolver) (rate(nodestead_dns_lookup_duration_seconds_bucket[5m])))`, ""},
		{`nodestead_dns_lookup_total`, "there is no metric nodestead_dns_lookup_total"},
		{`nodestead_dns_lookups_total_bucket`, "there is no metric nodestead_dns_lookups_total_bucket"},
		{`nodestead:nothing:increase10m`, "there is no metric nodestead:nothing:increase10m"},
		{`nodestead_dns_lookups_total{pod="a"}`, "nodestead_dns_lookups_total has no label pod"},
		{`sum by (pod) (nodestead_dns_lookups_total)`, "by (pod): no series of the expression has that label"},
		{`nodestead_sensor_blind{reason!~"notrack|no_stats"} == 1`, `nodestead_sensor_blind has no reason "no_stats"`},
		{labelsOf("nodestead_trust_in_sync == 0", "{{ $labels.target }} {{ $labels.runtime }}"), "by (runtime): no series of the expression has that label"},
	} {
		_, problems := used(tt.expr, metrics, nil)
		if got := strings.Join(problems, "; "); got != tt.problem {
			t.Errorf("%s: %q, want %q", tt.expr, got, tt.problem)
		}
	}
}
