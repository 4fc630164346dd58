package agent

import (
	"maps"
	"math"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nodestead/nodestead/lookup"
)

// durations collects the histograms that the lookup sensor counted, and serves
// each as a classic and a native histogram at once. The library's own histogram
// takes one observation at a time, which is too dear at 30,000 a second.
type durations struct {
	mu  sync.Mutex
	all map[durationKey]*durationSum
}

type durationKey struct{ namespace, resolver string }

type durationSum struct {
	count   uint64
	sum     float64
	classic [len(lookup.DurationBounds) + 1]uint64
	native  []uint64
}

var durationDesc = prometheus.NewDesc("nodestead_dns_lookup_duration_seconds",
	"Time from a DNS question to its acceptable answer, as the client's link saw them.", []string{"namespace", "resolver"}, nil)

// nativeSchema is that of lookup.Durations: buckets grow by 2^(1/8).
const nativeSchema = 3

func (d *durations) add(key durationKey, add lookup.Durations) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.all[key]
	if s == nil {
		s = &durationSum{native: make([]uint64, len(add.Native))}
		d.all[key] = s
	}
	s.count += add.Count
	s.sum += add.Sum.Seconds()
	for i, n := range add.Classic {
		s.classic[i] += uint64(n)
	}
	for i, n := range add.Native {
		s.native[i] += uint64(n)
	}
}

// forget drops a namespace.
func (d *durations) forget(namespace string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.all, func(k durationKey, _ *durationSum) bool { return k.namespace == namespace })
}

// Describe implements prometheus.Collector.
func (d *durations) Describe(ch chan<- *prometheus.Desc) { ch <- durationDesc }

// Collect implements prometheus.Collector.
func (d *durations) Collect(ch chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, s := range d.all {
		ch <- &histogram{key: key, data: s.metric()}
	}
}

// metric gives the histogram as it goes over the wire.
func (s *durationSum) metric() *dto.Histogram {
	h := &dto.Histogram{
		SampleCount: new(s.count), SampleSum: new(s.sum),
		Schema: new(int32(nativeSchema)), ZeroThreshold: new(math.Ldexp(1, -128)), ZeroCount: new(uint64(0)),
	}
	sum := uint64(0)
	for i, bound := range lookup.DurationBounds {
		sum += s.classic[i]
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: new(bound.Seconds()), CumulativeCount: new(sum)})
	}
	// Spans of buckets, each count as the difference to the one before
	// (Prometheus' native histograms, integer flavour). A gap of one or two
	// empty buckets costs less than another span.
	const gap = 2
	last, end := int64(0), 0
	put := func(n uint64) {
		*h.PositiveSpan[len(h.PositiveSpan)-1].Length++
		h.PositiveDelta = append(h.PositiveDelta, int64(n)-last)
		last = int64(n)
		end++
	}
	for i, n := range s.native {
		switch {
		case n == 0:
			continue
		case len(h.PositiveSpan) == 0:
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: new(int32(i + lookup.NativeOffset)), Length: new(uint32(0))})
			end = i
		case i-end > gap:
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: new(int32(i - end)), Length: new(uint32(0))})
			end = i
		}
		for end < i {
			put(0)
		}
		put(n)
	}
	return h
}

// histogram is one series of durations.
type histogram struct {
	key  durationKey
	data *dto.Histogram
}

// Desc implements prometheus.Metric.
func (h *histogram) Desc() *prometheus.Desc { return durationDesc }

// Write implements prometheus.Metric.
func (h *histogram) Write(m *dto.Metric) error {
	m.Label = []*dto.LabelPair{
		{Name: new("namespace"), Value: new(h.key.namespace)},
		{Name: new("resolver"), Value: new(h.key.resolver)},
	}
	m.Histogram = h.data
	return nil
}
