package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// slotPrefix is what the slots' Leases are called, before their number.
const slotPrefix = "nodestead-restart-"

// slotTTL is how long a slot stays taken when its holder is gone. While the API
// server cannot be reached, a slot is surely ours for four fifths of it, which is
// more than a restart takes (3 minutes). It is no setting: where it differs, a
// Lease that is deleted while it is held could get a second holder too early.
const slotTTL = 5 * time.Minute

// SlotsConfig is what Slots need. Nothing in it has a default.
type SlotsConfig struct {
	Leases Leases
	// Node is the name of this node.
	Node string
	// Slots is how many nodes may restart at once: 1 to 20, the same on all.
	Slots int
	// ControlPlane tells whether this node is of the control plane, which takes
	// a slot only when no worker wants it. It is asked once it is needed.
	ControlPlane func(context.Context) (bool, error)
	// Windows are the times in which a restart may begin; none: at any time.
	Windows []Window
	Log     *slog.Logger
}

// Slots limits how many nodes of the cluster restart a runtime at once.
type Slots struct {
	cfg  SlotsConfig
	ttl  time.Duration
	pace pace
	now  func() time.Time

	mu  sync.Mutex
	why string // we wait
}

// NewSlots gives slots for valid settings.
func NewSlots(cfg SlotsConfig) (*Slots, error) {
	var errs []error
	if cfg.Node == "" {
		errs = append(errs, errors.New("the node's name is empty"))
	}
	if cfg.Slots < 1 || cfg.Slots > 20 {
		errs = append(errs, fmt.Errorf("%d slots: want 1 to 20", cfg.Slots))
	}
	for _, w := range cfg.Windows {
		if w.location == nil {
			errs = append(errs, errors.New("a window that NewWindow did not make"))
		}
	}
	return &Slots{cfg: cfg, ttl: slotTTL, pace: defaultPace(), now: time.Now}, errors.Join(errs...)
}

// waitsFor is why there is no slot yet.
func (s *Slots) waitsFor() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == "" {
		return "waiting for a restart slot"
	}
	return s.why
}

// Acquire waits for a slot, and gives the function that frees it again, which
// must be called. It returns an error only when ctx has ended.
//
// The slot is ours until release returns. While the API server cannot be reached
// it is ours for at least 3 minutes and 50 seconds from when Acquire returned;
// that it may be another's then is logged.
//
// When ctx has ended before release is called, the slot is not freed: the agent
// is told to stop, and what it has begun may still be going on. The slot is free
// then when its time to live is over.
func (s *Slots) Acquire(ctx context.Context) (release func(), err error) {
	h, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return h.keep(ctx), nil
}

// acquire waits for a slot.
func (s *Slots) acquire(ctx context.Context) (*hold, error) {
	s.mu.Lock()
	s.why = ""
	s.mu.Unlock()
	w := waiting{
		slots: s, me: s.cfg.Node + "_" + rand.Text()[:10],
		slot: mathrand.N(s.cfg.Slots), sights: make([]sight, s.cfg.Slots), began: s.now(),
	}
	pause := s.pace.begin()
	for {
		if err := sleep(ctx, pause); err != nil {
			return nil, fmt.Errorf("wait for a restart slot: %w", err)
		}
		if opens := untilOpen(s.cfg.Windows, s.now()); opens > 0 {
			w.say("no restart may begin now", "opens", s.now().Add(opens).Round(time.Second))
			pause = opens + s.pace.begin()
			clear(w.sights) // while nobody may take it, a free slot tests nobody's patience
			continue
		}
		h, err := w.look(ctx)
		switch {
		case h != nil:
			s.cfg.Log.Info("a restart slot is ours", "lease", h.name, "waited", w.waited())
			return h, nil
		case err != nil && ctx.Err() == nil:
			// What came of the request is not known, so it is this slot that we
			// look at again.
			w.failed++
			pause = after(err) + s.pace.next(w.answered, w.failed)
			w.say("the restart slots cannot be asked for", "err", err)
		default:
			w.failed = 0
			w.answered++
			w.slot = (w.slot + 1) % s.cfg.Slots
			pause = s.pace.next(w.answered, 0)
		}
	}
}

// waiting is one wait for a slot.
type waiting struct {
	slots            *Slots
	me               string // of this wait alone: what an earlier one left is not ours
	slot             int    // that is looked at next
	sights           []sight
	answered, failed int
	began            time.Time
	patience         *time.Duration // nil: not known yet
	said             string
}

// look looks at one slot and takes it if it is free. Without a hold and an error
// it is somebody else's.
func (w *waiting) look(ctx context.Context) (*hold, error) {
	s := w.slots
	if err := w.place(ctx); err != nil {
		return nil, err
	}
	name := slotPrefix + strconv.Itoa(w.slot)
	l, err := s.cfg.Leases.Get(ctx, name)
	if errors.Is(err, ErrNotFound) {
		l, err = s.cfg.Leases.Create(ctx, claim(Lease{Name: name}, newSlot, s.now(), s.ttl))
	}
	if errors.Is(err, ErrConflict) {
		return nil, nil // somebody else has created it
	}
	if err != nil {
		return nil, err
	}
	if w.sights[w.slot].judge(l, w.me, s.now(), s.ttl, *w.patience) == held {
		w.say("waiting for a restart slot", "lease", name, "holder", l.Holder)
		return nil, nil
	}
	sent := s.now()
	l, err = s.cfg.Leases.Update(ctx, claim(l, w.me, sent, s.ttl))
	switch {
	case errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound):
		return nil, nil // somebody else was quicker
	case err != nil:
		return nil, err
	}
	return newHold(s, w.me, l, sent), nil
}

// place finds out where this node stands: the control plane comes last.
func (w *waiting) place(ctx context.Context) error {
	if w.patience != nil {
		return nil
	}
	s := w.slots
	last, err := s.cfg.ControlPlane(ctx)
	if err != nil {
		return fmt.Errorf("find out whether %s is of the control plane: %w", s.cfg.Node, err)
	}
	w.patience = new(time.Duration)
	if last {
		*w.patience = s.pace.patience(s.cfg.Slots)
	}
	return nil
}

// say notes why we wait, and logs it when that has changed.
func (w *waiting) say(what string, args ...any) {
	s := w.slots
	var text strings.Builder
	text.WriteString(what)
	for pair := range slices.Chunk(args, 2) {
		fmt.Fprintf(&text, ", %s %v", pair...)
	}
	s.mu.Lock()
	s.why = strings.ReplaceAll(text.String(), "\n", " ")
	s.mu.Unlock()
	if w.said != what {
		w.said = what
		s.cfg.Log.Info(what, args...) //nolint:sloglint // the messages of acquire and look, all of them constant
	}
}

func (w *waiting) waited() time.Duration { return w.slots.now().Sub(w.began).Round(time.Second) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
