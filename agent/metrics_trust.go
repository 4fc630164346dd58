package agent

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
)

// trustMetrics collects the metrics of trust from the status of the last pass,
// so that what no longer holds is gone with it. Counters are certsync's own.
type trustMetrics struct {
	sources []string

	mu   sync.Mutex
	last certsync.Status // its Time is zero before the first pass
}

var (
	notAfterDesc = describe("ca_not_after_timestamp_seconds",
		"When a CA certificate that the sources give expires, in seconds since 1970.", "fingerprint", "subject")
	rejectedDesc = describe("ca_rejected",
		"Number of entries of the sources that are refused now, by file and reason.", "source", "reason")
	brokenDesc = describe("ca_source_broken",
		"1 while a source is missing, unreadable or gives nothing, and what it gave last stays; 0 otherwise.", "source")
	inSyncDesc = describe("trust_in_sync",
		"1 while all is installed at the target that shall be there, and was verified; 0 otherwise.", "target")
	lastSuccessDesc = describe("trust_last_success_timestamp_seconds",
		"When the target was last verified to be in sync, in seconds since 1970.", "target")
	lastPassDesc = describe("trust_last_pass_timestamp_seconds",
		"When the last pass ended, whatever it came to, in seconds since 1970.")
	changesDesc = describe("trust_changes_total",
		"Number of times that the target was changed, repaired because what was installed had been taken away, or could not be changed.", "target", "result")
	trustedDesc = describe("registry_trusted",
		"1 if the runtime, when asked, trusts the registry, 0 if it does not; absent when it could not be asked.", "registry", "runtime")
	restartsDesc = describe("runtime_restarts_total",
		"Number of restarts of the runtime, by what came of them.", "runtime", "result")
	pendingRestartDesc = describe("runtime_restart_pending",
		"1 while a restart of the runtime is needed and is not made, by reason.", "runtime", "reason")
)

// newTrustMetrics registers the metrics of trust. Counters whose labels are known
// begin at 0; gauges begin with the first pass, because before that nobody knows.
func newTrustMetrics(registry *prometheus.Registry, cfg TrustConfig) *trustMetrics {
	m := &trustMetrics{sources: strs(cfg.Sources)}
	first := certsync.Status{Changes: map[certsync.Change]int{}}
	if cfg.Store != off {
		first.Changes[certsync.Change{Target: "store", Result: certsync.Changed}] = 0
	}
	for _, r := range (Config{Trust: cfg}).Sync(nil).Runtimes {
		first.Runtimes = append(first.Runtimes, certsync.RuntimeStatus{Name: r.Name})
	}
	m.set(first)
	registry.MustRegister(m)
	return m
}

// set takes the status of a pass. One that did not come to its targets leaves
// them as they were last seen, and not in sync as far as is known.
func (m *trustMetrics) set(s certsync.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(s.Errs) > 0 && len(s.Targets) == 0 {
		for _, t := range m.last.Targets {
			t.InSync = false
			s.Targets = append(s.Targets, t)
		}
	}
	m.last = s
}

// status gives that of the last pass.
func (m *trustMetrics) status() certsync.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// byName puts together what is known of one target: a daemon that reads two
// directories may have a remnant in the second one that resists removal.
func byName(all []certsync.TargetStatus) map[string]certsync.TargetStatus {
	out := make(map[string]certsync.TargetStatus)
	for _, t := range all {
		if known, ok := out[t.Name]; ok {
			t.InSync = t.InSync && known.InSync
		}
		out[t.Name] = t
	}
	return out
}

// Describe implements prometheus.Collector.
func (m *trustMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		notAfterDesc, rejectedDesc, brokenDesc, inSyncDesc, lastSuccessDesc, lastPassDesc, changesDesc, trustedDesc, restartsDesc, pendingRestartDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *trustMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.status()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	if !s.Time.IsZero() {
		gauge(lastPassDesc, seconds(s.Time))
		m.sourceMetrics(s, gauge)
	}
	counted := make(map[string]bool)
	for change := range s.Changes {
		counted[change.Target] = true
	}
	for name, t := range byName(s.Targets) {
		counted[name] = true
		gauge(inSyncDesc, bit(t.InSync), name)
		if !t.LastSuccess.IsZero() {
			gauge(lastSuccessDesc, seconds(t.LastSuccess), name)
		}
	}
	for target := range counted {
		for _, result := range certsync.Results() {
			counter(changesDesc, s.Changes[certsync.Change{Target: target, Result: result}], target, result)
		}
	}
	for _, r := range s.Runtimes {
		for _, a := range r.Answers {
			if a.Verdict != daemon.Unclear {
				gauge(trustedDesc, bit(a.Verdict == daemon.Trusted), a.Registry, string(r.Name))
			}
		}
		for _, result := range certsync.RestartResults() {
			counter(restartsDesc, r.Restarts[result], string(r.Name), result)
		}
		if r.Decision.Action == daemon.Pending {
			gauge(pendingRestartDesc, 1, string(r.Name), r.Decision.Reason)
		}
	}
}

// sourceMetrics are about what the sources gave.
func (m *trustMetrics) sourceMetrics(s certsync.Status, gauge func(*prometheus.Desc, float64, ...string)) {
	for _, a := range s.Anchors {
		gauge(notAfterDesc, seconds(a.Cert.NotAfter), a.Fingerprint, subject(a))
	}
	refused := make(map[[2]string]int)
	for _, r := range s.Refused {
		refused[[2]string{label(r.Source), string(r.Reason)}]++
	}
	for key, n := range refused {
		gauge(rejectedDesc, float64(n), key[0], key[1])
	}
	broken := make(map[string]bool)
	for _, source := range m.sources {
		broken[source] = false
	}
	for _, b := range s.Broken {
		broken[label(b.Source)] = true
	}
	for source, is := range broken {
		gauge(brokenDesc, bit(is), source)
	}
}

// subject is the name of a certificate as a label.
func subject(a anchor.Anchor) string { return label(a.Cert.Subject.String()) }

// label makes of a text that others chose one that Prometheus takes: valid UTF-8,
// and not longer than people read.
func label(text string) string {
	const most = 256
	text = strings.ToValidUTF8(text, "\uFFFD")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
