package certsync

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/host"
)

const (
	// factsFor is how long what is known of a daemon holds while it is the same
	// run of it; askedFor is the same for what it said of registries that it
	// trusts.
	factsFor = 10 * time.Minute
	askedFor = 10 * time.Minute
	// intentFor is how long a daemon that is dead may be so because of a restart of
	// ours. Later it is somebody else who stopped it.
	intentFor = 10 * time.Minute
	// hour is as long as a restart counts.
	hour = time.Hour
	// maxBundle is more than a bundle of all public roots.
	maxBundle = 16 << 20
)

// runtime is one daemon as this agent knows it. What has to outlive the agent is
// in state.
type runtime struct {
	cfg      daemon.Config
	facts    daemon.Facts
	err      error     // why the facts are not known
	looked   time.Time // when all of the facts were read
	asked    asked
	decision daemon.Decision
	restarts map[string]int
}

// asked is what a daemon said, and when that holds.
type asked struct {
	key     string // of the run, the anchors and the registries
	at      time.Time
	answers []daemon.Answer
	own     map[string]daemon.Verdict // what we saw ourselves; nil: nobody has looked
}

func newRuntime(cfg daemon.Config) *runtime {
	rt := &runtime{cfg: cfg, restarts: make(map[string]int)}
	for _, r := range RestartResults() {
		rt.restarts[r] = 0
	}
	return rt
}

func (rt *runtime) status() RuntimeStatus {
	st := RuntimeStatus{
		Name: rt.cfg.Name, Present: rt.facts.Present, Facts: rt.facts,
		Answers: rt.asked.answers, Decision: rt.decision, Restarts: maps.Clone(rt.restarts),
	}
	if rt.err != nil {
		st.Err = rt.err.Error()
	}
	return st
}

// settled tells whether nothing about the daemon waits for a change.
func (rt *runtime) settled() bool {
	return rt.err == nil && rt.decision.Action == daemon.Leave &&
		!slices.ContainsFunc(rt.asked.answers, func(a daemon.Answer) bool { return a.Verdict != daemon.Trusted })
}

// look brings the facts up to date. While it is the same run of the daemon, and
// nothing about it waits, systemd's word for that is enough.
func (rt *runtime) look(ctx context.Context, s *Syncer) {
	sd, err := s.dial(ctx)
	if err != nil && !errors.Is(err, host.ErrNoSystemd) {
		rt.err = err
		return
	}
	now := s.now()
	if sd != nil && rt.settled() && rt.facts.Healthy && now.Sub(rt.looked) < factsFor && !now.Before(rt.looked) {
		unit, err := sd.Unit(ctx, rt.cfg.Unit)
		if err == nil && unit.InvocationID == rt.facts.Unit.InvocationID && unit.ActiveState == rt.facts.Unit.ActiveState {
			return
		}
	}
	facts, err := daemon.Look(ctx, s.host, sd, rt.cfg, s.dockerUnit())
	if errors.Is(err, host.ErrLost) {
		s.hangUp()
	}
	rt.facts, rt.err, rt.looked = facts, err, now
	if !facts.Present { // what was decided is over
		rt.decision, rt.asked = daemon.Decision{}, asked{}
	}
}

// dockerUnit is the name of docker's unit.
func (s *Syncer) dockerUnit() string {
	if rt := s.runtimes[daemon.Docker]; rt != nil {
		return rt.cfg.Unit
	}
	return "docker.service"
}

// key is for what run of the daemon, and for which anchors, an answer holds.
func (s *Syncer) key(rt *runtime, w work) string {
	all := rt.facts.Unit.InvocationID + " " + setOf(w.wanted)
	if w.store != nil {
		all += " " + w.store.Bundle()
	}
	return all
}

// due tells whether something has to be found out about a daemon, or done.
func (s *Syncer) due(rt *runtime, w work) bool {
	if !rt.facts.Present || len(w.wanted) == 0 {
		return s.state.Runtimes[rt.cfg.Name].Intent != nil
	}
	since := s.now().Sub(rt.asked.at)
	return !rt.settled() || rt.asked.key != s.key(rt, w) ||
		len(s.cfg.Registries) > 0 && (since < 0 || since >= askedFor)
}

