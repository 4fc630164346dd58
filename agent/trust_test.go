package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
)

// fakeSyncer emits what a test calls emit with, between running and end.
type fakeSyncer struct {
	cfg     certsync.Config
	running chan struct{} // closed when something runs
	emit    func(certsync.Status)
	end     chan error    // what Run returns before ctx ends
	stuck   chan struct{} // when not nil, nothing minds ctx until it is closed
	closed  bool
	leave   func() // called by Close: it ended in a restart

	did     string // what was done
	status  certsync.Status
	preview certsync.Preview
	err     error
}

func newFakeSyncer() *fakeSyncer {
	return &fakeSyncer{running: make(chan struct{}), end: make(chan error)}
}

func (f *fakeSyncer) open(cfg certsync.Config) (truster, error) {
	f.cfg = cfg
	return f, nil
}

func (f *fakeSyncer) Run(ctx context.Context, emit func(certsync.Status)) error {
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

func (f *fakeSyncer) one(what string) error {
	f.did = what
	close(f.running)
	if f.stuck != nil {
		<-f.stuck
	}
	return f.err
}

func (f *fakeSyncer) Once(context.Context) (certsync.Status, error) { return f.status, f.one("once") }
func (f *fakeSyncer) Uninstall(context.Context) (certsync.Status, error) {
	return f.status, f.one("uninstall")
}
func (f *fakeSyncer) Plan(context.Context) (certsync.Preview, error) { return f.preview, f.one("plan") }
func (f *fakeSyncer) Close() error {
	if f.closed = true; f.leave != nil {
		f.leave()
	}
	return nil
}

// trusting is the trust half with a fake syncer.
type trusting struct {
	syncer *fakeSyncer
	logs   *logs
	cancel context.CancelFunc
	result chan error
}

// startTrust runs the trust half until the syncer runs.
func startTrust(t *testing.T, fake *fakeSyncer, listen listenFunc, more ...half) *trusting {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &trusting{syncer: fake, logs: &logs{}, cancel: cancel, result: make(chan error, 1)}
	cfg := Default()
	log := NewLogger(r.logs, cfg.Log)
	go func() {
		r.result <- run(ctx, door{"http.trust", "127.0.0.1:0", "", cfg.Node(), listen}, log, Version{"v1", "abc", "go1"}, append(more, newTrust(cfg, log, fake.open))...)
	}()
	<-fake.running
	return r
}

func TestTrust(t *testing.T) {
	var address string
	r := startTrust(t, newFakeSyncer(), bound(&address))
	page := func(path string, status int, body string) {
		t.Helper()
		if gotStatus, got := fetch(t, address, path); gotStatus != status || body != "" && got != body {
			t.Errorf("%s gives %d %q, want %d %q", path, gotStatus, got, status, body)
		}
	}
	page("/healthz", http.StatusOK, "ok\n")
	page("/readyz", http.StatusServiceUnavailable, "the first pass of trust has not ended yet\n")
	page("/api/v1/incidents", http.StatusNotFound, "")
	if _, body := fetch(t, address, "/"); !strings.Contains(body, "not ready: the first pass of trust has not ended yet") || !strings.Contains(body, "<code>nodestead watch</code> or") {
		t.Errorf("/ does not say that it waits for its first pass, or that names does not run:\n%s", body)
	}

	// A source that is broken is a reason, too.
	r.syncer.emit(certsync.Status{Time: time.Unix(1e9, 0), Broken: []anchor.Refusal{{Source: "/etc/nodestead/ca", Reason: "missing"}}})
	page("/readyz", http.StatusOK, "ok\n")
	_, body := fetch(t, address, "/metrics")
	for _, want := range []string{
		"\nnodestead_build_info{", "\ngo_goroutines ", "\nprocess_start_time_seconds ",
		"\nnodestead_trust_last_pass_timestamp_seconds 1e+09\n", "\nnodestead_ca_source_broken{source=\"/etc/nodestead/ca\"} 1\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %q:\n%s", want, body)
		}
	}
	if strings.Contains(body, "nodestead_dns_") {
		t.Errorf("/metrics has those of names:\n%s", body)
	}
	r.cancel()
	if err := <-r.result; err != nil {
		t.Errorf("run gives %v after its context ended", err)
	}
	if !r.syncer.closed {
		t.Error("the syncer was not closed")
	}
	expect(t, r.logs.take(),
		`level=INFO msg="nodestead started" version=v1 commit=abc go=go1 sources=/etc/nodestead/ca registries="" http=`+address,
		`level=INFO msg="nodestead stopped"`)
}

