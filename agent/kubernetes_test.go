package agent

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/cluster"
	"github.com/nodestead/nodestead/workload"
)

// fakeAPI is the API server, in memory.
type fakeAPI struct {
	mu      sync.Mutex
	version int
	leases  map[string]cluster.Lease
	events  []cluster.Event
	err     error // of each request
	stuck   bool  // no request is answered
	closed  bool
}

func newFakeAPI() *fakeAPI {
	return &fakeAPI{leases: map[string]cluster.Lease{"nodestead-restart-0": {Name: "nodestead-restart-0", Version: "0"}}}
}

func (f *fakeAPI) join() (kubeAPI, error) { return f, nil }

func (f *fakeAPI) do(ctx context.Context, fn func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck {
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return ctx.Err()
	}
	if f.err != nil {
		return f.err
	}
	return fn()
}

func (f *fakeAPI) Get(ctx context.Context, name string) (l cluster.Lease, err error) {
	err = f.do(ctx, func() error {
		var ok bool
		if l, ok = f.leases[name]; !ok {
			return cluster.ErrNotFound
		}
		return nil
	})
	return l, err
}

func (f *fakeAPI) Create(context.Context, cluster.Lease) (cluster.Lease, error) {
	return cluster.Lease{}, errors.New("the leases are there")
}

func (f *fakeAPI) Update(ctx context.Context, l cluster.Lease) (cluster.Lease, error) {
	err := f.do(ctx, func() error {
		if f.leases[l.Name].Version != l.Version {
			return cluster.ErrConflict
		}
		f.version++
		l.Version = strconv.Itoa(f.version)
		f.leases[l.Name] = l
		return nil
	})
	return l, err
}

func (f *fakeAPI) CreateEvent(ctx context.Context, e cluster.Event) error {
	return f.do(ctx, func() error { f.events = append(f.events, e); return nil })
}
func (f *fakeAPI) RaiseEvent(ctx context.Context, e cluster.Event) error {
	return f.do(ctx, func() error { f.events = append(f.events, e); return nil })
}
func (f *fakeAPI) ControlPlane(context.Context, string) (bool, error) { return false, nil }
func (f *fakeAPI) Close()                                             { f.closed = true }

// holder is who has the slot.
func (f *fakeAPI) holder() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	name, _, _ := strings.Cut(f.leases["nodestead-restart-0"].Holder, "_")
	return name
}

// written gives the Events so far, as kubectl would.
func (f *fakeAPI) written() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, e := range f.events {
		kind := "Normal"
		if e.Warning {
			kind = "Warning"
		}
		out = append(out, kind+" "+e.Reason+" "+e.Namespace+"/"+e.About.Name+"/"+e.UID+" x"+strconv.FormatUint(e.Count, 10)+" "+e.Message)
	}
	return out
}

// inCluster starts an agent with trust in a pod of a cluster.
func inCluster(t *testing.T, api *fakeAPI, change func(*Config)) (r *trusting, gate certsync.Gate) {
	t.Helper()
	cfg := Default()
	cfg.NodeName = "worker-7"
	if change != nil {
		change(&cfg)
	}
	r = &trusting{syncer: newFakeSyncer(), logs: &logs{}, result: make(chan error, 1)}
	log := NewLogger(r.logs, cfg.Log)
	k := newKubernetes(cfg, log, true, true, api.join)
	half := newTrust(cfg, log, r.syncer.open)
	half.kubernetes = k
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	at := door{"http.trust", "127.0.0.1:0", "", cfg.Node(), newPipes().listen}
	go func() { r.result <- run(ctx, at, log, Version{"v1", "abc", "go1"}, k, half) }()
	<-r.syncer.running
	return r, r.syncer.cfg.Gate
}

func (r *trusting) stop(t *testing.T) {
	t.Helper()
	began := time.Now()
	r.cancel()
	if err := <-r.result; err != nil {
		t.Errorf("run gives %v", err)
	}
	if took := time.Since(began); took >= 5*time.Second {
		t.Errorf("the stop took %v", took)
	}
}

