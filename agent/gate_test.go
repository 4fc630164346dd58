package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync"
)

// weekend is a window from Saturday 22:00 to Sunday 4:00 in Berlin.
var weekend = RestartsConfig{Concurrency: 1, Days: Days{"sat"}, Start: "22:00", End: "04:00", TimeZone: "Europe/Berlin"}

func when(t *testing.T, text string) func() time.Time {
	t.Helper()
	moment, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return func() time.Time { return moment }
}

// TestGateWindow: the window holds in a cluster and outside of one, for the agent
// and for a single pass, and nobody is asked for a slot while it is closed.
func TestGateWindow(t *testing.T) {
	closed := certsync.Shut{
		Reason: certsync.OutsideWindow,
		Detail: "no restart may begin before Sat 2026-01-31 22:00 CET",
		Remedy: "none: it is restarted then; or change trust.restarts",
		Again:  30 * time.Minute,
	}
	pass, err := passGate(weekend, false)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.Trust.Restarts = weekend
	alone, err := newKubernetes(cfg, nil, false, true, nil).gate()
	if err != nil {
		t.Fatal(err)
	}
	within, err := passGate(weekend, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, g := range map[string]certsync.Gate{"a single pass": pass, "outside of a cluster": alone, "in a cluster": within} {
		g := g.(*gate)
		asked := false
		g.permit = func() (func(), bool, string) { asked = true; return func() {}, true, "" }
		g.now = when(t, "2026-01-31T20:30:00Z")
		_, shut := g.Enter()
		if diff := cmp.Diff(closed, shut); diff != "" || asked {
			t.Errorf("%s, before it opens, asked %v (-want +got):\n%s", name, asked, diff)
		}
		if diff := cmp.Diff(closed, g.Look()); diff != "" {
			t.Errorf("%s, a look (-want +got):\n%s", name, diff)
		}
		g.now = when(t, "2026-02-01T02:59:00Z") // Sunday, 3:59 in Berlin
		if _, shut := g.Enter(); shut.Reason != "" || asked != (g.slots > 0) {
			t.Errorf("%s, while it is open, asked %v: %+v", name, asked, shut)
		}
	}
}

func TestGateSlots(t *testing.T) {
	g, err := newGate(defaultRestarts())
	if err != nil {
		t.Fatal(err)
	}
	released := 0
	has := false
	g.slots, g.permit = 3, func() (func(), bool, string) {
		if has {
			return func() { released++ }, true, ""
		}
		return nil, false, "waiting for a restart slot, holder node-7"
	}
	leave, shut := g.Enter()
	if leave != nil || shut.Reason != certsync.WaitingForSlot || shut.Detail != "waiting for a restart slot, holder node-7" || shut.Remedy == "" || shut.Again != 0 {
		t.Errorf("without a slot: %+v", shut)
	}
	want := certsync.Shut{Reason: certsync.WaitingForSlot, Detail: "it would have to wait for a restart slot of the cluster, which has 3"}
	if diff := cmp.Diff(want, g.Look()); diff != "" {
		t.Errorf("a look (-want +got):\n%s", diff)
	}
	has = true
	if leave, shut = g.Enter(); leave == nil || shut.Reason != "" {
		t.Fatalf("with a slot: %+v", shut)
	}
	if leave(); released != 1 {
		t.Errorf("released %d times", released)
	}
}

// TestPassGate: a single pass waits for nobody.
func TestPassGate(t *testing.T) {
	for _, tt := range []struct {
		name        string
		pod         bool
		concurrency Nodes
		want        string
	}{
		{"outside of a pod", false, 1, ""},
		{"no limit", true, 0, ""},
		{"in a pod", true, 1, certsync.WaitingForSlot},
	} {
		r := defaultRestarts()
		r.Concurrency = tt.concurrency
		g, err := passGate(r, tt.pod)
		if err != nil {
			t.Fatal(err)
		}
		_, shut := g.Enter()
		if shut.Reason != tt.want || g.Look().Reason != tt.want {
			t.Errorf("%s: %+v, %+v", tt.name, shut, g.Look())
		}
		if tt.want != "" && (!strings.Contains(shut.Detail, "does not wait") || !strings.Contains(shut.Detail, "trust.restarts.concurrency=0")) {
			t.Errorf("%s: it does not say how to go on: %+v", tt.name, shut)
		}
	}
}

// TestNoServiceAccount: one line at the start, no Events, no restart, no crash.
func TestNoServiceAccount(t *testing.T) {
	none := func() (kubeAPI, error) { return nil, errors.New("no service account is mounted") }
	for _, tt := range []struct {
		name     string
		restarts bool
		change   func(*Config)
		line     string
		gate     string
	}{
		{"both", true, func(*Config) {}, `level=WARN msg="the cluster cannot be joined" err="no service account is mounted" events=off restarts=waiting_for_slot remedy="give the pod a service account (automountServiceAccountToken: true), or set kubernetes.events: off and trust.restarts.concurrency: 0"`, certsync.WaitingForSlot},
		{"names alone", false, func(*Config) {}, `level=WARN msg="the cluster cannot be joined" err="no service account is mounted" events=off remedy="give the pod a service account (automountServiceAccountToken: true), or set kubernetes.events: off"`, ""},
		{"nothing is wanted", true, func(c *Config) { c.Kubernetes.Events, c.Trust.Restarts.Concurrency = off, 0 }, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Default()
			tt.change(&cfg)
			var got logs
			k := newKubernetes(cfg, NewLogger(&got, cfg.Log), true, tt.restarts, none)
			if err := k.open(); err != nil {
				t.Fatal(err)
			}
			var want []string
			if tt.line != "" {
				want = []string{tt.line}
			}
			expect(t, got.take(), want...)
			g, err := k.gate()
			if err != nil {
				t.Fatal(err)
			}
			_, shut := g.Enter()
			if shut.Reason != tt.gate || tt.gate != "" && (!strings.Contains(shut.Detail, "no service account is mounted") || !strings.Contains(shut.Remedy, "automountServiceAccountToken")) {
				t.Errorf("the gate: %+v", shut)
			}
			if k.events != nil || k.permits != nil {
				t.Error("there are Events or slots")
			}
			if err := k.close(); err != nil {
				t.Error(err)
			}
		})
	}
}