// tend asks a daemon, decides, and restarts it if that is decided. ready tells
// whether what it shall trust is installed, kept whether the state is on disk.
func (s *Syncer) tend(ctx context.Context, rt *runtime, w work, ready, kept bool, status *Status) {
	name := rt.cfg.Name
	if rt.facts.Present || s.state.Runtimes[name].Intent != nil {
		s.resume(ctx, rt, w, status)
	}
	if ctx.Err() != nil {
		return
	}
	before, waited := rt.asked, rt.decision.Reason == WaitingForSlot || rt.decision.Reason == OutsideWindow
	rt.asked = asked{}
	if rt.err != nil {
		rt.decision = daemon.Decision{}
		return
	}
	if len(w.wanted) == 0 {
		rt.decision = daemon.Decision{Action: daemon.Leave, Reason: noAnchors, Detail: "no anchor is known that it could trust"}
		return
	}
	// It is asked only after the installation: a question makes it load the
	// store as it is.
	old := false
	if ready || w.store == nil {
		// While a restart waits for its turn, that of a node among thousands, it is
		// not asked at each pass; it is once more when the turn has come.
		since := s.now().Sub(before.at)
		if old = waited && before.key == s.key(rt, w) && since >= 0 && since < askedFor; old {
			rt.asked = before
		} else {
			s.ask(ctx, rt, w)
		}
	}
	rt.decision = s.decide(ctx, rt, w, ready)
	if ready {
		s.remember(rt, w)
	}
	switch below := s.runtimes[daemon.Containerd]; {
	case rt.decision.Action != daemon.Restart || ctx.Err() != nil:
	case rt.cfg.Name == daemon.Docker && below != nil && below.facts.Present && !below.facts.Healthy:
		rt.decision = notNow(errors.New("containerd, on which docker runs, does not answer: docker might not come back"))
	case !kept:
		rt.decision = daemon.Decision{
			Action: daemon.Pending, Reason: stateNotKept,
			Detail: "the state of trust cannot be written, and a restart that is not written down could be made again and again",
			Remedy: "make " + stateDir + " on the node writable for the agent",
		}
	default:
		if shut := s.enter(rt); shut.Reason != "" {
			rt.decision = shut.pending(rt.decision)
			return
		}
		if old {
			s.ask(ctx, rt, w)
			if rt.decision = s.decide(ctx, rt, w, ready); rt.decision.Action != daemon.Restart || ctx.Err() != nil {
				s.drop()
				return
			}
		}
		s.restart(ctx, rt, w, status)
		s.giveBack()
		if s.held.by == rt && s.state.Runtimes[name].Intent == nil {
			s.log.Warn("the restart slot is kept until the daemon is healthy, so that no other node fares the same", "runtime", string(name), "unit", rt.cfg.Unit)
		}
	}
}

// Reasons of a daemon's decision beside those of package daemon.
const (
	noAnchors    = "no_anchors"
	stateNotKept = "state_not_kept"
	notMade      = "not_made"
)

// Reasons lists all reasons that a RuntimeStatus may have.
func Reasons() []string {
	return append(slices.Clone(daemon.Reasons()), noAnchors, stateNotKept, notMade, WaitingForSlot, OutsideWindow)
}

// ask asks a daemon about all registries.
func (s *Syncer) ask(ctx context.Context, rt *runtime, w work) {
	rt.asked = asked{key: s.key(rt, w), at: s.now()}
	if !rt.facts.Healthy || rt.facts.NoCRI {
		return
	}
	// At once: one that hangs takes ten seconds.
	answers := make([]daemon.Answer, len(s.cfg.Registries))
	var asking sync.WaitGroup
	for i, registry := range s.cfg.Registries {
		asking.Go(func() { answers[i] = daemon.Ask(ctx, s.host, rt.cfg.Name, registry) })
	}
	asking.Wait()
	rt.asked.answers = answers
}

// caseOf puts together what a decision rests on. ready tells whether the store
// has the anchors.
func (s *Syncer) caseOf(ctx context.Context, rt *runtime, w work, ready bool) daemon.Case {
	c := daemon.Case{
		Config: rt.cfg, Facts: rt.facts, Set: setOf(storeAnchors(w.wanted)),
		Answers: rt.asked.answers, History: s.state.Runtimes[rt.cfg.Name].History, Now: s.now(),
	}
	if ready && wantsStore(w) {
		unit := rt.facts.Unit
		c.Installed = s.state.loadedSince(rt.cfg.Name, unit.InvocationID, unit.Started, fingerprints(storeAnchors(w.wanted)))
		if rt.asked.own == nil {
			rt.asked.own = s.prove(ctx, rt, w)
		}
		c.Own = rt.asked.own
	}
	if docker := s.runtimes[daemon.Docker]; rt.facts.StopsDocker && docker != nil {
		c.Docker = &daemon.Case{Config: docker.cfg, Facts: docker.facts, History: s.state.Runtimes[daemon.Docker].History, Now: c.Now}
	}
	return c
}

// decide decides what shall be done with a daemon.
func (s *Syncer) decide(ctx context.Context, rt *runtime, w work, ready bool) daemon.Decision {
	return daemon.Decide(s.caseOf(ctx, rt, w, ready))
}

