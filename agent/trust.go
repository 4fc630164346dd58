package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/daemon"
)

// truster is what the agent needs of a certsync.Syncer.
type truster interface {
	Run(ctx context.Context, emit func(certsync.Status)) error
	Once(ctx context.Context) (certsync.Status, error)
	Plan(ctx context.Context) (certsync.Preview, error)
	Uninstall(ctx context.Context) (certsync.Status, error)
	Close() error
}

// opener makes a truster.
type opener func(certsync.Config) (truster, error)

// openSyncer makes of a nil pointer with an error a nil interface.
func openSyncer(cfg certsync.Config) (truster, error) {
	s, err := certsync.New(cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// trust is the half that makes the node trust a private CA.
type trust struct {
	cfg    Config
	log    *slog.Logger
	make   opener
	syncer truster
	status *trustMetrics

	kubernetes *kubernetes // nil: for a single pass
}

func newTrust(cfg Config, log *slog.Logger, make opener) *trust {
	return &trust{cfg: cfg, log: log, make: make}
}

func (t *trust) about() []any {
	return []any{"sources", t.cfg.Trust.Sources.String(), "registries", t.cfg.Trust.Registries.String()}
}

func (t *trust) open() (err error) {
	cfg := t.cfg.Sync(t.log)
	if t.kubernetes != nil {
		cfg.Gate, err = t.kubernetes.gate()
	} else {
		cfg.Gate, err = passGate(t.cfg.Trust.Restarts, inPod())
	}
	if err != nil {
		return err
	}
	t.syncer, err = t.make(cfg)
	if err != nil {
		return fmt.Errorf("open the node for trust: %w: mount its file system and name where (host_root), and run as root", err)
	}
	return nil
}

func (t *trust) close() error {
	if t.syncer == nil {
		return nil
	}
	return t.syncer.Close()
}

// work starts the passes. A pass that does not succeed is no end: what it could
// not do is logged, counted and tried again.
func (t *trust) work(ctx context.Context, group *errgroup.Group, registry *prometheus.Registry, _ *http.ServeMux, health *health) <-chan struct{} {
	t.status = newTrustMetrics(registry, t.cfg.Trust)
	counted := make(chan struct{})
	health.set(true, false, "the first pass of trust has not ended yet")
	var last certsync.Status
	group.Go(func() error {
		defer close(counted)
		return ended(ctx, health, "trust", t.syncer.Run(ctx, func(s certsync.Status) {
			t.status.set(s)
			t.kubernetes.trust(last, s)
			last = s
			health.set(true, true, "")
		}))
	})
	return counted
}

// TrustOnce makes one pass. The error is one line for each thing that is not as
// it should be at its end, a restart that is pending included.
func TrustOnce(ctx context.Context, cfg Config, log *slog.Logger) error {
	return trustOnce(ctx, newTrust(cfg, log, openSyncer), truster.Once, "the next pass takes up what is left")
}

// TrustUninstall takes back all that was ever installed. The error is as that of
// TrustOnce.
func TrustUninstall(ctx context.Context, cfg Config, log *slog.Logger) error {
	return trustOnce(ctx, newTrust(cfg, log, openSyncer), truster.Uninstall, "run it again to take back the rest")
}

// TrustPlan writes what a pass would do, and does none of it.
func TrustPlan(ctx context.Context, cfg Config, log *slog.Logger, w io.Writer) error {
	return trustPlan(ctx, newTrust(cfg, log, openSyncer), w)
}

// trustOnce makes a pass. then says what becomes of one that was stopped.
func trustOnce(ctx context.Context, t *trust, pass func(truster, context.Context) (certsync.Status, error), then string) error {
	return t.do(ctx, func() error {
		status, err := pass(t.syncer, ctx)
		if err != nil {
			return unfinished(ctx, err, then)
		}
		if wrong := status.Wrong(); len(wrong) > 0 {
			return errors.New(strings.Join(wrong, "\n"))
		}
		var targets []string
		for _, target := range status.Targets {
			targets = append(targets, target.Name)
		}
		t.log.Info("trust is in sync", "anchors", len(status.Anchors), "targets", strings.Join(targets, ","))
		return nil
	})
}

func trustPlan(ctx context.Context, t *trust, w io.Writer) error {
	return t.do(ctx, func() error {
		preview, err := t.syncer.Plan(ctx)
		if err != nil {
			return unfinished(ctx, err, "nothing was changed")
		}
		return preview.Print(w)
	})
}

// do does one thing with the syncer.
func (t *trust) do(ctx context.Context, fn func() error) error {
	if err := t.open(); err != nil {
		return err
	}
	return inTime(ctx, func() error { return errors.Join(fn(), t.close()) })
}

// unfinished says so when a signal was the reason.
func unfinished(ctx context.Context, err error, then string) error {
	if ctx.Err() != nil {
		return errors.New("stopped before it was done; " + then)
	}
	return err
}

// Sync gives the settings of trust as package certsync takes them.
func (c Config) Sync(log *slog.Logger) certsync.Config {
	t := c.Trust
	out := certsync.Config{
		HostRoot: c.Root(),
		Sources:  strs(t.Sources), Allow: strs(t.Allow), Registries: strs(t.Registries),
		Overlap: time.Duration(t.Overlap), Interval: time.Duration(t.Interval),
		Store: t.Store != off, CertsD: t.CertsD != off,
		Log: log,
	}
	add := func(name daemon.Name, enabled Switch, unit Unit, restart Restart, disruptive Bool) {
		if enabled != off {
			out.Runtimes = append(out.Runtimes, daemon.Config{
				Name: name, Unit: string(unit), Restart: daemon.Policy(restart), Disruptive: bool(disruptive),
			})
		}
	}
	r := t.Runtimes
	add(daemon.Docker, r.Docker.Enabled, r.Docker.Unit, r.Docker.Restart, r.Docker.Disruptive)
	add(daemon.Containerd, r.Containerd.Enabled, r.Containerd.Unit, r.Containerd.Restart, false)
	add(daemon.CRIO, r.CRIO.Enabled, r.CRIO.Unit, r.CRIO.Restart, false)
	return out
}

// off is the value of a Switch that is off.
const off Switch = "off"

func strs[T ~string](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, string(v))
	}
	return out
}
