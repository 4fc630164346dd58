package certsync

import (
	"context"
	"errors"
	"fmt"

	"github.com/nodestead/nodestead/certsync/place"
)

// Uninstall takes back all that was ever installed, the state included. Daemons
// are not restarted: they keep what they have loaded until somebody restarts
// them. The sources are not read.
func (s *Syncer) Uninstall(ctx context.Context) (Status, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Status{}, err
	}
	defer unlock()
	s.recall()
	for _, rt := range s.runtimes {
		rt.look(ctx, s)
	}
	var targets []targetWork
	store, err := s.findStore()
	if err == nil {
		targets = append(targets, targetWork{Target: store})
	} else if _, ok := errors.AsType[*place.UnsupportedError](err); !ok {
		return Status{}, err
	}
	s.cfg.CertsD = false // so that all of certs.d is left over
	targets = append(targets, s.certs()...)
	var status Status
	var errs []error
	for _, t := range targets {
		t.unused = true
		t.plan, t.err = t.Plan(nil)
		err := s.apply(ctx, &t)
		if err != nil {
			errs = append(errs, fmt.Errorf("uninstall from %s: %w", t.Name(), err))
		}
		status.Targets = append(status.Targets, s.targetStatus(t, err))
	}
	if len(errs) == 0 {
		errs = append(errs, s.host.Remove(stateFile), s.host.RemoveDir(stateDir))
	}
	if err := errors.Join(errs...); err == nil {
		s.log.Info("all of trust was taken back; an agent that still runs on this node will install it again")
	}
	status.Time, status.Changes = s.now(), s.counts()
	return status, errors.Join(errs...)
}
