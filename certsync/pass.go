package certsync

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/place"
)

// work is what a pass found: what shall be, and what there is to do for it.
type work struct {
	reading anchor.Reading
	wanted  []anchor.Anchor // what shall be installed
	state   state           // as it shall be kept, before anything is done
	store   *place.Store    // nil: there is none that can be used
	targets []targetWork
}

// targetWork is what there is to do at one target.
type targetWork struct {
	place.Target
	shall  []anchor.Anchor // what shall be there
	plan   place.Plan
	err    error // it could not be planned
	unused bool  // it is left over: a registry that is no longer configured
}

// pass makes one pass. Most passes find nothing to do: they write nothing, start
// nothing, and take no lock.
func (s *Syncer) pass(ctx context.Context) Status {
	s.notes.begin()
	s.again = 0
	if s.mustRead {
		s.recall()
	}
	w := s.look(ctx)
	var status Status
	if s.quiet(w) {
		s.settle(w, &status)
	} else if unlock, err := s.lock(ctx); err != nil {
		status.Errs = append(status.Errs, err.Error())
	} else {
		if s.recall() {
			w = s.look(ctx)
		}
		s.act(ctx, w, &status)
		unlock()
	}
	s.giveBack()
	status.Time = s.now()
	status.Anchors = w.wanted
	status.Refused, status.Warnings, status.Broken = w.reading.Refused, w.reading.Warnings, w.reading.Broken
	status.Changes = s.counts()
	for _, name := range slices.Sorted(maps.Keys(s.runtimes)) {
		status.Runtimes = append(status.Runtimes, s.runtimes[name].status())
	}
	if ctx.Err() == nil {
		s.note(w, status)
		if len(status.Targets) > 0 || len(status.Errs) == 0 { // otherwise nobody looked
			s.notes.end()
		}
	}
	return status
}

// look finds out what shall be and what is. It changes nothing but s.runtimes,
// which remembers the daemons' facts.
func (s *Syncer) look(ctx context.Context) work {
	now := s.now()
	var w work
	w.reading = anchor.Read(anchor.Config{
		Dirs: s.cfg.Sources, Allow: s.cfg.Allow, Registries: s.cfg.Registries, Now: s.now,
	}, s.state.Memory)
	w.state = s.state
	w.state.Memory = w.reading.Memory
	w.wanted, w.state.Leaving = overlap(w.reading, s.state, s.cfg, now)
	w.wanted, w.state.Kept = keep(&w.reading, w.wanted, s.state.Kept, s.allowed)
	for _, rt := range s.runtimes {
		rt.look(ctx, s)
	}
	// These first: they take effect at once, and the store takes a second or more.
	w.targets = s.certs()
	switch store, err := s.findStore(); {
	case s.cfg.Store && err != nil:
		w.targets = append(w.targets, targetWork{Target: noStore{}, err: err})
	case s.cfg.Store:
		w.store = store
		w.targets = append(w.targets, targetWork{Target: store})
	case err == nil && len(store.Installed()) > 0: // from a time with other settings
		w.targets = append(w.targets, targetWork{Target: store, unused: true})
	}
	for i := range w.targets {
		t := &w.targets[i]
		if t.err != nil {
			continue
		}
		switch {
		case t.unused:
		case len(w.wanted) > 0:
			t.shall = w.wanted
		default: // nothing is known that shall be there: what is there stays, if it may
			is := t.Installed()
			if t.shall = s.allowed(is); len(t.shall) == len(is) {
				continue
			}
		}
		t.plan, t.err = t.Plan(t.shall)
		if why := t.plan.Blocked(); t.err != nil && why != "" && t.Name() == storeTarget && !strings.HasPrefix(why, "tool_did_not_help") {
			w.store = nil // until a person has mended it there is none
		}
	}
	return w
}

// allowed are those of the anchors that the settings allow.
func (s *Syncer) allowed(all []anchor.Anchor) []anchor.Anchor {
	if len(s.cfg.Allow) == 0 {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(a anchor.Anchor) bool { return !slices.Contains(s.cfg.Allow, a.Fingerprint) })
}

// storeTarget is the name of the trust store as a target.
const storeTarget = "store"

// noStore stands for the store of a node that has none which can be used.
type noStore struct{ place.Target }

// Name implements place.Target.
func (noStore) Name() string { return storeTarget }

// findStore finds the node's trust store. It remembers what was in order.
func (s *Syncer) findStore() (*place.Store, error) {
	if s.store != nil {
		return s.store, nil
	}
	store, err := place.FindStore(s.host)
	if err != nil {
		return nil, err
	}
	s.store = store
	return store, nil
}

