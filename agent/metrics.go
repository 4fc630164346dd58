package agent

import (
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
	"github.com/nodestead/nodestead/workload"
)

// The sensors: values of the label sensor.
const (
	conntrackSensor = "conntrack"
	lookupSensor    = "lookup"
)

// Results of a collision: values of the label result.
const (
	kept     = "kept"
	orphaned = "orphaned"
)

// metrics are what names counts. What the kernel and the sensors count themselves
// is read at scrape (sensorCollector).
type metrics struct {
	pods bool // failures have the pod as a label

	lookups         *prometheus.CounterVec
	durations       *durations
	timeouts        *prometheus.CounterVec
	failures        *prometheus.CounterVec
	retransmissions *prometheus.CounterVec
	wasted          *prometheus.CounterVec
	collisions      *prometheus.CounterVec
	blind           *prometheus.GaugeVec
	probes          *prometheus.CounterVec
	probeDurations  *prometheus.HistogramVec

	mu   sync.Mutex
	gone map[podName]time.Time // when a pod ended whose series are still there
	used map[string]time.Time  // when a namespace last had a lookup
}

// podName names a pod in the labels.
type podName struct{ namespace, pod string }

// keepSeries is how long the series of a pod stay when it is gone, so that its
// last failures are scraped.
const keepSeries = 5 * time.Minute

// keepNamespace is how long those of a namespace stay without a lookup:
// namespaces come and go as well.
const keepNamespace = 2 * time.Hour

// registerCommon registers what every agent has, whichever its halves: build_info,
// Go's metrics and those of the process.
func registerCommon(registry *prometheus.Registry, version Version) {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nodestead_build_info",
		Help: "Always 1; the labels are the version, the commit and the Go release that the agent was built from.",
		ConstLabels: prometheus.Labels{
			"version": version.Version, "commit": version.Commit, "goversion": version.Go,
		},
	})
	build.Set(1)
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build,
	)
}

// newMetrics registers the metrics of names, with every known label value at 0.
func newMetrics(registry *prometheus.Registry, pods bool, from readers, log *slog.Logger) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nodestead_" + name, Help: help}, labels)
	}
	m := &metrics{
		pods: pods,
		lookups: counter("dns_lookups_total",
			"Number of DNS lookups that ended, by how: an rcode in lower case, nodata or timeout.",
			"namespace", "resolver", "qtype", "outcome"),
		durations: &durations{all: make(map[durationKey]*durationSum)},
		timeouts: counter("dns_lookup_timeouts_total",
			"Number of DNS lookups whose client had to ask again or gave up, by cause.",
			"namespace", "pod", "resolver", "cause"),
		failures: counter("dns_lookup_failures_total",
			"Number of DNS lookups whose answer did not help, by cause.",
			"namespace", "pod", "resolver", "cause"),
		retransmissions: counter("dns_retransmissions_total",
			"Number of DNS questions that a client sent again.",
			"namespace", "resolver"),
		wasted: counter("dns_search_wasted_total",
			"Number of DNS questions for names of a search list that do not exist, before the one that does.",
			"namespace"),
		collisions: counter("conntrack_collisions_total",
			"Number of collisions of two DNS questions that were sent to different backends: kept (the entry lived for its one second) or orphaned (the answer came after that).",
			"namespace", "pod", "resolver", "result"),
		blind: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nodestead_sensor_blind",
			Help: "1 while the sensor cannot see, by reason; 0 otherwise.",
		}, []string{"sensor", "reason"}),
		probes: counter("probe_lookups_total",
			"Number of DNS lookups that the agent made itself, by nameserver and outcome.",
			"nameserver", "name", "qtype", "outcome"),
		probeDurations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "nodestead_probe_lookup_duration_seconds",
			Help:                        "Time from a question of the agent to the nameserver's answer.",
			Buckets:                     bounds(),
			NativeHistogramBucketFactor: 1.1,
		}, []string{"nameserver"}),
		gone: make(map[podName]time.Time),
		used: make(map[string]time.Time),
	}
	for _, cause := range incident.TimeoutCauses() {
		m.timeouts.WithLabelValues("", "", "", string(cause))
	}
	for _, cause := range incident.FailureCauses() {
		m.failures.WithLabelValues("", "", "", string(cause))
	}
	for _, result := range []string{kept, orphaned} {
		m.collisions.WithLabelValues("", "", "", result)
	}
	for _, reason := range conntrack.Reasons() {
		m.blind.WithLabelValues(conntrackSensor, string(reason))
	}
	for _, reason := range lookup.Reasons() {
		m.blind.WithLabelValues(lookupSensor, string(reason))
	}
	registry.MustRegister(
		m.lookups, m.durations, m.timeouts, m.failures, m.retransmissions, m.wasted, m.collisions, m.blind,
		m.probes, m.probeDurations,
		&sensorCollector{from: from, log: log},
	)
	return m
}

