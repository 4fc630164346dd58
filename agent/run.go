package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

// Version says what the agent was built from. It is logged at the start, and
// exported as nodestead_build_info.
type Version struct {
	Version string // of the release
	Commit  string // of the source
	Go      string // release of Go
}

// The agent stops within stopWithin, of which an HTTP request that has begun
// may take httpWithin.
const (
	stopWithin = 4500 * time.Millisecond
	httpWithin = 2 * time.Second
)

// Run runs the agent until ctx ends, in the network namespace of the calling
// thread. It returns nil only when ctx has ended and all has stopped in order;
// the error names what failed, and what an operator can do where that is
// known.
func Run(ctx context.Context, cfg Config, log *slog.Logger, version Version) error {
	return run(ctx, cfg, log, version, realRim())
}

// rim is where the agent meets the kernel, the container runtime and the
// network.
type rim struct {
	listen    func(ctx context.Context, address string) (net.Listener, error)
	conntrack func(conntrack.Config) (sensor, error)
	lookup    func(lookup.Config) (lookupSource, error)
	finder    func(workload.Config) (finder, error)
	probe     func(Config, *slog.Logger) (prober, error) // nil when it is off
}

// realRim is the rim of the agent that runs on a node.
func realRim() rim {
	return rim{listen: listen, conntrack: openConntrack, lookup: openLookup, finder: openFinder, probe: newProbe}
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

func run(ctx context.Context, cfg Config, log *slog.Logger, version Version, rim rim) (err error) {
	listener, err := rim.listen(ctx, string(cfg.HTTP.Watch))
	if err != nil {
		return err
	}
	a := &agent{log: log, listener: listener}
	if err := a.open(cfg, rim); err != nil {
		return errors.Join(err, a.close(), listener.Close())
	}
	log.Info("nodestead started", "version", version.Version, "commit", version.Commit, "go", version.Go,
		"ports", cfg.Names.Ports.String(), "http", listener.Addr().String())

	group, ctx := errgroup.WithContext(ctx)
	stopped := make(chan error, 1)
	a.work(ctx, group, cfg, version)
	go func() {
		err := group.Wait()
		if closeErr := a.close(); err == nil {
			err = closeErr
		}
		stopped <- err
	}()
	<-ctx.Done()
	select {
	case err = <-stopped:
	case <-time.After(stopWithin):
		err = fmt.Errorf("no clean stop within %v: a loop or the log is stuck", stopWithin)
	}
	if err == nil {
		log.Info("nodestead stopped")
	}
	return err
}

// agent is all that runs.
type agent struct {
	log       *slog.Logger
	listener  net.Listener
	conntrack sensor
	lookup    lookupSource // nil when the kernel refused it
	unseen    *lookup.Blindness
	finder    finder
	probe     prober // nil when it is off
	left      func(workload.Workload)
}

// open opens all that needs the namespace of the calling thread.
func (a *agent) open(cfg Config, rim rim) (err error) {
	ports := make([]uint16, len(cfg.Names.Ports))
	for i, port := range cfg.Names.Ports {
		ports[i] = uint16(port)
	}
	if a.conntrack, err = rim.conntrack(conntrack.Config{Ports: ports}); err != nil {
		return explainOpen(err)
	}
	var interfaces []string
	for _, i := range cfg.Names.Lookups.Interfaces {
		interfaces = append(interfaces, string(i))
	}
	a.lookup, err = rim.lookup(lookup.Config{
		Ports: ports, Interfaces: interfaces,
		Pending: int(cfg.Names.Lookups.Pending), Slow: time.Duration(cfg.Names.Lookups.Slow),
	})
	switch {
	case errors.Is(err, lookup.ErrPermission):
		// conntrack alone still tells of orphaned answers.
		a.lookup = nil
		a.unseen = &lookup.Blindness{
			Time: time.Now(), Reason: lookup.NoPermission, Blind: true, Evidence: err.Error(),
			Remedy: "give the agent securityContext.capabilities.add: [NET_ADMIN, NET_RAW], or run it as root; until then it knows no names, and most lost lookups are not seen",
		}
	case err != nil:
		return fmt.Errorf("open the lookup sensor: %w", err)
	}
	a.finder, err = rim.finder(workload.Config{
		HostRoot: cfg.Root(), CRI: string(cfg.Names.Workloads.CRI), Proc: string(cfg.Names.Workloads.Proc), Log: a.log,
		Gone: func(w workload.Workload) { a.left(w) },
	})
	if err != nil {
		return fmt.Errorf("open what tells pods apart: %w", err)
	}
	a.probe, err = rim.probe(cfg, a.log)
	return err
}

func (a *agent) close() error {
	var errs []error
	if a.conntrack != nil {
		if err := a.conntrack.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the conntrack sensor: %w", err))
		}
	}
	if a.lookup != nil {
		if err := a.lookup.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the lookup sensor: %w", err))
		}
	}
	if a.finder != nil {
		errs = append(errs, a.finder.Close())
	}
	return errors.Join(errs...)
}

// work starts all loops. The order of their end: the sensors, then the reporter
// once it has logged what was left, then HTTP, which so serves the last counts.
func (a *agent) work(ctx context.Context, group *errgroup.Group, cfg Config, version Version) {
	registry := prometheus.NewRegistry()
	from := readers{conntrack: a.conntrack}
	if a.lookup != nil {
		from.lookup = a.lookup.Counters
	}
	metrics := newMetrics(registry, version, bool(cfg.Names.Metrics.PodLabel), from, a.log)
	a.left = metrics.left
	reporter := newReporter(a.log)
	history := &history{}
	desk := newDesk(a.lookup != nil, a.finder, metrics, reporter, history)
	if a.unseen != nil {
		desk.event(*a.unseen)
	}
	health := &health{why: "the sensors do not read yet"}
	server := newServer(registry, health, history, a.log)
	reported := make(chan struct{})

	var sensors sync.WaitGroup
	sense := func(name string, run func() error) {
		sensors.Add(1)
		group.Go(func() error {
			defer sensors.Done()
			err := run()
			switch {
			case err != nil:
				err = fmt.Errorf("%s: %w", name, err)
			case ctx.Err() == nil:
				err = fmt.Errorf("%s: ended without a reason", name)
			default:
				health.set(true, false, "stopping")
				return nil
			}
			health.set(false, false, err.Error())
			return err
		})
	}
	health.set(true, true, "")
	sense("conntrack sensor", func() error { return a.conntrack.Run(ctx, desk.finding) })
	if a.lookup != nil {
		sense("lookup sensor", func() error { return a.lookup.Run(ctx, desk.event) })
	}
	group.Go(func() error { return a.finder.Run(ctx) })
	sensors.Add(1) // what is due each second may be to report as well
	group.Go(func() error {
		defer sensors.Done()
		return desk.run(ctx)
	})
	group.Go(func() error { return desk.locate(ctx) })
	if a.probe != nil {
		group.Go(func() error { return a.probe.Run(ctx, metrics.probe) })
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
	group.Go(func() error {
		if err := server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve http.watch %s: %w", a.listener.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		<-reported
		return shutdown(server, httpWithin)
	})
}

// explainOpen says what to do about an error of conntrack.Open.
func explainOpen(err error) error {
	if !errors.Is(err, conntrack.ErrPermission) {
		return fmt.Errorf("open the conntrack sensor: %w", err)
	}
	return fmt.Errorf("open the conntrack sensor: %w: give it with securityContext.capabilities.add: [NET_ADMIN], or run as root", err)
}
