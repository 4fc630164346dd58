package agent

import (
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
)

// conntrackSensor is the value of the label sensor.
const conntrackSensor = "conntrack"

// Results of a collision: values of the label result.
const (
	kept     = "kept"
	orphaned = "orphaned"
)

// metrics are what the findings are counted in. What the kernel and the sensor
// count themselves is read at scrape (sensorCollector).
type metrics struct {
	timeouts   *prometheus.CounterVec
	collisions *prometheus.CounterVec
	blind      *prometheus.GaugeVec
}

// newMetrics registers all metrics of the agent, with every known label value
// at 0.
func newMetrics(registry *prometheus.Registry, version Version, from reader, log *slog.Logger) *metrics {
	m := &metrics{
		timeouts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodestead_dns_lookup_timeouts_total",
			Help: "Number of DNS lookups whose client had to ask again or gave up, by cause.",
		}, []string{"namespace", "pod", "resolver", "cause"}),
		collisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodestead_conntrack_collisions_total",
			Help: "Number of collisions of two DNS questions that were sent to different backends: kept (the entry lived for its one second) or orphaned (the answer came after that).",
		}, []string{"namespace", "pod", "resolver", "result"}),
		blind: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nodestead_sensor_blind",
			Help: "1 while the sensor cannot see, by reason; 0 otherwise.",
		}, []string{"sensor", "reason"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nodestead_build_info",
		Help: "Always 1; the labels are the version, the commit and the Go release that the agent was built from.",
		ConstLabels: prometheus.Labels{
			"version": version.Version, "commit": version.Commit, "goversion": version.Go,
		},
	})
	build.Set(1)
	for _, cause := range incident.Causes() {
		m.timeouts.WithLabelValues("", "", "", string(cause))
	}
	for _, result := range []string{kept, orphaned} {
		m.collisions.WithLabelValues("", "", "", result)
	}
	for _, reason := range conntrack.Reasons() {
		m.blind.WithLabelValues(conntrackSensor, string(reason))
	}
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, m.timeouts, m.collisions, m.blind,
		&sensorCollector{from: from, log: log},
	)
	return m
}

// count counts a finding. The sensors that know the pod and the resolver do
// not exist yet, so those labels are empty.
func (m *metrics) count(finding conntrack.Finding) {
	switch f := finding.(type) {
	case conntrack.Orphan:
		m.timeouts.WithLabelValues("", "", "", string(incident.OrphanedAnswer)).Inc()
		m.collisions.WithLabelValues("", "", "", orphaned).Inc()
	case conntrack.Collision:
		m.collisions.WithLabelValues("", "", "", kept).Inc()
		if !f.Answered {
			m.timeouts.WithLabelValues("", "", "", string(incident.Unknown)).Inc()
		}
	case conntrack.Blindness:
		value := 0.0
		if f.Blind {
			value = 1
		}
		m.blind.WithLabelValues(conntrackSensor, string(f.Reason)).Set(value)
	}
}

// reader is what sensorCollector reads; *conntrack.Sensor is one.
type reader interface {
	Counters() conntrack.Counters
	Statistics() (conntrack.Statistics, error)
}

// sensorCollector reads the kernel's and the sensor's counters at each scrape.
// When the kernel's cannot be read their metrics are absent, because an old
// value would hide that.
type sensorCollector struct {
	from reader
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
		"Number of messages that the sensor was woken with.", "sensor")
	lostDesc = describe("sensor_lost_total",
		"Number of messages that the kernel could not queue for the sensor.", "sensor")
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
	ch <- messagesDesc
	ch <- lostDesc
	for _, s := range statistics {
		ch <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (c *sensorCollector) Collect(ch chan<- prometheus.Metric) {
	counters := c.from.Counters()
	ch <- prometheus.MustNewConstMetric(messagesDesc, prometheus.CounterValue, float64(counters.Messages), conntrackSensor)
	ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(counters.Lost), conntrackSensor)
	read, err := c.from.Statistics()
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
