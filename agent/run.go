package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
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

// Run runs both halves of the agent, names and trust, until ctx ends, in the
// network namespace of the calling thread. It returns nil only when ctx has
// ended and all has stopped in order; the error names what failed, and what an
// operator can do where that is known.
func Run(ctx context.Context, cfg Config, log *slog.Logger, version Version) error {
	k := newKubernetes(cfg, log, inPod(), true, joinCluster)
	n, t := newNames(cfg, log, realRim()), newTrust(cfg, log, openSyncer)
	n.kubernetes, t.kubernetes = k, k
	return run(ctx, watchDoor(cfg), log, version, k, n, t)
}

// Watch is Run with names alone.
func Watch(ctx context.Context, cfg Config, log *slog.Logger, version Version) error {
	k := newKubernetes(cfg, log, inPod(), false, joinCluster)
	n := newNames(cfg, log, realRim())
	n.kubernetes = k
	return run(ctx, watchDoor(cfg), log, version, k, n)
}

// Trust is Run with trust alone, which does not depend on the network
// namespace.
func Trust(ctx context.Context, cfg Config, log *slog.Logger, version Version) error {
	k := newKubernetes(cfg, log, inPod(), true, joinCluster)
	t := newTrust(cfg, log, openSyncer)
	t.kubernetes = k
	return run(ctx, door{"http.trust", cfg.HTTP.Trust, cfg.HTTP.WebConfig, cfg.Node(), listen}, log, version, k, t)
}

// door is where HTTP is served.
type door struct {
	key     string // of the configuration
	address Address
	web     WebConfig
	node    string // its name, for the page
	listen  func(ctx context.Context, key, address string) (net.Listener, error)
}

func watchDoor(cfg Config) door {
	return door{"http.watch", cfg.HTTP.Watch, cfg.HTTP.WebConfig, cfg.Node(), listen}
}

// half is one half of the agent, names or trust; or what both have of the
// cluster, which comes first.
type half interface {
	// open opens what needs the namespace of the calling thread, and all else
	// whose failure shall end the agent at its start.
	open() error
	// close closes what open opened, all of it or a part.
	close() error
	// about is what is logged of the half at the start.
	about() []any
	// work registers the half's metrics and pages, and starts its loops in group.
	// The channel is closed once they have ended and all is counted.
	work(ctx context.Context, group *errgroup.Group, registry *prometheus.Registry, mux *http.ServeMux, health *health) (counted <-chan struct{})
	// show puts the half onto the status page. It is called after work, from
	// several goroutines.
	show(now time.Time, page *statusPage)
}

func run(ctx context.Context, at door, log *slog.Logger, version Version, halves ...half) error {
	listener, err := at.listen(ctx, at.key, string(at.address))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	server := newServer(mux, log)
	if err := secure(server, at.web, listener.Addr(), log); err != nil {
		return errors.Join(err, listener.Close())
	}
	closeAll := func() error {
		var errs []error
		for _, h := range slices.Backward(halves) {
			errs = append(errs, h.close())
		}
		return errors.Join(errs...)
	}
	about := []any{"version", version.Version, "commit", version.Commit, "go", version.Go}
	for _, h := range halves {
		if err := h.open(); err != nil {
			return errors.Join(err, closeAll(), listener.Close())
		}
		about = append(about, h.about()...)
	}
	log.Info("nodestead started", append(about, "http", listener.Addr().String())...)

	group, ctx := errgroup.WithContext(ctx)
	work(ctx, group, serving{at.key, listener, server, mux, at.node}, log, version, halves)
	err = inTime(ctx, func() error {
		err := group.Wait()
		if closeErr := closeAll(); err == nil {
			err = closeErr
		}
		return err
	})
	if err == nil {
		log.Info("nodestead stopped")
	}
	return err
}

// serving is HTTP, ready to be served.
type serving struct {
	key      string // of the configuration
	listener net.Listener
	server   *http.Server
	mux      *http.ServeMux
	node     string // whose page it is
}

// work starts the loops of all halves, and HTTP. Its end comes last, so that it
// serves the last counts.
func work(ctx context.Context, group *errgroup.Group, at serving, log *slog.Logger, version Version, halves []half) {
	registry := prometheus.NewRegistry()
	registerCommon(registry, version)
	var healths []*health
	var counted []<-chan struct{}
	for _, h := range halves {
		health := &health{why: "it has not started yet"}
		healths = append(healths, health)
		counted = append(counted, h.work(ctx, group, registry, at.mux, health))
	}
	addPages(at.mux, registry, healths, log)
	addStatus(at, halves, healths, at.node, version)
	group.Go(func() error {
		if err := serve(at.server, at.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s %s: %w", at.key, at.listener.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		for _, c := range counted {
			<-c
		}
		return shutdown(at.server, httpWithin)
	})
}

// inTime gives what fn returns; but when ctx ends before that, fn has only
// stopWithin left to return.
func inTime(ctx context.Context, fn func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- fn() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(stopWithin):
		return fmt.Errorf("no clean stop within %v: a loop or the log is stuck", stopWithin)
	}
}

// ended says what the end of a loop means, once, for its health too: it is in
// order only when ctx has ended.
func ended(ctx context.Context, health *health, name string, err error) error {
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
}
