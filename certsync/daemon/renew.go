package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nodestead/nodestead/certsync/host"
)

const (
	restartTime = 2 * time.Minute        // for systemd's job: docker stops its containers within it
	healthyTime = time.Minute            // for the daemon to be healthy then
	healthyPoll = 100 * time.Millisecond // how often it is looked at meanwhile
)

// ErrNotSafe: containers were started since the decision, which a restart would
// stop. Nothing was done.
var ErrNotSafe = errors.New("no longer safe to restart")

// Renew restarts the daemon and waits until it is healthy again, or brings it
// back when systemd's start limit was hit: it is never left dead by us. Units that
// systemd stops with it and that ran before run again at the end. The facts are
// those after it, also with an error, as far as they are known.
//
// The end of ctx does not take the restart back: systemd finishes it. What was
// dead at that moment is then left to systemd.
func Renew(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, before Facts) (Facts, error) {
	if sd == nil {
		return before, fmt.Errorf("restart %s: %w", cfg.Unit, host.ErrNoSystemd)
	}
	if cfg.Name == Docker && !cfg.Disruptive && !before.LiveRestore {
		now, err := Look(ctx, h, sd, cfg, "")
		if err != nil {
			return before, fmt.Errorf("look at %s before its restart: %w", cfg.Unit, err)
		}
		if now.Containers > 0 && !now.LiveRestore {
			return now, fmt.Errorf("restart %s with %d containers: %w", cfg.Unit, now.Containers, ErrNotSafe)
		}
	}
	units := []host.Unit{before.Unit}
	for _, name := range before.Unit.RequiredBy {
		if u, err := sd.Unit(ctx, name); err == nil && u.Active() {
			units = append(units, u)
		}
	}
	// Our one start must not be the one too many after those of others: docker
	// has three in a minute, and is dead then.
	if err := resetFailed(ctx, sd, units); err != nil {
		return before, err
	}
	restartErr := restart(ctx, sd, cfg.Unit)
	facts, err := revive(ctx, h, sd, cfg, before, units)
	if err != nil {
		return facts, errors.Join(restartErr, err)
	}
	return facts, nil
}

func restart(ctx context.Context, sd *host.Systemd, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	if err := sd.Restart(ctx, unit); err != nil {
		return fmt.Errorf("restart %s: %w", unit, err)
	}
	return nil
}

// resetFailed forgets failures and starts of units and of the sockets that start
// them, which fail as well when the start limit is hit.
func resetFailed(ctx context.Context, sd *host.Systemd, units []host.Unit) error {
	var errs []error
	for _, u := range units {
		for _, name := range append([]string{u.Name}, u.TriggeredBy...) {
			if err := sd.ResetFailed(ctx, name); err != nil {
				errs = append(errs, fmt.Errorf("reset the start limit of %s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// revive waits until the daemon is healthy in a new run and the other units are
// active. One that has ended meanwhile is started again, once.
func revive(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, before Facts, units []host.Unit) (Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, healthyTime)
	defer cancel()
	ticker := time.NewTicker(healthyPoll)
	defer ticker.Stop()
	var started []string
	for {
		facts, err := Look(ctx, h, sd, cfg, "")
		facts.StopsDocker = before.StopsDocker
		if err == nil && facts.Unit.InvocationID == before.Unit.InvocationID {
			err = fmt.Errorf("%s was not restarted", cfg.Unit)
		} else if err == nil && !facts.Healthy {
			err = fmt.Errorf("%s is %s (%s)", cfg.Unit, facts.Unit.ActiveState, facts.Unit.Result)
		}
		for _, u := range units {
			now, unitErr := sd.Unit(ctx, u.Name)
			if unitErr != nil {
				err = errors.Join(err, unitErr)
				continue
			}
			if stopped(Facts{Unit: now}) && !slices.Contains(started, u.Name) {
				started = append(started, u.Name)
				unitErr = errors.Join(resetFailed(ctx, sd, []host.Unit{u}), sd.Start(ctx, u.Name))
			}
			if unitErr == nil && !now.Active() {
				unitErr = fmt.Errorf("%s is %s (%s)", u.Name, now.ActiveState, now.Result)
			}
			err = errors.Join(err, unitErr)
		}
		if err == nil {
			return facts, nil
		}
		select {
		case <-ctx.Done():
			return facts, fmt.Errorf("wait for %s to be healthy: %w", cfg.Unit, err)
		case <-ticker.C:
		}
	}
}