// TestSlotOfTheCluster: a restart waits, a pass is made as soon as there is a slot,
// and the slot goes back.
func TestSlotOfTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r, gate := inCluster(t, api, nil)
		expect(t, r.logs.take(),
			`level=INFO msg="nodestead started" version=v1 commit=abc go=go1 node=worker-7 events=true restart_slots=1 sources=/etc/nodestead/ca registries="" http=127.0.0.1:9853`)
		pass(10 * time.Minute)
		if got := api.holder(); got != "" {
			t.Fatalf("%s has taken a slot that it does not need", got)
		}
		if _, shut := gate.Enter(); shut.Reason != certsync.WaitingForSlot {
			t.Fatalf("at once: %+v", shut)
		}
		select {
		case <-gate.Ready():
		case <-time.After(5 * time.Minute):
			t.Fatal("no slot in five minutes")
		}
		leave, shut := gate.Enter()
		if shut.Reason != "" || api.holder() != "worker-7" {
			t.Fatalf("with a slot of %q: %+v", api.holder(), shut)
		}
		leave()
		if got := api.holder(); got != "" {
			t.Errorf("%s still has the slot", got)
		}
		r.stop(t)
		if !api.closed || !r.syncer.closed {
			t.Error("not all was closed")
		}
	})
}

// TestStopInARestart: the slot of a restart that goes on when the agent has to stop
// is not free, and an API server that answers nothing does not hold up the stop.
func TestStopInARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r, gate := inCluster(t, api, nil)
		gate.Enter()
		<-gate.Ready()
		leave, shut := gate.Enter()
		if shut.Reason != "" {
			t.Fatalf("%+v", shut)
		}
		api.mu.Lock()
		api.stuck = true
		api.mu.Unlock()
		r.syncer.leave = func() {
			if api.closed {
				t.Error("the API was closed before the slot was left")
			}
			leave()
		}
		r.stop(t)
		if got := api.holder(); got != "worker-7" {
			t.Errorf("the slot is %q's, while the restart goes on", got)
		}
	})
}

// TestClosedWindowInTheCluster: nobody takes a slot while the window is closed.
func TestClosedWindowInTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		// The bubble begins on a Saturday, the first of the year 2000.
		r, gate := inCluster(t, api, func(c *Config) { c.Trust.Restarts.Days = Days{"sun"} })
		_, shut := gate.Enter()
		if shut.Reason != certsync.OutsideWindow || shut.Again != 24*time.Hour {
			t.Errorf("%+v", shut)
		}
		pass(shut.Again)
		if got := api.holder(); got != "" {
			t.Errorf("%s has a slot", got)
		}
		if _, shut = gate.Enter(); shut.Reason != certsync.WaitingForSlot {
			t.Errorf("on Sunday: %+v", shut)
		}
		<-gate.Ready()
		leave, shut := gate.Enter()
		if shut.Reason != "" {
			t.Errorf("on Sunday, with a slot: %+v", shut)
		}
		leave()
		r.stop(t)
	})
}

// TestNoAPIServer: a restart waits and says why; all else goes on.
func TestNoAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.err = errors.New("connection refused")
		r, gate := inCluster(t, api, nil)
		gate.Enter()
		pass(10 * time.Minute)
		if _, shut := gate.Enter(); shut.Reason != certsync.WaitingForSlot || !strings.Contains(shut.Detail, "connection refused") {
			t.Errorf("%+v", shut)
		}
		r.syncer.emit(certsync.Status{Time: time.Now()})
		r.stop(t)
	})
}