func TestTrustEndsWithItsSyncer(t *testing.T) {
	for want, end := range map[string]error{
		"trust: the root is gone":       errors.New("the root is gone"),
		"trust: ended without a reason": nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			r := startTrust(t, newFakeSyncer(), newPipes().listen)
			r.syncer.end <- end
			if err := <-r.result; err == nil || err.Error() != want {
				t.Errorf("run gives %v, want %s", err, want)
			}
			if !r.syncer.closed {
				t.Error("the syncer was not closed")
			}
		})
	}
}

// TestStopInAPass: a pass that does not mind its context does not hold up the
// stop for ever.
func TestStopInAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFakeSyncer()
		fake.stuck = make(chan struct{})
		r := startTrust(t, fake, newPipes().listen)
		began := time.Now()
		r.cancel()
		if err := <-r.result; err == nil || !strings.Contains(err.Error(), "no clean stop within 4.5s") {
			t.Errorf("run gives %v", err)
		}
		if took := time.Since(began); took >= 5*time.Second {
			t.Errorf("the stop took %v", took)
		}
		if fake.closed {
			t.Error("the syncer was closed while it worked")
		}
		close(fake.stuck)
	})
}

// TestBothHalves runs names and trust in one process.
func TestBothHalves(t *testing.T) {
	var address string
	sensor := newFakeSensor()
	cfg := Default()
	r := startTrust(t, newFakeSyncer(), bound(&address), newNames(cfg, slog.New(slog.DiscardHandler), sensor.rim()))
	<-sensor.running
	if status, body := fetch(t, address, "/readyz"); status != http.StatusServiceUnavailable || body != "the first pass of trust has not ended yet\n" {
		t.Errorf("/readyz gives %d %q before the first pass", status, body)
	}
	r.syncer.emit(certsync.Status{Time: time.Now()})
	if status, body := fetch(t, address, "/readyz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("/readyz gives %d %q", status, body)
	}
	if status, _ := fetch(t, address, "/api/v1/incidents"); status != http.StatusOK {
		t.Errorf("/api/v1/incidents gives %d", status)
	}
	if status, body := fetch(t, address, "/"); status != http.StatusOK || strings.Contains(body, "does not run here") || !strings.Contains(body, "trust is in sync") {
		t.Errorf("/ gives %d, and not both halves:\n%s", status, body)
	}
	_, body := fetch(t, address, "/metrics")
	for _, want := range []string{"\nnodestead_dns_lookup_timeouts_total{", "\nnodestead_trust_last_pass_timestamp_seconds "} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %q:\n%s", want, body)
		}
	}
	if n := strings.Count(body, "\nnodestead_build_info{"); n != 1 {
		t.Errorf("/metrics has build_info %d times", n)
	}

	// The end of one is the end of both.
	r.syncer.end <- errors.New("the root is gone")
	if err := <-r.result; err == nil || err.Error() != "trust: the root is gone" {
		t.Errorf("run gives %v", err)
	}
	if !r.syncer.closed || !sensor.closed {
		t.Error("not both were closed")
	}
	expect(t, r.logs.take(),
		`level=INFO msg="nodestead started" version=v1 commit=abc go=go1 ports=53 sources=/etc/nodestead/ca registries="" http=`+address)
}

// TestHalfThatCannotStart: the other one is closed, and the error says which.
func TestHalfThatCannotStart(t *testing.T) {
	listener, sensor := newPipes(), newFakeSensor()
	cfg, log := Default(), slog.New(slog.DiscardHandler)
	cause := errors.New("/host: permission denied")
	err := run(t.Context(), door{"http.watch", ":9853", "", "worker-7", listener.listen}, log, Version{},
		newNames(cfg, log, sensor.rim()),
		newTrust(cfg, log, func(certsync.Config) (truster, error) { return nil, cause }))
	if want := "open the node for trust: /host: permission denied: mount its file system and name where (host_root), and run as root"; err == nil || err.Error() != want || !errors.Is(err, cause) {
		t.Errorf("run gives %v, want %s", err, want)
	}
	if !sensor.closed {
		t.Error("the sensor was not closed")
	}
	select {
	case <-listener.closed:
	default:
		t.Error("the listener was not closed")
	}
}