// bounds are the classic buckets of all durations, in seconds.
func bounds() []float64 {
	var all []float64
	for _, b := range lookup.DurationBounds {
		all = append(all, b.Seconds())
	}
	return all
}

// labels gives a workload's namespace and pod as labels.
func (m *metrics) labels(w workload.Workload) (namespace, pod string) {
	if !m.pods {
		return w.Namespace, ""
	}
	return w.Namespace, w.Pod
}

// incident counts an incident.
func (m *metrics) incident(in incident.Incident) {
	namespace, pod := m.labels(in.Workload)
	counter := m.failures
	if in.Cause.Timeout() {
		counter = m.timeouts
	}
	counter.WithLabelValues(namespace, pod, string(in.Resolver), string(in.Cause)).Add(float64(in.Count))
}

func (m *metrics) collision(w workload.Workload, resolver lookup.Resolver, result string) {
	namespace, pod := m.labels(w)
	m.collisions.WithLabelValues(namespace, pod, string(resolver), result).Inc()
}

func (m *metrics) blindness(sensor, reason string, blind bool) {
	value := 0.0
	if blind {
		value = 1
	}
	m.blind.WithLabelValues(sensor, reason).Set(value)
}

// totals counts the lookups of one client.
func (m *metrics) totals(t lookup.Totals, w workload.Workload) {
	if w.Namespace != "" {
		m.mu.Lock()
		m.used[w.Namespace] = t.At
		m.mu.Unlock()
	}
	resolver := string(t.Resolver)
	for _, c := range t.Lookups {
		m.lookups.WithLabelValues(w.Namespace, resolver, qtype(c.Type), string(c.Outcome)).Add(float64(c.N))
	}
	if t.Durations.Count > 0 {
		m.durations.add(durationKey{w.Namespace, resolver}, t.Durations)
	}
	if t.Retransmissions > 0 {
		m.retransmissions.WithLabelValues(w.Namespace, resolver).Add(float64(t.Retransmissions))
	}
	if t.Wasted > 0 {
		m.wasted.WithLabelValues(w.Namespace).Add(float64(t.Wasted))
	}
}

// qtype is a type's label: a stranger may ask 65,536 types.
func qtype(t lookup.Type) string {
	if s := t.String(); !strings.HasPrefix(s, "TYPE") {
		return s
	}
	return "other"
}

// probe counts a lookup of the probe.
func (m *metrics) probe(r probe.Result) {
	server := r.Nameserver.String()
	m.probes.WithLabelValues(server, r.Name, qtype(lookup.Type(r.Type)), r.Outcome).Inc()
	if r.Outcome != probe.Timeout {
		m.probeDurations.WithLabelValues(server).Observe(r.Took.Seconds())
	}
}

// left notes that a pod has ended.
func (m *metrics) left(w workload.Workload) {
	const most = 100_000 // of an hour's churn; more stay until the agent restarts
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.Pod != "" && len(m.gone) < most {
		m.gone[podName{w.Namespace, w.Pod}] = time.Now()
	}
}

// expire drops the series of pods that have been gone for a while, and of
// namespaces that were not used for long.
func (m *metrics) expire(now time.Time, alive func(workload.Workload) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, at := range m.gone {
		switch {
		case alive(workload.Workload{Namespace: name.namespace, Pod: name.pod}):
			delete(m.gone, name) // another one of that name
		case now.Sub(at) > keepSeries:
			delete(m.gone, name)
			labels := prometheus.Labels{"namespace": name.namespace, "pod": name.pod}
			m.timeouts.DeletePartialMatch(labels)
			m.failures.DeletePartialMatch(labels)
			m.collisions.DeletePartialMatch(labels)
		}
	}
	for namespace, at := range m.used {
		if now.Sub(at) > keepNamespace {
			delete(m.used, namespace)
			labels := prometheus.Labels{"namespace": namespace}
			m.lookups.DeletePartialMatch(labels)
			m.retransmissions.DeletePartialMatch(labels)
			m.wasted.DeletePartialMatch(labels)
			m.durations.forget(namespace)
		}
	}
}

// reader is what sensorCollector reads; *conntrack.Sensor is one.
type reader interface {
	Counters() conntrack.Counters
	Statistics() (conntrack.Statistics, error)
}

