package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/cluster"
)

// kubeAPI is what the agent needs of a cluster.Client.
type kubeAPI interface {
	cluster.Leases
	cluster.EventAPI
	ControlPlane(ctx context.Context, node string) (bool, error)
	Close()
}

// joiner gives the API of the cluster that this pod is in.
type joiner func() (kubeAPI, error)

// joinCluster makes of a nil pointer with an error a nil interface.
func joinCluster() (kubeAPI, error) {
	c, err := cluster.InCluster()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// inPod tells whether this process runs in a pod: the kubelet sets this variable
// in each, whether it has a service account or not.
func inPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// kubernetes is what both halves have of the cluster's API: Events, and the slots
// of restarts. Outside of a pod it is nothing. It is opened before the halves and
// closed after them; a nil one writes no Events.
type kubernetes struct {
	cfg      Config
	log      *slog.Logger
	pod      bool
	restarts bool // the trust half runs
	join     joiner

	api     kubeAPI         // nil: outside of a pod, not needed, or not to be had
	why     error           // it is not to be had
	events  *cluster.Events // nil: they are off
	permits *cluster.Permits
	ready   chan struct{} // has a value when permits has a slot
}

func newKubernetes(cfg Config, log *slog.Logger, pod, restarts bool, join joiner) *kubernetes {
	return &kubernetes{cfg: cfg, log: log, pod: pod, restarts: restarts, join: join, ready: make(chan struct{}, 1)}
}

// wantsEvents and wantsSlots tell what the settings want of the API.
func (k *kubernetes) wantsEvents() bool { return k.pod && k.cfg.Kubernetes.Events != off }
func (k *kubernetes) wantsSlots() bool {
	return k.pod && k.restarts && k.cfg.Trust.Restarts.Concurrency > 0
}

// open joins the cluster. That this does not succeed ends nothing: names and
// trust need no cluster.
func (k *kubernetes) open() error {
	if !k.wantsEvents() && !k.wantsSlots() {
		return nil
	}
	if k.api, k.why = k.join(); k.why != nil {
		args := []any{"err", k.why, "events", "off"}
		remedy := "give the pod a service account (automountServiceAccountToken: true), or set kubernetes.events: off"
		if k.wantsSlots() {
			args = append(args, "restarts", certsync.WaitingForSlot)
			remedy += " and trust.restarts.concurrency: 0"
		}
		k.log.Warn("the cluster cannot be joined", append(args, "remedy", remedy)...)
		return nil
	}
	if k.wantsEvents() {
		k.events = cluster.NewEvents(k.api, k.cfg.Node(), k.log)
	}
	if !k.wantsSlots() {
		return nil
	}
	window, err := k.cfg.Trust.Restarts.window()
	if err != nil {
		return err
	}
	node := k.cfg.Node()
	slots, err := cluster.NewSlots(cluster.SlotsConfig{
		Leases: k.api, Node: node, Slots: int(k.cfg.Trust.Restarts.Concurrency),
		ControlPlane: func(ctx context.Context) (bool, error) { return k.api.ControlPlane(ctx, node) },
		Windows:      []cluster.Window{window}, Log: k.log,
	})
	if err != nil {
		return fmt.Errorf("limit restarts in the cluster: %w", err)
	}
	k.permits = cluster.NewPermits(slots, func() {
		select {
		case k.ready <- struct{}{}:
		default: // it has one
		}
	})
	return nil
}

func (k *kubernetes) close() error {
	if k.api != nil {
		k.api.Close()
	}
	return nil
}

func (k *kubernetes) about() []any {
	if !k.pod {
		return nil
	}
	about := []any{"node", k.cfg.Node(), "events", k.events != nil}
	if k.wantsSlots() {
		about = append(about, "restart_slots", uint32(k.cfg.Trust.Restarts.Concurrency))
	}
	return about
}

// work sends Events and gets slots. What waits at the end is not sent, so that
// nothing has to wait for it.
func (k *kubernetes) work(ctx context.Context, group *errgroup.Group, registry *prometheus.Registry, _ *http.ServeMux, health *health) <-chan struct{} {
	health.set(true, true, "")
	if k.events != nil {
		registerEvents(registry, k.events.Lost)
		group.Go(func() error { return k.events.Run(ctx) })
	}
	if k.permits != nil {
		group.Go(func() error { return k.permits.Run(ctx) })
	}
	counted := make(chan struct{})
	close(counted)
	return counted
}

// show implements half: what there is to say stands with names and trust.
func (k *kubernetes) show(time.Time, *statusPage) {}

// registerEvents registers the count of what is in no Event.
func registerEvents(registry *prometheus.Registry, lost func() uint64) {
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "nodestead_events_lost_total",
		Help: "Number of incidents and changes of state that are in no Event of Kubernetes, because it could not be written or there were too many.",
	}, func() float64 { return float64(lost()) }))
}