// prove looks with our own eyes at the registries that a daemon does not trust:
// where our anchors do not verify them either, a restart cannot help.
func (s *Syncer) prove(ctx context.Context, rt *runtime, w work) map[string]daemon.Verdict {
	own := make(map[string]daemon.Verdict)
	var doubtful []string
	for _, a := range rt.asked.answers {
		if a.Verdict == daemon.Untrusted || a.Expired() {
			doubtful = append(doubtful, a.Registry)
		}
	}
	if len(doubtful) == 0 {
		return own
	}
	bundle, err := s.host.ReadFile(w.store.Bundle(), maxBundle)
	if err != nil {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	// At once, as they were asked about.
	verdicts := make([]daemon.Verdict, len(doubtful))
	var looking sync.WaitGroup
	for i, registry := range doubtful {
		looking.Go(func() { verdicts[i] = daemon.Proves(ctx, registry, roots) })
	}
	looking.Wait()
	for i, registry := range doubtful {
		own[registry] = verdicts[i]
	}
	return own
}

// remember notes what this run of the daemon has loaded from the store.
func (s *Syncer) remember(rt *runtime, w work) {
	st, unit := s.state.Runtimes[rt.cfg.Name], rt.facts.Unit
	if unit.InvocationID == "" || !unit.Active() {
		return
	}
	seen := loaded{Invocation: unit.InvocationID}
	for _, f := range fingerprints(storeAnchors(w.wanted)) {
		at, known := s.state.Installed[f]
		had := st.Loaded.Invocation == unit.InvocationID && slices.Contains(st.Loaded.Fingerprints, f)
		if had || known && unit.Started.After(at) {
			seen.Fingerprints = append(seen.Fingerprints, f)
		}
	}
	st.Loaded = seen
	s.state.Runtimes[rt.cfg.Name] = st
}

// restart restarts a daemon. What is about to be done is on disk before it is
// done: this process may be killed by it.
func (s *Syncer) restart(ctx context.Context, rt *runtime, w work, status *Status) {
	name := rt.cfg.Name
	st := s.state.Runtimes[name]
	st.Intent = &intent{Set: setOf(storeAnchors(w.wanted)), Invocation: rt.facts.Unit.InvocationID, At: s.now()}
	s.state.Runtimes[name] = st
	if !s.save(status) {
		st.Intent = nil
		s.state.Runtimes[name] = st
		return
	}
	s.log.Info("restarting a daemon", "runtime", string(name), "unit", rt.cfg.Unit, "reason", rt.decision.Reason, "detail", rt.decision.Detail)
	begin := s.now()
	facts, err := s.renew(ctx, rt)
	if isEnded(ctx, err) {
		return // the intent stays: the next agent finds out what came of it
	}
	if errors.Is(err, host.ErrLost) {
		s.hangUp()
		rt.decision = notNow(err)
		return // likewise
	}
	rt.facts, rt.looked = facts, s.now()
	if errors.Is(err, daemon.ErrNotSafe) {
		s.drop() // nothing was done: what ails it is not ours, and other nodes need not wait for it
		st.Intent = nil
		s.state.Runtimes[name] = st
		s.log.Info("the daemon was not restarted after all", "runtime", string(name), "err", err)
		if rt.decision = s.decide(ctx, rt, w, true); rt.decision.Action == daemon.Restart {
			rt.decision = notNow(err)
		}
		return
	}
	s.conclude(ctx, rt, w, err, s.now().Sub(begin), status)
	// What systemd restarted with it has begun anew as well.
	for _, other := range s.runtimes {
		if other != rt && rt.facts.StopsDocker {
			other.looked = time.Time{}
			other.look(ctx, s)
		}
	}
}

// renew restarts a daemon, over a connection that lives.
func (s *Syncer) renew(ctx context.Context, rt *runtime) (daemon.Facts, error) {
	sd, err := s.dial(ctx)
	if err != nil {
		return rt.facts, fmt.Errorf("%w: %w", daemon.ErrNotSafe, err)
	}
	return daemon.Renew(ctx, s.host, sd, rt.cfg, rt.facts)
}

// notNow is the decision about a restart that was decided and could not be made.
func notNow(err error) daemon.Decision {
	return daemon.Decision{Action: daemon.Pending, Reason: notMade, Detail: err.Error(), Remedy: "none: it is looked at again"}
}

// resume finishes what an agent that was killed had begun.
func (s *Syncer) resume(ctx context.Context, rt *runtime, w work, status *Status) {
	st := s.state.Runtimes[rt.cfg.Name]
	if st.Intent == nil || rt.err != nil {
		return
	}
	switch unit := rt.facts.Unit; unit.ActiveState {
	case "active":
		if unit.InvocationID == st.Intent.Invocation {
			// It was not asked for: nothing happened.
			st.Intent = nil
			s.state.Runtimes[rt.cfg.Name] = st
			return
		}
		s.conclude(ctx, rt, w, nil, 0, status)
	case "failed", "inactive":
		if age := s.now().Sub(st.Intent.At); age.Abs() > intentFor {
			st.Intent = nil // it is somebody else who stopped it
			s.state.Runtimes[rt.cfg.Name] = st
			return
		}
		// It may be us who left it so.
		facts, err := s.renew(ctx, rt)
		if isEnded(ctx, err) || errors.Is(err, host.ErrLost) {
			return
		}
		rt.facts, rt.looked = facts, s.now()
		s.conclude(ctx, rt, w, err, 0, status)
	default: // systemd is at it
	}
}

// conclude notes what came of a restart.
func (s *Syncer) conclude(ctx context.Context, rt *runtime, w work, err error, took time.Duration, status *Status) {
	name := rt.cfg.Name
	st := s.state.Runtimes[name]
	result := daemon.Helped
	if err != nil {
		result = daemon.Failed
	} else {
		s.ask(ctx, rt, w)
		if ctx.Err() != nil {
			return // the intent stays
		}
		if len(s.cfg.Registries) == 0 {
			result = healthy
		}
		for _, a := range rt.asked.answers {
			switch a.Verdict {
			case daemon.Untrusted:
				result = daemon.DidNotHelp
			case daemon.Unclear:
				if result == daemon.Helped {
					result = notAsked
				}
			}
		}
	}
	now := s.now()
	st.History.Set, st.History.Outcome, st.History.Run = st.Intent.Set, result, ""
	if run := rt.facts.Unit.InvocationID; run != st.Intent.Invocation {
		st.History.Run = run // otherwise systemd refused: it is the run that was
	}
	st.History.Times = append(slices.DeleteFunc(st.History.Times, func(t time.Time) bool { return now.Sub(t) > hour }), now)
	st.Intent = nil
	s.state.Runtimes[name] = st
	s.remember(rt, w)
	s.save(status)
	rt.restarts[result]++
	args := []any{"runtime", string(name), "result", result, "pid", rt.facts.Unit.MainPID, "took", took.Round(time.Millisecond)}
	switch {
	case err != nil:
		s.log.Warn("a daemon was restarted, and is not healthy", append(args, "err", err)...)
	case result == daemon.DidNotHelp:
		s.log.Warn("a daemon was restarted, and does not trust what is installed: it is not restarted again for these anchors", append(args, "answers", words(rt.asked.answers))...)
	default:
		s.log.Info("a daemon was restarted", args...)
	}
	rt.decision = s.decide(ctx, rt, w, true)
}

func words(answers []daemon.Answer) string {
	var all []byte
	for _, a := range answers {
		if len(all) > 0 {
			all = append(all, "; "...)
		}
		all = append(all, a.Registry+": "+a.Text...)
	}
	return string(all)
}

// noteRuntime logs what is wrong with a daemon.
func (s *Syncer) noteRuntime(r RuntimeStatus) {
	name := string(r.Name)
	if r.Err != "" {
		s.notes.say("runtime "+name, "a daemon could not be looked at", "runtime", name, "err", r.Err)
	}
	d := r.Decision
	switch {
	case d.Action != daemon.Pending:
	case d.Reason == WaitingForSlot:
		// Whose turn it is changes all the time, and is on the status page.
		s.notes.sayAs("pending "+name, d.Reason, "a restart is pending", "runtime", name, "reason", d.Reason, "detail", d.Detail, "remedy", d.Remedy)
	default:
		s.notes.say("pending "+name, "a restart is pending", "runtime", name, "reason", d.Reason, "detail", d.Detail, "remedy", d.Remedy)
	}
	for _, a := range r.Answers {
		switch {
		case a.Verdict == daemon.Trusted:
		case a.Verdict == daemon.Untrusted && d.Action == daemon.Leave:
			s.notes.say("registry "+name+" "+a.Registry, "a daemon does not trust a registry", "runtime", name, "registry", a.Registry, "answer", a.Text, "reason", d.Reason, "detail", d.Detail, "remedy", d.Remedy)
		case a.Verdict == daemon.Unclear:
			s.notes.say("registry "+name+" "+a.Registry, "a daemon cannot tell whether it trusts a registry", "runtime", name, "registry", a.Registry, "answer", a.Text)
		}
	}
	if why := r.Facts.CertDirsWhy; r.Present && why != "" && s.cfg.CertsD && len(s.cfg.Registries) > 0 {
		s.notes.say("certs.d "+name, "a daemon reads no certs.d directory", "runtime", name, "detail", why)
	}
}
