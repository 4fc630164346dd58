package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	original = conntrack.Tuple{
		Source:      netip.MustParseAddrPort("10.244.1.2:41000"),
		Destination: netip.MustParseAddrPort("10.96.0.10:53"),
	}
	loser  = netip.MustParseAddrPort("10.244.3.2:53")
	winner = netip.MustParseAddrPort("10.244.3.3:53")
)

// orphan is an orphaned answer after one and a half seconds.
func orphan() conntrack.Orphan {
	return conntrack.Orphan{Original: original, Backend: loser, Lateness: 1500 * time.Millisecond, Exact: true}
}

// fakeSensor emits what a test calls emit with, between running and end.
type fakeSensor struct {
	running chan struct{} // closed when Run has begun
	emit    func(conntrack.Finding)
	end     chan error    // what Run returns before ctx ends
	stuck   chan struct{} // when not nil, Run does not mind ctx until it is closed
	closed  bool
	lookups *fakeLookups // nil: the kernel refuses one

	counters   conntrack.Counters
	statistics func() (conntrack.Statistics, error)
}

func newFakeSensor() *fakeSensor {
	return &fakeSensor{
		running:    make(chan struct{}),
		end:        make(chan error),
		statistics: func() (conntrack.Statistics, error) { return conntrack.Statistics{Entries: 7, Limit: 100}, nil },
	}
}

// watch is Watch with a listener and a rim of the test's.
func watch(ctx context.Context, cfg Config, log *slog.Logger, version Version, listen listenFunc, rim rim) error {
	return run(ctx, door{"http.watch", cfg.HTTP.Watch, cfg.HTTP.WebConfig, cfg.Node(), listen}, log, version, newNames(cfg, log, rim))
}

type listenFunc func(ctx context.Context, key, address string) (net.Listener, error)

// rim is one with this sensor, a lookup sensor and a finder.
func (f *fakeSensor) rim() rim {
	return rim{
		conntrack: func(conntrack.Config) (sensor, error) { return f, nil },
		lookup: func(lookup.Config) (lookupSource, error) {
			if f.lookups == nil {
				return nil, fmt.Errorf("open: %w", lookup.ErrPermission)
			}
			return f.lookups, nil
		},
		finder: func(cfg workload.Config) (finder, error) { return &fakeFinder{gone: cfg.Gone}, nil },
		probe:  func(Config, *slog.Logger) (prober, error) { return nil, nil },
	}
}

// fakeLookups is a lookup sensor that emits what a test calls emit with.
type fakeLookups struct {
	running chan struct{}
	emit    func(lookup.Event)
	last    []lookup.Event // emitted at the end
}

func (f *fakeLookups) Run(ctx context.Context, emit func(lookup.Event)) error {
	f.emit = emit
	close(f.running)
	<-ctx.Done()
	for _, e := range f.last {
		emit(e)
	}
	return nil
}

func (f *fakeLookups) Counters() lookup.Counters {
	return lookup.Counters{Packets: 21, Lost: 22, Discarded: 23, Malformed: 24, Pending: 25}
}
func (f *fakeLookups) Close() error { return nil }

// fakeFinder knows the pods of a map by address.
type fakeFinder struct {
	mu      sync.Mutex
	pods    map[netip.Addr]workload.Workload
	located []netip.AddrPort
	gone    func(workload.Workload)
	alive   bool
}

func (f *fakeFinder) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (f *fakeFinder) Close() error                  { return nil }
func (f *fakeFinder) Alive(workload.Workload) bool  { return f.alive }

func (f *fakeFinder) At(_ int, client netip.AddrPort, _ time.Time) (workload.Workload, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.pods[client.Addr()]
	return w, ok
}

func (f *fakeFinder) Locate(_ context.Context, _ int, client netip.AddrPort, _ time.Time) (workload.Workload, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.located = append(f.located, client)
	return workload.Workload{}, false
}

func (f *fakeSensor) Run(ctx context.Context, emit func(conntrack.Finding)) error {
	f.emit = emit
	close(f.running)
	if f.stuck != nil {
		<-f.stuck
	}
	select {
	case err := <-f.end:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (f *fakeSensor) Counters() conntrack.Counters              { return f.counters }
func (f *fakeSensor) Statistics() (conntrack.Statistics, error) { return f.statistics() }
func (f *fakeSensor) Close() error                              { f.closed = true; return nil }

// pipes is a listener whose connections are pipes, for a synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) listen(context.Context, string, string) (net.Listener, error) { return p, nil }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9853} }

// logs is a log that a test reads.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
	gate func(line string) // called before a line is written
}

func (l *logs) Write(p []byte) (int, error) {
	if l.gate != nil {
		l.gate(string(p))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var timestamp = regexp.MustCompile(`(?m)^time=\S+ `)

// take gives the lines since the last call, without their times.
func (l *logs) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := timestamp.ReplaceAllString(l.text.String(), "")
	l.text.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // the clock of the bubble is fake
}