// TestEventsOnTheNode: a state is told when it begins, a restart when it was made.
func TestEventsOnTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r, _ := inCluster(t, api, nil)
		waits := certsync.Status{Runtimes: []certsync.RuntimeStatus{{
			Name: daemon.Docker, Decision: daemon.Decision{Action: daemon.Pending, Reason: certsync.WaitingForSlot, Detail: "holder a", Remedy: "none"},
		}}}
		for range 30 { // passes that see the same
			r.syncer.emit(waits)
			pass(time.Minute)
		}
		done := certsync.Status{Runtimes: []certsync.RuntimeStatus{{Name: daemon.Docker, Restarts: map[string]int{daemon.Helped: 1}}}}
		r.syncer.emit(done)
		r.syncer.emit(done)
		pass(time.Minute)
		expect(t, api.written(),
			"Normal RestartPendingWaitingForSlot /worker-7/worker-7 x1 restart of docker is pending: waiting_for_slot: holder a. Remedy: none",
			"Normal RuntimeRestarted /worker-7/worker-7 x1 docker was restarted, so that it trusts the private CA (helped)")
		r.stop(t)
	})
}

// TestEventOnThePod: an incident of a known pod is an Event on it; one of nobody
// is none, and neither blocks when the API server does.
func TestEventOnThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		cfg := Default()
		cfg.NodeName = "worker-7"
		k := newKubernetes(cfg, NewLogger(&logs{}, cfg.Log), true, false, api.join)
		if err := k.open(); err != nil {
			t.Fatal(err)
		}
		pod := runner
		pod.UID = "u-1"
		pods := map[netip.Addr]workload.Workload{original.Source.Addr(): pod}
		d, _ := newTestDesk(maps.Clone(pods))
		d.kubernetes = k
		nobody, _ := newTestDesk(nil)
		nobody.kubernetes = k
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := k.events.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		began := time.Now()
		for _, desk := range []*desk{d, nobody} {
			o := orphan()
			o.Time = time.Now()
			desk.finding(o)
			desk.event(lost(began))
		}
		synctest.Wait()
		got := api.written()
		want := "Warning OrphanedAnswer ci/runner/u-1 x1 DNS lookup lost: git.example.de. AAAA at 10.96.0.10:53: answer arrived from "
		if len(got) != 1 || !strings.HasPrefix(got[0], want) || !strings.Contains(got[0], ". Remedy: ") {
			t.Errorf("Events %q, want one that begins with %q", got, want)
		}

		api.mu.Lock()
		api.stuck = true
		api.mu.Unlock()
		for range 2000 {
			d.event(lost(time.Now()))
		}
		cancel()
		running.Wait()
		if time.Since(began) != 0 {
			t.Errorf("the desk waited for %v", time.Since(began))
		}
	})
}

// TestEventsOff: nobody is asked for anything.
func TestEventsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, change := range []func(*Config){
			func(c *Config) { c.Kubernetes.Events = off },
			func(c *Config) { c.Kubernetes.Events, c.Trust.Restarts.Concurrency = off, 0 },
		} {
			api := newFakeAPI()
			r, _ := inCluster(t, api, change)
			r.syncer.emit(full())
			pass(time.Minute)
			if diff := cmp.Diff([]string(nil), api.written()); diff != "" {
				t.Error(diff)
			}
			r.stop(t)
		}
	})
}

// TestEventsDocumented holds docs/trust.md: a row for each reason of an Event on
// the Node.
func TestEventsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/trust.md")
	if err != nil {
		t.Fatal(err)
	}
	want := rows(t, string(page), "Events")
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r, _ := inCluster(t, api, nil)
		defer r.stop(t)
		r.syncer.emit(certsync.Status{Time: time.Now(), Broken: []anchor.Refusal{{Source: "/ca", Reason: anchor.Missing}}})
		pass(time.Minute)
		all := full()
		all.Runtimes[0].Restarts = map[string]int{daemon.Helped: 1, daemon.DidNotHelp: 1, daemon.Failed: 1}
		r.syncer.emit(all)
		pass(time.Minute)
		var got []string
		api.mu.Lock()
		defer api.mu.Unlock()
		for _, e := range api.events {
			if strings.HasPrefix(e.Reason, "RestartPending") {
				e.Reason = "RestartPending…"
			}
			got = append(got, e.Reason)
		}
		if diff := cmp.Diff(want, sorted(got)); diff != "" {
			t.Errorf("docs/trust.md, Events (-on the page +written):\n%s", diff)
		}
	})
}
