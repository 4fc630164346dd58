package agent

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/cluster"
	"github.com/nodestead/nodestead/workload"
)

// TestReadyWithoutAPIServer: whether the pod is alive and ready does not depend on the
// API server, nor on whether there is one.
func TestReadyWithoutAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, pod := range []bool{true, false} {
			api := newFakeAPI()
			api.stuck = true
			cfg := Default()
			k := newKubernetes(cfg, NewLogger(&logs{}, cfg.Log), pod, true, api.join)
			if err := k.open(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			group, ctx := errgroup.WithContext(ctx)
			h := &health{why: "it has not started yet"}
			registry := prometheus.NewRegistry()
			<-k.work(ctx, group, registry, nil, h)
			k.trust(certsync.Status{}, full())
			pass(10 * time.Minute)
			if alive, ready, why := h.state(); !alive || !ready {
				t.Errorf("in a pod: %v: alive %v, ready %v: %s", pod, alive, ready, why)
			}
			if metrics, err := registry.Gather(); err != nil || (len(metrics) == 1 && metrics[0].GetName() == "nodestead_events_lost_total") != pod {
				t.Errorf("in a pod: %v: metrics %v, %v", pod, metrics, err)
			}
			cancel()
			if err := group.Wait(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestEventsOfNames: the half that sees lookups hands its incidents on.
func TestEventsOfNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, fake, cfg := newFakeAPI(), newFakeSensor(), Default()
		log := NewLogger(&logs{}, cfg.Log)
		k := newKubernetes(cfg, log, true, false, api.join)
		rim := fake.rim()
		rim.finder = func(workload.Config) (finder, error) {
			return &fakeFinder{pods: map[netip.Addr]workload.Workload{original.Source.Addr(): runner}}, nil
		}
		names := newNames(cfg, log, rim)
		names.kubernetes = k
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		at := door{"http.watch", "127.0.0.1:0", "", cfg.Node(), newPipes().listen}
		go func() { result <- run(ctx, at, log, Version{"v1", "abc", "go1"}, k, names) }()
		<-fake.running
		o := orphan()
		o.Time = time.Now()
		fake.emit(o)
		pass(time.Minute)
		if got := api.written(); len(got) != 1 || !strings.HasPrefix(got[0], "Warning OrphanedAnswer ci/runner/") {
			t.Errorf("Events %q", got)
		}
		cancel()
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// TestWindowThatClosesMeanwhile: who has asked for a slot while the window was open
// takes none once it is closed.
func TestWindowThatClosesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		lease := func(holder string) {
			api.mu.Lock()
			defer api.mu.Unlock()
			api.version++
			api.leases["nodestead-restart-0"] = cluster.Lease{Name: "nodestead-restart-0", Version: strconv.Itoa(api.version), Holder: holder}
		}
		// The bubble begins on a Saturday.
		r, gate := inCluster(t, api, func(c *Config) { c.Trust.Restarts.Days = Days{"sat"} })
		pass(23*time.Hour + 30*time.Minute)
		lease("other_1")
		if _, shut := gate.Enter(); shut.Reason != certsync.WaitingForSlot {
			t.Fatalf("%+v", shut)
		}
		for range 40 { // until Sunday
			pass(time.Minute)
			lease("other_1")
		}
		lease("")
		for range 360 {
			pass(10 * time.Second) // a slot that nobody takes up goes back after a minute
			if got := api.holder(); got != "" {
				t.Fatalf("on Sunday %s has taken the slot", got)
			}
		}
		r.stop(t)
	})
}
