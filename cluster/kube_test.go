//go:build e2e

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// kubePatience is how long what must happen may take, on a machine with far too
// much to do.
const kubePatience = 5 * time.Minute

// kubeAccount is what the agent may do: Leases by name, but the API has no names
// for what is created; Events; and to see its node.
const kubeAccount = `
apiVersion: v1
kind: Namespace
metadata: {name: nodestead}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nodestead, namespace: nodestead}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: nodestead, namespace: nodestead}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [nodestead-restart-0, nodestead-restart-1, nodestead-restart-2], verbs: [get, update]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: nodestead, namespace: nodestead}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: nodestead}
subjects: [{kind: ServiceAccount, name: nodestead, namespace: nodestead}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: nodestead}
rules:
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
- {apiGroups: [""], resources: [nodes], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodestead}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nodestead}
subjects: [{kind: ServiceAccount, name: nodestead, namespace: nodestead}]
---
apiVersion: v1
kind: Pod
metadata: {name: runner}
spec: {containers: [{name: job, image: "registry.invalid/none:1"}]}
`

// kube is a real cluster with the agent's service account.
type kube struct {
	*lab.Kubernetes
	t   *testing.T
	lab *lab.Lab
	box *lab.Box
	dir string // of the service account
}

func startKube(t *testing.T) *kube {
	t.Helper()
	k := &kube{t: t, lab: lab.ForTest(t), dir: t.TempDir()}
	var err error
	if k.box, err = k.lab.Boot(t.Context(), lab.BoxConfig{}); err != nil {
		t.Fatal(err)
	}
	if k.Kubernetes, err = k.box.StartKubernetes(t.Context(), lab.KubernetesConfig{}); err != nil {
		t.Fatal(err)
	}
	if err := k.Apply(t.Context(), kubeAccount); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(k.box.Root(), "etc/kubernetes/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, k.dir, "ca.crt", string(ca))
	write(t, k.dir, "namespace", "nodestead")
	write(t, k.dir, "token", k.kubectl("create", "token", "nodestead", "--namespace=nodestead"))
	return k
}

func (k *kube) kubectl(args ...string) string {
	k.t.Helper()
	out, err := k.Kubectl(k.t.Context(), args...)
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

// client is the client of one agent.
func (k *kube) client() *Client {
	k.t.Helper()
	c, err := newClient("https://127.0.0.1:6443", k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	c.dial = k.lab.Node().DialContext
	k.t.Cleanup(c.Close)
	return c
}

// TestKubernetesAPI proves that a real API server takes what we send, for an
// agent that may do no more than it needs.
func TestKubernetesAPI(t *testing.T) {
	k := startKube(t)
	t.Run("events", k.events)
	t.Run("control plane", k.controlPlane)
	t.Run("slots", k.slots)
}

// events are what kubectl describe shows.
func (k *kube) events(t *testing.T) {
	c := k.client()
	e := NewEvents(c, "node", slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = e.Run(ctx) })
	defer func() { stop(); done.Wait() }()
	uid := k.kubectl("get", "pod", "runner", "--output=jsonpath={.metadata.uid}")
	e.Pod("default", "runner", uid, Finding{Cause: "orphaned_answer", Message: "a lookup was lost", Warning: true})
	e.Node(Finding{Cause: "no_live_restore", Message: "a restart is pending", Warning: true, Count: 3})
	for _, want := range []struct{ what, text string }{
		{"pod/runner", `Warning\s+OrphanedAnswer\s+.*nodestead\s+a lookup was lost`},
		{"node/node", `Warning\s+NoLiveRestore\s+.*x3.*nodestead\s+a restart is pending`},
	} {
		err := lab.Until(ctx, kubePatience, func() error {
			out, err := k.Kubectl(ctx, "describe", want.what)
			if err == nil && !matches(want.text, out) {
				err = fmt.Errorf("kubectl describe %s has no %s:\n%s", want.what, want.text, out)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	// What the ledger would do ten minutes later, and when the answer was lost.
	e.mu.Lock()
	event := e.ledger.entries[eventKey{About{"default", "runner", uid}, "orphaned_answer", ""}].event
	e.mu.Unlock()
	event.Count, event.Message, event.Last = 41, "lookups were lost", time.Now()
	if err := c.RaiseEvent(ctx, event); err != nil {
		t.Error(err)
	}
	if out := k.kubectl("describe", "pod/runner"); !matches(`OrphanedAnswer\s+.*x41.*lookups were lost`, out) {
		t.Errorf("the count is not to be seen:\n%s", out)
	}
	if err := c.CreateEvent(ctx, event); !errors.Is(err, ErrConflict) {
		t.Errorf("an event of the same name: %v", err)
	}
	event.Name += "x"
	if err := c.RaiseEvent(ctx, event); !errors.Is(err, ErrNotFound) {
		t.Errorf("an event that is not there: %v", err)
	}
}

func (k *kube) controlPlane(t *testing.T) {
	c := k.client()
	for _, want := range []bool{false, true} {
		if want {
			k.kubectl("label", "node", "node", "node-role.kubernetes.io/control-plane=")
		}
		if got, err := c.ControlPlane(t.Context(), "node"); got != want || err != nil {
			t.Errorf("of the control plane: %v, %v, want %v", got, err, want)
		}
	}
}

// slots has 50 agents restart twice each, three at once. Some are killed while
// they hold a slot, and the API server is restarted in the middle.
func (k *kube) slots(t *testing.T) {
	const agents, rounds, slots = 50, 2, 3
	w := &witness{holds: make(map[*hold]bool)}
	var mu sync.Mutex
	turns, most := 0, 0
	killed := map[string]bool{"": true} // or free
	ctx, stop := context.WithTimeout(t.Context(), kubePatience)
	defer stop()
	middle := make(chan struct{})
	var all sync.WaitGroup
	for i := range agents {
		s := &Slots{
			cfg: SlotsConfig{
				Leases: k.client(), Node: fmt.Sprintf("node-%d", i), Slots: slots, Log: slog.New(slog.DiscardHandler),
				ControlPlane: func(context.Context) (bool, error) { return false, nil },
			},
			ttl:  5 * time.Second,
			pace: pace{first: 2 * time.Second, shortest: 500 * time.Millisecond, longest: 3 * time.Second, retry: 200 * time.Millisecond},
			now:  time.Now,
		}
		all.Go(func() {
			for round := range rounds {
				life, kill := context.WithCancel(ctx)
				h, err := s.acquire(life)
				if err != nil {
					t.Errorf("agent %d, round %d: %v", i, round, err)
					kill()
					return
				}
				w.add(h)
				release := h.keep(life)
				mu.Lock()
				killed[h.me] = i%8 == 0 && round == 0
				turns++
				most = max(most, w.sure())
				if turns == agents {
					close(middle)
				}
				mu.Unlock()
				_ = sleep(life, time.Duration(rand.Int64N(int64(400*time.Millisecond))))
				if i%8 == 0 && round == 0 { // what it holds is counted on
					kill()
				} else {
					w.drop(h)
				}
				release()
				kill()
			}
		})
	}
	all.Go(func() {
		select {
		case <-middle:
		case <-ctx.Done():
			return
		}
		if _, err := k.box.Run(ctx, "systemctl", "restart", "kube-apiserver.service"); err != nil {
			t.Error(err)
		}
	})
	begin := time.Now()
	all.Wait()
	t.Logf("%d turns of %d agents in %v, at most %d at once", turns, agents, time.Since(begin).Round(100*time.Millisecond), most)
	if w.wrong != "" {
		t.Error(w.wrong)
	}
	if turns != agents*rounds || most > slots || most < 2 {
		t.Errorf("%d turns, want %d; %d at once, want at most %d", turns, agents*rounds, most, slots)
	}
	out := k.kubectl("get", "leases", "--namespace=nodestead", "--output=jsonpath={range .items[*]}{.metadata.name}={.spec.holderIdentity} {end}")
	for i, lease := range strings.Fields(out) {
		if name, holder, _ := strings.Cut(lease, "="); i >= slots || name != fmt.Sprint(slotPrefix, i) || !killed[holder] {
			t.Errorf("in the end nobody who lives holds a slot, but the leases are %s", out)
		}
	}
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