// certs are the targets in certs.d directories: those that shall have anchors,
// before those of which ours shall go.
func (s *Syncer) certs() []targetWork {
	var shall, unused []targetWork
	used := make(map[string]daemon.Name) // directory → the daemon for which we write to it
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.runtimes)) {
		facts := s.runtimes[name].facts
		if !s.cfg.CertsD || len(facts.CertDirs) == 0 {
			continue
		}
		used[facts.CertDirs[0]] = name
		for _, registry := range s.cfg.Registries {
			t := place.NewCerts(s.host, string(name), facts.CertDirs[0], registry)
			names = append(names, t.Name()) // kept, also where the daemon is not seen now
			if facts.Present {
				shall = append(shall, targetWork{Target: t})
			}
		}
	}
	for _, name := range []daemon.Name{daemon.Docker, daemon.Containerd, daemon.CRIO} {
		dirs := []string{usualCertDir(name)}
		dirs = append(dirs, s.state.CertDirs[name]...)
		if rt := s.runtimes[name]; rt != nil {
			if s.cfg.CertsD && (rt.err != nil || len(rt.facts.CertDirs) == 0 && rt.facts.CertDirsWhy == "") {
				continue // it is not known where it reads: what is there stays
			}
			dirs = append(dirs, rt.facts.CertDirs...)
		}
		slices.Sort(dirs)
		for _, dir := range slices.Compact(dirs) {
			user, inUse := used[dir]
			if inUse && user != name {
				continue // several daemons may read one directory
			}
			for _, t := range place.ListCerts(s.host, string(name), dir) {
				if !inUse || !slices.Contains(names, t.Name()) {
					unused = append(unused, targetWork{Target: t, unused: true})
				}
			}
		}
	}
	return append(shall, unused...)
}

// usualCertDir is where a daemon's certs.d is, as a rule: ours may be left there
// from a time with other settings.
func usualCertDir(name daemon.Name) string {
	switch name {
	case daemon.Docker:
		return "/etc/docker/certs.d"
	case daemon.CRIO:
		return "/etc/containers/certs.d"
	default:
		return "/etc/containerd/certs.d"
	}
}

// quiet tells whether there is nothing to do.
func (s *Syncer) quiet(w work) bool {
	if !w.state.equal(s.state) {
		return false
	}
	for _, t := range w.targets {
		if t.err == nil && !t.plan.Empty() {
			return false
		}
	}
	for _, rt := range s.runtimes {
		if s.due(rt, w) {
			return false
		}
	}
	return true
}

// settle is the end of a pass that found nothing to do.
func (s *Syncer) settle(w work, status *Status) {
	for _, t := range w.targets {
		if !t.unused {
			status.Targets = append(status.Targets, s.targetStatus(t, t.err))
		}
	}
}

// act does what there is to do. Another agent is kept out.
func (s *Syncer) act(ctx context.Context, w work, status *Status) {
	s.state = w.state
	s.forgetMissing(w)
	s.noteCertDirs(w)
	// Before anything is installed: what a source gave must not be forgotten
	// when this process is killed and the source breaks.
	kept := s.save(status)
	storeOK := false
	for _, t := range w.targets {
		if ctx.Err() != nil {
			s.mustRead = true
			return
		}
		err := s.apply(ctx, &t)
		if t.Name() == storeTarget && !t.unused {
			storeOK = err == nil
		}
		if !t.unused || err != nil {
			status.Targets = append(status.Targets, s.targetStatus(t, err))
		}
	}
	if w.store != nil && storeOK {
		s.noteInstalled(w)
		kept = s.save(status) && kept
	}
	for _, rt := range s.runtimes {
		// What follows may be a restart: nothing of what was known before counts.
		rt.looked = time.Time{}
		rt.look(ctx, s)
	}
	for _, name := range slices.Sorted(maps.Keys(s.runtimes)) {
		s.tend(ctx, s.runtimes[name], w, storeOK, kept, status)
	}
	kept = s.save(status) && kept
	if !kept {
		s.mustRead = true
	}
}

