package certsync

import (
	"context"
	"maps"
	"slices"
	"strings"
)

// Examination is how a node's trust is, as somebody who changes nothing finds it.
type Examination struct {
	Status
	// Waiting are the targets of which something waits to be installed or
	// removed. While there are any, no daemon is asked, because a question makes
	// it load the roots that are there now.
	Waiting []string
}

// Examine looks at a node's trust, and asks its daemons about the registries
// (host:port) unless anchors wait to be installed. It changes nothing.
func Examine(ctx context.Context, cfg Config, registries []string) (Examination, error) {
	s, err := New(cfg)
	if err != nil {
		return Examination{}, err
	}
	defer s.Close()
	s.recall()
	w := s.look(ctx)
	// A registry that somebody asks about may be in certs.d from a pass with other
	// settings: then it counts as configured.
	for _, registry := range registries {
		left := func(t targetWork) bool { return t.unused && strings.HasSuffix(t.Name(), "/"+registry) }
		if !slices.Contains(s.cfg.Registries, registry) && slices.ContainsFunc(w.targets, left) {
			s.cfg.Registries = append(slices.Clone(s.cfg.Registries), registry)
		}
	}
	w = s.look(ctx)
	s.foresee(w)
	var e Examination
	e.Anchors, e.Refused, e.Warnings, e.Broken = w.wanted, w.reading.Refused, w.reading.Warnings, w.reading.Broken
	for _, t := range w.targets {
		st := s.targetStatus(t, t.err)
		if t.err == nil && !t.plan.Empty() {
			st.InSync, st.Err = false, t.plan.Why
			e.Waiting = append(e.Waiting, t.Name())
		}
		e.Targets = append(e.Targets, st)
	}
	s.cfg.Registries = registries
	for _, name := range slices.Sorted(maps.Keys(s.runtimes)) {
		rt := s.runtimes[name]
		if rt.err == nil && rt.facts.Present && len(e.Waiting) == 0 && len(w.wanted) > 0 {
			s.ask(ctx, rt, w)
			rt.decision = s.decide(ctx, rt, w, true)
		}
		e.Runtimes = append(e.Runtimes, rt.status())
	}
	return e, ctx.Err()
}