// readers are all that sensorCollector reads.
type readers struct {
	conntrack reader
	lookup    func() lookup.Counters // nil when there is no such sensor
}

// sensorCollector reads the kernel's and the sensor's counters at each scrape.
// When the kernel's cannot be read their metrics are absent, because an old
// value would hide that.
type sensorCollector struct {
	from readers
	log  *slog.Logger

	mu     sync.Mutex
	logged time.Time // when a failure was logged last
}

// failureEvery is how often a failure to read the statistics is logged.
const failureEvery = time.Minute

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nodestead_"+name, help, labels, nil)
}

var (
	messagesDesc = describe("sensor_messages_total",
		"Number of messages or packets that the sensor read.", "sensor")
	lostDesc = describe("sensor_lost_total",
		"Number of messages or packets that the kernel had no room for, so that the sensor missed them.", "sensor")
	pendingDesc = describe("dns_lookups_pending",
		"Number of DNS lookups that are pending now.")
	discardedDesc = describe("dns_lookups_discarded_total",
		"Number of pending DNS lookups that were thrown away, because there were too many.")
	malformedDesc = describe("dns_malformed_total",
		"Number of packets on a DNS port that are no DNS message.")
)

// statistic is one metric of the kernel's statistics.
type statistic struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(conntrack.Statistics) uint64
}

var statistics = []statistic{
	{describe("conntrack_clash_resolved_total", "Number of collisions that the kernel resolved, merged and kept together (clash_resolve)."),
		prometheus.CounterValue, func(s conntrack.Statistics) uint64 { return s.ClashResolved }},
	{describe("conntrack_insert_failed_total", "Number of conntrack entries that could not be inserted (insert_failed)."),
		prometheus.CounterValue, func(s conntrack.Statistics) uint64 { return s.InsertFailed }},
	{describe("conntrack_drop_total", "Number of packets that connection tracking dropped (drop)."),
		prometheus.CounterValue, func(s conntrack.Statistics) uint64 { return s.Drop }},
	{describe("conntrack_early_drop_total", "Number of conntrack entries that were removed to make room in a full table (early_drop)."),
		prometheus.CounterValue, func(s conntrack.Statistics) uint64 { return s.EarlyDrop }},
	{describe("conntrack_chain_too_long_total", "Number of packets dropped because a chain of the hash table was too long (chaintoolong)."),
		prometheus.CounterValue, func(s conntrack.Statistics) uint64 { return s.ChainTooLong }},
	{describe("conntrack_search_restart_total", "Number of searches in the table that had to start again (search_restart); harmless."),
		prometheus.CounterValue, func(s conntrack.Statistics) uint64 { return s.SearchRestart }},
	{describe("conntrack_entries", "Number of conntrack entries now."),
		prometheus.GaugeValue, func(s conntrack.Statistics) uint64 { return s.Entries }},
	{describe("conntrack_entries_limit", "Number of conntrack entries that the table may hold (nf_conntrack_max)."),
		prometheus.GaugeValue, func(s conntrack.Statistics) uint64 { return s.Limit }},
}

// Describe implements prometheus.Collector.
func (c *sensorCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{messagesDesc, lostDesc, pendingDesc, discardedDesc, malformedDesc} {
		ch <- d
	}
	for _, s := range statistics {
		ch <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (c *sensorCollector) Collect(ch chan<- prometheus.Metric) {
	if c.from.lookup != nil {
		counters := c.from.lookup()
		ch <- prometheus.MustNewConstMetric(messagesDesc, prometheus.CounterValue, float64(counters.Packets), lookupSensor)
		ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(counters.Lost), lookupSensor)
		ch <- prometheus.MustNewConstMetric(pendingDesc, prometheus.GaugeValue, float64(counters.Pending))
		ch <- prometheus.MustNewConstMetric(discardedDesc, prometheus.CounterValue, float64(counters.Discarded))
		ch <- prometheus.MustNewConstMetric(malformedDesc, prometheus.CounterValue, float64(counters.Malformed))
	}
	counters := c.from.conntrack.Counters()
	ch <- prometheus.MustNewConstMetric(messagesDesc, prometheus.CounterValue, float64(counters.Messages), conntrackSensor)
	ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(counters.Lost), conntrackSensor)
	read, err := c.from.conntrack.Statistics()
	if err != nil {
		c.failed(err)
		return
	}
	for _, s := range statistics {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, float64(s.value(read)))
	}
}

func (c *sensorCollector) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); c.logged.IsZero() || now.Sub(c.logged) >= failureEvery {
		c.logged = now
		c.log.Warn("conntrack statistics are missing from the metrics", "err", err)
	}
}
