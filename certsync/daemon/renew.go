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

// ErrNotSafe says that what was found just before the restart speaks against it.
// Nothing was done, and the next decision may be another.
var ErrNotSafe = errors.New("not safe to restart now")

// Renew restarts the daemon and waits until it is healthy again, or brings it
// back when systemd's start limit was hit: it is never left dead by us. Units that
// systemd stops with it and that ran before run again at the end. The facts are
// those after it, also with an error, as far as they are known.
//
// It looks once more before it does anything, at what may have changed since the
// decision (ErrNotSafe): that somebody stopped the daemon, or that docker has got
// containers that the restart would stop. (Of a docker that is restarted with
// containerd it does not look for them.) A daemon that did not run before is
// started: it may be us who left it so.
//
// The end of ctx does not take the restart back: systemd finishes it. What is
// dead then is left to systemd, and to the next Renew.
func Renew(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, before Facts) (Facts, error) {
	if sd == nil {
		return before, fmt.Errorf("restart %s: %w: %w", cfg.Unit, ErrNotSafe, host.ErrNoSystemd)
	}
	if now, err := stillSafe(ctx, h, sd, cfg, before); err != nil {
		return now, fmt.Errorf("restart %s: %w: %w", cfg.Unit, ErrNotSafe, err)
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
		return before, fmt.Errorf("restart %s: %w: %w", cfg.Unit, ErrNotSafe, err)
	}
	restartErr := restart(ctx, sd, cfg.Unit)
	if errors.Is(restartErr, host.ErrLost) {
		return before, restartErr // nothing more can be asked or done
	}
	if restartErr != nil {
		u, err := sd.Unit(ctx, cfg.Unit)
		if err == nil && u.Active() && u.InvocationID == before.Unit.InvocationID {
			return before, restartErr // systemd refused: it is the same run
		}
	}
	facts, err := revive(ctx, h, sd, cfg, before, units)
	if err != nil {
		return facts, errors.Join(restartErr, err)
	}
	return facts, nil
}

// stillSafe looks at what may have changed since before.
func stillSafe(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, before Facts) (Facts, error) {
	now, err := Look(ctx, h, sd, cfg, "")
	now.StopsDocker = before.StopsDocker
	switch {
	case !runs(before.Unit):
		return now, nil
	case err != nil:
		return now, err
	case !runs(now.Unit):
		return now, fmt.Errorf("it is %s", now.Unit.ActiveState)
	case now.BrokenConfig != "":
		return now, fmt.Errorf("it would not come back: %s", now.BrokenConfig)
	case cfg.Name == Docker && losesContainers(Case{Config: cfg, Facts: now}) != "":
		return now, fmt.Errorf("it would stop %d containers", now.Containers)
	}
	return now, nil
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

// revive waits until the daemon is healthy and the other units are active. One that has ended meanwhile is started again, once.
// When the time is over it tells what it saw last, and, if that is so, that parent has ended.
func revive(parent context.Context, h *host.Host, sd *host.Systemd, cfg Config, before Facts, units []host.Unit) (Facts, error) {
	ctx, cancel := context.WithTimeout(parent, healthyTime)
	defer cancel()
	ticker := time.NewTicker(healthyPoll)
	defer ticker.Stop()
	var started []string
	var last Facts
	var lastErr error
	for {
		facts, err := Look(ctx, h, sd, cfg, "")
		facts.StopsDocker = before.StopsDocker
		if err == nil && !facts.Healthy {
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
		if errors.Is(err, host.ErrLost) {
			return facts, err
		}
		if lastErr == nil || ctx.Err() == nil { // else it may say no more than that ctx has ended
			last, lastErr = facts, err
		}
		select {
		case <-ctx.Done():
			err = fmt.Errorf("wait for %s to be healthy: %w", cfg.Unit, lastErr)
			if parent.Err() != nil {
				err = errors.Join(parent.Err(), err)
			}
			return last, err
		case <-ticker.C:
		}
	}
}
