package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/conntrack"
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
	return run(ctx, cfg, log, version, rim{
		listen: listen,
		open: func(cfg conntrack.Config) (sensor, error) {
			s, err := conntrack.Open(cfg)
			if err != nil {
				return nil, err // not s: a nil *Sensor is no nil sensor
			}
			return s, nil
		},
	})
}

// rim is where the agent meets the kernel.
type rim struct {
	listen func(ctx context.Context, address string) (net.Listener, error)
	open   func(conntrack.Config) (sensor, error)
}

// sensor is what the agent needs of a conntrack.Sensor.
type sensor interface {
	reader
	Run(ctx context.Context, emit func(conntrack.Finding)) error
	Close() error
}

func run(ctx context.Context, cfg Config, log *slog.Logger, version Version, rim rim) (err error) {
	listener, err := rim.listen(ctx, string(cfg.HTTP.Watch))
	if err != nil {
		return err
	}
	ports := make([]uint16, len(cfg.Names.Ports))
	for i, port := range cfg.Names.Ports {
		ports[i] = uint16(port)
	}
	s, err := rim.open(conntrack.Config{Ports: ports})
	if err != nil {
		return errors.Join(explainOpen(err), listener.Close())
	}
	log.Info("nodestead started", "version", version.Version, "commit", version.Commit, "go", version.Go,
		"ports", cfg.Names.Ports.String(), "http", listener.Addr().String())

	group, ctx := errgroup.WithContext(ctx)
	stopped := make(chan error, 1)
	work(ctx, group, s, listener, log, version)
	go func() {
		err := group.Wait()
		if closeErr := s.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close the conntrack sensor: %w", closeErr)
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

// work starts all loops. The order of their end: the sensor, then the reporter
// once it has logged what was left, then HTTP, which so serves the last counts.
func work(ctx context.Context, group *errgroup.Group, s sensor, listener net.Listener, log *slog.Logger, version Version) {
	registry := prometheus.NewRegistry()
	metrics := newMetrics(registry, version, s, log)
	reporter := newReporter(log)
	health := &health{why: "the conntrack sensor does not read yet"}
	server := newServer(registry, health, log)
	reported := make(chan struct{})

	group.Go(func() error {
		defer reporter.close()
		health.set(true, true, "")
		err := s.Run(ctx, func(f conntrack.Finding) {
			metrics.count(f)
			reporter.take(f)
		})
		switch {
		case err != nil:
			err = fmt.Errorf("conntrack sensor: %w", err)
		case ctx.Err() == nil:
			err = errors.New("conntrack sensor: ended without a reason")
		default:
			health.set(true, false, "stopping")
			return nil
		}
		health.set(false, false, err.Error())
		return err
	})
	group.Go(func() error {
		defer close(reported)
		reporter.run()
		return nil
	})
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve http.watch %s: %w", listener.Addr(), err)
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