func TestOneThingAndTheEnd(t *testing.T) {
	pending := certsync.Status{
		Broken:   []anchor.Refusal{{Source: "/ca", Reason: "missing", Detail: "no such directory"}},
		Runtimes: []certsync.RuntimeStatus{{Name: daemon.Docker, Decision: daemon.Decision{Action: daemon.Pending, Reason: "disruptive", Detail: "no live-restore"}}},
	}
	once := func(ctx context.Context, h *trust, _ io.Writer) error {
		return trustOnce(ctx, h, truster.Once, "again")
	}
	uninstall := func(ctx context.Context, h *trust, _ io.Writer) error {
		return trustOnce(ctx, h, truster.Uninstall, "again")
	}
	preview := certsync.Preview{Broken: pending.Broken}
	var printed strings.Builder
	if err := preview.Print(&printed); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		do     func(context.Context, *trust, io.Writer) error
		status certsync.Status
		err    error
		did    string
		out    string
		want   string
	}{
		{name: "in sync", do: once, did: "once"},
		{name: "not in sync", do: once, status: pending, did: "once",
			want: "source /ca: missing: no such directory\nrestart of docker is pending: disruptive: no live-restore"},
		{name: "no end", do: once, err: errors.New("the root is gone"), did: "once", want: "the root is gone"},
		{name: "gone", do: uninstall, did: "uninstall"},
		{name: "not gone", do: uninstall, status: pending, did: "uninstall",
			want: "source /ca: missing: no such directory\nrestart of docker is pending: disruptive: no live-restore"},
		{name: "plan", do: trustPlan, status: pending, did: "plan", out: printed.String()},
		{name: "no plan", do: trustPlan, err: errors.New("the root is gone"), did: "plan", want: "the root is gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake := newFakeSyncer()
			fake.status, fake.preview, fake.err = tt.status, preview, tt.err
			var out bytes.Buffer
			got := ""
			if err := tt.do(t.Context(), newTrust(Default(), slog.New(slog.DiscardHandler), fake.open), &out); err != nil {
				got = err.Error()
			}
			if got != tt.want || out.String() != tt.out || fake.did != tt.did {
				t.Errorf("%s gives %q, output %q, want %q, %q of %s", fake.did, got, out.String(), tt.want, tt.out, tt.did)
			}
			if !fake.closed {
				t.Error("the syncer was not closed")
			}
		})
	}
}

// TestStopOfOnePass: a signal ends it, soon.
func TestStopOfOnePass(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			fake := newFakeSyncer()
			fake.err = context.Canceled
			fake.stuck = make(chan struct{})
			result := make(chan error, 1)
			go func() {
				result <- trustOnce(ctx, newTrust(Default(), slog.New(slog.DiscardHandler), fake.open), truster.Once, "again")
			}()
			<-fake.running
			cancel()
			want := "no clean stop within 4.5s"
			if !stuck {
				close(fake.stuck)
				want = "stopped before it was done"
			}
			if err := <-result; err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("it ends with %v, want %s", err, want)
			}
			if stuck {
				close(fake.stuck)
			}
		})
	}
}

func TestSync(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	fingerprint := strings.Repeat("ab", 32)
	cfg, err := Load(write(t, `
host_root: /node
trust:
  sources: [/a, /b]
  allow: ["`+strings.ToUpper(fingerprint)+`"]
  overlap: 72h
  interval: 5s
  store: off
  certs_d: off
  registries: ["registry.example.de:5000"]
  runtimes:
    docker: {unit: snap.docker.dockerd.service, restart: always, disruptive: true}
    containerd: {unit: k3s.service, restart: never}
    crio: {enabled: off}
`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := certsync.Config{
		HostRoot: "/node", Sources: []string{"/a", "/b"}, Allow: []string{fingerprint},
		Overlap: 72 * time.Hour, Interval: 5 * time.Second,
		Registries: []string{"registry.example.de:5000"},
		Runtimes: []daemon.Config{
			{Name: daemon.Docker, Unit: "snap.docker.dockerd.service", Restart: daemon.Always, Disruptive: true},
			{Name: daemon.Containerd, Unit: "k3s.service", Restart: daemon.Never},
		},
	}
	got := cfg.Sync(log)
	if got.Log != log {
		t.Error("it has another log")
	}
	got.Log = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	got = Default().Sync(nil)
	want = certsync.Config{
		HostRoot: Default().Root(), Sources: []string{"/etc/nodestead/ca"}, Interval: time.Minute, Store: true, CertsD: true,
		Runtimes: []daemon.Config{
			{Name: daemon.Docker, Unit: "docker.service", Restart: daemon.Auto},
			{Name: daemon.Containerd, Unit: "containerd.service", Restart: daemon.Auto},
			{Name: daemon.CRIO, Unit: "crio.service", Restart: daemon.Auto},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("of the defaults (-want +got):\n%s", diff)
	}
}