// apply carries a target's plan out, counts it and logs it.
func (s *Syncer) apply(ctx context.Context, t *targetWork) error {
	if t.err != nil || t.plan.Empty() {
		return t.err
	}
	begin := s.now()
	done := t.plan
	err := t.Apply(ctx, done, t.shall)
	if isEnded(ctx, err) {
		return err
	}
	result := Changed
	switch {
	case err != nil:
		result = Failed
	case done.Drift || s.synced[t.Name()] == setOf(t.shall) && !t.unused:
		result = Repaired
	}
	s.count(t.Name(), result)
	if err != nil {
		return err
	}
	s.log.Info("trust anchors were changed", "target", t.Name(), "result", result, "why", done.Why, "files", paths(done), "took", s.now().Sub(begin).Round(time.Millisecond))
	if after, err := t.Plan(t.shall); err == nil {
		t.plan.Problems = after.Problems // some may be over
	}
	return nil
}

func paths(p place.Plan) string {
	var all []string
	for _, c := range p.Changes {
		sign := "+"
		if c.Content == nil {
			sign = "-"
		}
		all = append(all, sign+c.Path)
	}
	return strings.Join(all, " ")
}

// targetStatus notes how a target is.
func (s *Syncer) targetStatus(t targetWork, err error) TargetStatus {
	st := TargetStatus{Name: t.Name(), InSync: err == nil, Problems: t.plan.Problems}
	if err != nil {
		st.Err = err.Error()
	} else {
		s.targets[t.Name()], s.synced[t.Name()] = s.now(), setOf(t.shall)
	}
	st.LastSuccess = s.targets[t.Name()]
	return st
}

// forgetMissing forgets when anchors came into the bundle that are not in it now:
// who was started in between has not loaded them.
func (s *Syncer) forgetMissing(w work) {
	s.state.Installed = maps.Clone(s.state.Installed)
	for _, f := range missing(w) {
		delete(s.state.Installed, f)
	}
}

// missing are the anchors that the store's bundle lacks.
func missing(w work) []string {
	for _, t := range w.targets {
		if t.Name() == storeTarget && !t.unused {
			return t.plan.Missing
		}
	}
	return nil
}

// noteInstalled notes since when the anchors are in the store's bundle.
func (s *Syncer) noteInstalled(w work) {
	isNew := make(map[string]bool)
	for _, f := range missing(w) {
		isNew[f] = true
	}
	s.state.installedAt(fingerprints(storeAnchors(w.wanted)), isNew, s.now(), func(f string) time.Time { return w.store.Since(f, s.lost) })
}

// noteCertDirs notes the certs.d directories that are about to be written to, so
// that they are found again when their daemon is gone.
func (s *Syncer) noteCertDirs(w work) {
	s.state.CertDirs = maps.Clone(s.state.CertDirs)
	for _, t := range w.targets {
		name, _, ok := strings.Cut(t.Name(), "/")
		rt := s.runtimes[daemon.Name(name)]
		if !ok || t.unused || rt == nil {
			continue
		}
		dirs := append(slices.Clone(s.state.CertDirs[rt.cfg.Name]), rt.facts.CertDirs[0])
		slices.Sort(dirs)
		s.state.CertDirs[rt.cfg.Name] = slices.Compact(dirs)
	}
}

// note logs what is wrong.
func (s *Syncer) note(w work, status Status) {
	for _, b := range status.Broken {
		if status.NoCA() {
			if s.notes.isNew("source "+b.Source, "no CA") {
				s.log.Info("no CA is given yet, so that nothing is installed", "dir", b.Source, "reason", string(b.Reason), "detail", b.Detail)
			}
			continue
		}
		s.notes.say("source "+b.Source, "a source of trust is broken, what it gave last stays", "dir", b.Source, "reason", string(b.Reason), "detail", b.Detail)
	}
	for _, r := range status.Refused {
		s.notes.say("refused "+r.Source+" "+string(r.Reason)+" "+r.Detail, "refused as a trust anchor", "file", r.Source, "reason", string(r.Reason), "detail", r.Detail)
	}
	for _, r := range status.Warnings {
		s.notes.say("warning "+r.Source+" "+string(r.Reason)+" "+r.Detail, "a trust anchor may disappoint", "file", r.Source, "reason", string(r.Reason), "detail", r.Detail)
	}
	for _, t := range status.Targets {
		if !t.InSync {
			s.notes.say("target "+t.Name, "trust anchors are not installed", "target", t.Name, "err", t.Err)
		}
		for _, p := range t.Problems {
			s.notes.say("problem "+t.Name+" "+p.Path+" "+p.Reason, "something is in the way of trust anchors, and is left alone", "target", t.Name, "path", p.Path, "reason", p.Reason, "detail", p.Detail)
		}
	}
	for _, e := range status.Errs {
		s.notes.say("pass "+e, "a pass of trust did not do all", "err", e)
	}
	for _, r := range status.Runtimes {
		s.noteRuntime(r)
	}
}
