package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
	"github.com/nodestead/nodestead/workload"
)

// rim is where names meets the kernel, the container runtime and the network.
type rim struct {
	conntrack func(conntrack.Config) (sensor, error)
	lookup    func(lookup.Config) (lookupSource, error)
	finder    func(workload.Config) (finder, error)
	probe     func(Config, *slog.Logger) (prober, error) // nil when it is off
}

// realRim is the rim of the agent that runs on a node.
func realRim() rim {
	return rim{conntrack: openConntrack, lookup: openLookup, finder: openFinder, probe: newProbe}
}

// sensor is what the agent needs of a conntrack.Sensor.
type sensor interface {
	reader
	Run(ctx context.Context, emit func(conntrack.Finding)) error
	Close() error
}

// lookupSource is what the agent needs of a lookup.Sensor.
type lookupSource interface {
	Run(ctx context.Context, emit func(lookup.Event)) error
	Counters() lookup.Counters
	Close() error
}

// prober is what the agent needs of a probe.Probe.
type prober interface {
	Run(ctx context.Context, emit func(probe.Result)) error
}

// names is the half that watches DNS lookups.
type names struct {
	cfg       Config
	log       *slog.Logger
	rim       rim
	conntrack sensor
	lookup    lookupSource // nil when the kernel refused it
	unseen    *lookup.Blindness
	finder    finder
	probe     prober // nil when it is off
	left      func(workload.Workload)
	history   *history
	board     *board

	kubernetes *kubernetes // nil: none
}

func newNames(cfg Config, log *slog.Logger, rim rim) *names {
	return &names{cfg: cfg, log: log, rim: rim, history: &history{}, board: newBoard()}
}

func (n *names) about() []any { return []any{"ports", n.cfg.Names.Ports.String()} }

func (n *names) open() (err error) {
	cfg, rim := n.cfg, n.rim
	ports := make([]uint16, len(cfg.Names.Ports))
	for i, port := range cfg.Names.Ports {
		ports[i] = uint16(port)
	}
	if n.conntrack, err = rim.conntrack(conntrack.Config{Ports: ports}); err != nil {
		return explainOpen(err)
	}
	var interfaces []string
	for _, i := range cfg.Names.Lookups.Interfaces {
		interfaces = append(interfaces, string(i))
	}
	n.lookup, err = rim.lookup(lookup.Config{
		Ports: ports, Interfaces: interfaces,
		Pending: int(cfg.Names.Lookups.Pending), Slow: time.Duration(cfg.Names.Lookups.Slow),
	})
	switch {
	case errors.Is(err, lookup.ErrPermission):
		// conntrack alone still tells of orphaned answers.
		n.lookup = nil
		n.unseen = &lookup.Blindness{
			Time: time.Now(), Reason: lookup.NoPermission, Blind: true, Evidence: err.Error(),
			Remedy: "give the agent securityContext.capabilities.add: [NET_ADMIN, NET_RAW], or run it as root; until then it knows no names, and most lost lookups are not seen",
		}
	case err != nil:
		return fmt.Errorf("open the lookup sensor: %w", err)
	}
	n.finder, err = rim.finder(workload.Config{
		HostRoot: cfg.Root(), CRI: string(cfg.Names.Workloads.CRI), Proc: string(cfg.Names.Workloads.Proc), Log: n.log,
		Gone: func(w workload.Workload) { n.left(w) },
	})
	if err != nil {
		return fmt.Errorf("open what tells pods apart: %w", err)
	}
	n.probe, err = rim.probe(cfg, n.log)
	return err
}

func (n *names) close() error {
	var errs []error
	if n.conntrack != nil {
		if err := n.conntrack.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the conntrack sensor: %w", err))
		}
	}
	if n.lookup != nil {
		if err := n.lookup.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the lookup sensor: %w", err))
		}
	}
	if n.finder != nil {
		errs = append(errs, n.finder.Close())
	}
	return errors.Join(errs...)
}

// work starts all loops. The order of their end: the sensors, then the reporter
// once it has logged what was left.
func (n *names) work(ctx context.Context, group *errgroup.Group, registry *prometheus.Registry, mux *http.ServeMux, health *health) <-chan struct{} {
	from := readers{conntrack: n.conntrack}
	if n.lookup != nil {
		from.lookup = n.lookup.Counters
	}
	metrics := newMetrics(registry, bool(n.cfg.Names.Metrics.PodLabel), from, n.log)
	n.left = metrics.left
	reporter := newReporter(n.log)
	mux.Handle("GET /api/v1/incidents", limited(n.history))
	desk := newDesk(n.lookup != nil, n.finder, metrics, reporter, n.history, n.board)
	desk.kubernetes = n.kubernetes
	if n.unseen != nil {
		desk.event(*n.unseen)
	}
	reported := make(chan struct{})

	var sensors sync.WaitGroup
	sense := func(name string, run func() error) {
		sensors.Add(1)
		group.Go(func() error {
			defer sensors.Done()
			return ended(ctx, health, name, run())
		})
	}
	health.set(true, true, "")
	sense("conntrack sensor", func() error { return n.conntrack.Run(ctx, desk.finding) })
	if n.lookup != nil {
		sense("lookup sensor", func() error { return n.lookup.Run(ctx, desk.event) })
	}
	group.Go(func() error { return n.finder.Run(ctx) })
	sensors.Add(1) // what is due each second may be to report as well
	group.Go(func() error {
		defer sensors.Done()
		return desk.run(ctx)
	})
	group.Go(func() error { return desk.locate(ctx) })
	if n.probe != nil {
		group.Go(func() error {
			return n.probe.Run(ctx, func(r probe.Result) {
				metrics.probe(r)
				n.board.probe(r)
			})
		})
	}
	group.Go(func() error {
		defer close(reported)
		reporter.run()
		return nil
	})
	group.Go(func() error {
		sensors.Wait()
		desk.finish()
		reporter.close()
		return nil
	})
	return reported
}

// explainOpen says what to do about an error of conntrack.Open.
func explainOpen(err error) error {
	if !errors.Is(err, conntrack.ErrPermission) {
		return fmt.Errorf("open the conntrack sensor: %w", err)
	}
	return fmt.Errorf("open the conntrack sensor: %w: give it with securityContext.capabilities.add: [NET_ADMIN], or run as root", err)
}
