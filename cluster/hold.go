package cluster

import (
	"context"
	"errors"
	"sync"
	"time"
)

// releaseTime is how long freeing a slot may take. An agent that is told to stop
// has five seconds.
const releaseTime = 3 * time.Second

// hold is a slot that is ours.
//
// It is ours until sure: four fifths of its time to live from before the last
// sign of life that succeeded was sent. A sign of life succeeds only on the
// version that came of the one before, so that nobody had the slot in between.
type hold struct {
	slots *Slots
	me    string
	name  string // of the Lease
	lease Lease  // as it was after the last sign of life
	gone  bool   // somebody else has it, or it was deleted

	mu   sync.Mutex
	sure time.Time
}

func newHold(s *Slots, me string, l Lease, sent time.Time) *hold {
	return &hold{slots: s, me: me, name: l.Name, lease: l, sure: sent.Add(sureFor(s.ttl))}
}

// surely tells whether the slot is ours whatever happened since.
func (h *hold) surely() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.slots.now().Before(h.sure)
}

// keep gives signs of life until the function that it returns is called, which
// frees the slot, unless ctx has ended.
func (h *hold) keep(ctx context.Context) (release func()) {
	// The restart goes on when ctx ends, and so do the signs of life.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	done.Go(func() { h.renew(renewing) })
	return sync.OnceFunc(func() {
		stop()
		done.Wait()
		if ctx.Err() == nil {
			h.free(ctx)
		}
	})
}

// renew gives signs of life until ctx ends or the slot is gone.
func (h *hold) renew(ctx context.Context) {
	ttl := h.slots.ttl
	pause, warned := ttl/5, false
	for sleep(ctx, pause) == nil {
		err := h.sign(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			pause, warned = ttl/5, false
		case errors.Is(err, ErrConflict):
			pause = ttl / 100 // the version was old, and is known now
		case h.gone:
			h.slots.cfg.Log.Warn("a restart slot was lost while the restart goes on", "lease", h.name, "err", err)
			return
		default:
			pause = max(ttl/20, after(err))
		}
		if err != nil && !h.surely() && !warned {
			warned = true
			h.slots.cfg.Log.Warn("a restart slot may be lost while the restart goes on: the api server takes no sign of life", "lease", h.name, "err", err)
		}
	}
}

// errTaken says that somebody else has our slot.
var errTaken = errors.New("another node has it")

// sign gives one sign of life. After ErrConflict the slot is still ours, in a
// version that is known now.
func (h *hold) sign(ctx context.Context) error {
	sent := h.slots.now()
	l, err := h.slots.cfg.Leases.Update(ctx, claim(h.lease, h.me, sent, h.slots.ttl))
	switch {
	case err == nil:
		h.lease = l
		h.mu.Lock()
		h.sure = sent.Add(sureFor(h.slots.ttl))
		h.mu.Unlock()
	case errors.Is(err, ErrNotFound):
		h.lose()
	case errors.Is(err, ErrConflict):
		return h.again(ctx)
	}
	return err
}

// again finds out what is behind a conflict. An earlier update of ours may have
// been carried out although nobody told us: then it returns ErrConflict.
func (h *hold) again(ctx context.Context) error {
	l, err := h.slots.cfg.Leases.Get(ctx, h.name)
	switch {
	case err == nil && l.Holder == h.me:
		h.lease = l
		return ErrConflict
	case err == nil:
		h.lose()
		return errTaken
	case errors.Is(err, ErrNotFound):
		h.lose()
	}
	return err
}

// lose notes that the slot is not ours any more.
func (h *hold) lose() {
	h.gone = true
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sure = time.Time{}
}

// free gives the slot back. Where that fails it is free when its time is over.
func (h *hold) free(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	for !h.gone {
		_, err := h.slots.cfg.Leases.Update(ctx, unclaim(h.lease, h.slots.now()))
		if err == nil || errors.Is(err, ErrNotFound) {
			return
		}
		if errors.Is(err, ErrConflict) {
			err = h.again(ctx)
		}
		if !h.gone && sleep(ctx, max(releaseTime/10, after(err))) != nil {
			h.slots.cfg.Log.Warn("a restart slot could not be freed: it is free when its time to live is over", "lease", h.name, "err", err)
			return
		}
	}
}
