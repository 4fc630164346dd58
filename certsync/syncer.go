package certsync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/certsync/place"
)

// Syncer keeps one node's trust as the sources say. Its methods are for one
// goroutine.
type Syncer struct {
	cfg  Config
	host *host.Host
	log  *slog.Logger
	now  func() time.Time

	state    state
	mustRead bool // state is not that of the disk
	lost     bool // there was none on disk
	systemd  *host.Systemd
	store    *place.Store // nil until it was found
	runtimes map[daemon.Name]*runtime
	notes    notes
	targets  map[string]time.Time // when each was last seen to be in sync
	synced   map[string]string    // and with which anchors
	changes  map[Change]int
	gate     Gate
	held     held
	again    time.Duration // after which the last pass wants another one; 0: none
}

// New opens the node. The caller closes it.
func New(cfg Config) (*Syncer, error) {
	h, err := host.Open(cfg.HostRoot)
	if err != nil {
		return nil, err
	}
	s := &Syncer{
		cfg: cfg, host: h, log: cfg.Log, now: time.Now, mustRead: true,
		runtimes: make(map[daemon.Name]*runtime),
		notes:    notes{log: cfg.Log, said: make(map[string]string)},
		targets:  make(map[string]time.Time),
		synced:   make(map[string]string),
		changes:  make(map[Change]int),
	}
	if s.gate = cfg.Gate; s.gate == nil {
		s.gate = openGate{}
	}
	s.notes.begin()
	for _, r := range cfg.Runtimes {
		s.runtimes[r.Name] = newRuntime(r)
	}
	return s, nil
}

// Close closes what New and the passes opened.
func (s *Syncer) Close() error {
	s.drop()
	s.hangUp()
	return s.host.Close()
}

// Run makes a pass at once, after each change of a source, when a restart that
// waited may begin, and at the interval, until ctx ends. It hands the Status of each pass to emit. It returns nil only
// when ctx has ended.
func (s *Syncer) Run(ctx context.Context, emit func(Status)) error {
	watcher := anchor.NewWatcher(s.cfg.Sources, s.log)
	var watching sync.WaitGroup
	watching.Go(func() { _ = watcher.Run(ctx) }) // nil once ctx has ended, which is all that ends it
	defer watching.Wait()
	for {
		status := s.pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		emit(status)
		interval := s.cfg.Interval
		if s.again > 0 {
			interval = min(interval, s.again)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Changed():
		case <-s.gate.Ready():
		case <-time.After(interval):
		}
	}
}

// Once makes one pass. The error says that it did not come to its end.
func (s *Syncer) Once(ctx context.Context) (Status, error) {
	status := s.pass(ctx)
	return status, ctx.Err()
}

// OnStep has fn called before and after each step that another process may see,
// for tests that end this one there.
func (s *Syncer) OnStep(fn func(step string)) { s.host.OnStep(fn) }

// dial connects to systemd, if that is not done yet.
func (s *Syncer) dial(ctx context.Context) (*host.Systemd, error) {
	if s.systemd != nil {
		return s.systemd, nil
	}
	sd, err := s.host.Systemd(ctx)
	if err != nil {
		return nil, err
	}
	s.systemd = sd
	return sd, nil
}

// hangUp closes the connection to systemd: the next pass makes another one.
func (s *Syncer) hangUp() {
	if s.systemd != nil {
		s.systemd.Close()
		s.systemd = nil
	}
}

// save writes the state. Its failure is reported with the pass, and nothing is
// restarted after it.
func (s *Syncer) save(status *Status) bool {
	if err := s.state.write(s.host); err != nil {
		status.Errs = append(status.Errs, err.Error())
		return false
	}
	return true
}

// recall reads the state from disk, and tells whether it is another one than
// before: another agent may have been there.
func (s *Syncer) recall() (changed bool) {
	st, found, err := readState(s.host)
	if err != nil {
		s.notes.say("state", "the state of trust cannot be read; what is installed stays until every source can be read", "err", err)
	}
	if !found {
		st.Kept = s.adopt()
	}
	changed = s.mustRead || !st.equal(s.state)
	s.state, s.mustRead, s.lost = st, false, !found
	return changed
}

// adopt gives the anchors of ours that are in the trust store, for a state that
// was lost.
func (s *Syncer) adopt() map[string]string {
	kept := make(map[string]string)
	store, err := s.findStore()
	if err != nil {
		return kept // look says so
	}
	for _, a := range store.Installed() {
		kept[a.Fingerprint] = string(a.PEM())
	}
	return kept
}

// count counts what was done at a target.
func (s *Syncer) count(target, result string) { s.changes[Change{target, result}]++ }

// counts is a copy of what was counted.
func (s *Syncer) counts() map[Change]int { return maps.Clone(s.changes) }

// lock keeps other agents of this node out.
func (s *Syncer) lock(ctx context.Context) (unlock func(), err error) {
	release, err := s.host.Lock(ctx, lockFile)
	if err != nil {
		return nil, fmt.Errorf("keep other agents of this node out: %w", err)
	}
	return func() {
		if err := release(); err != nil {
			s.log.Warn("the lock of trust was not given back", "err", err)
		}
	}, nil
}

// isEnded tells whether an error only says that ctx has ended.
func isEnded(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}
