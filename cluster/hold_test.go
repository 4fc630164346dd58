package cluster

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// script answers each request as a test wants it, on top of a model.
type script struct {
	*port
	mu     sync.Mutex
	get    func() error // nil: as the model does
	update func(do func() (Lease, error)) (Lease, error)
}

func (s *script) Get(ctx context.Context, name string) (Lease, error) {
	s.mu.Lock()
	get := s.get
	s.mu.Unlock()
	if get != nil {
		if err := get(); err != nil {
			return Lease{}, err
		}
	}
	return s.port.Get(ctx, name)
}

func (s *script) Update(ctx context.Context, l Lease) (Lease, error) {
	s.mu.Lock()
	update := s.update
	s.mu.Unlock()
	if update == nil {
		return s.port.Update(ctx, l)
	}
	return update(func() (Lease, error) { return s.port.Update(ctx, l) })
}

func (s *script) onUpdate(update func(do func() (Lease, error)) (Lease, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.update = update
}

// lease is the slot as the server has it.
func (s *script) lease() Lease {
	s.model.mu.Lock()
	defer s.model.mu.Unlock()
	return s.leases[slotPrefix+"0"]
}

// put gives the slot a new state.
func (s *script) put(change func(*Lease)) {
	s.model.mu.Lock()
	defer s.model.mu.Unlock()
	l := s.leases[slotPrefix+"0"]
	l.Name = slotPrefix + "0"
	change(&l)
	s.store(l)
}

// agentOf gives an agent with one slot, which is free, and its log.
func agentOf(t *testing.T) (*Slots, *script, *bytes.Buffer) {
	t.Helper()
	api := &script{port: &port{model: newModel(1)}}
	api.put(func(*Lease) {})
	var log bytes.Buffer
	s, err := NewSlots(SlotsConfig{
		Leases: api, Node: "node-a", Slots: 1, Log: slog.New(slog.NewTextHandler(&log, nil)),
		ControlPlane: func(context.Context) (bool, error) { return false, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, api, &log
}

// holding gives a hold that gives signs of life.
func holding(t *testing.T, ctx context.Context) (*hold, func(), *script, *bytes.Buffer) {
	t.Helper()
	s, api, log := agentOf(t)
	h, err := s.acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h, h.keep(ctx), api, log
}

func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a bubble
	synctest.Wait()
}

func TestHoldAndRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, release, api, _ := holding(t, t.Context())
		if got := api.lease(); got.Holder != h.me || !strings.HasPrefix(h.me, "node-a_") || got.TTL != slotTTL || got.Transitions != 1 {
			t.Errorf("the lease is %+v", got)
		}
		pass(3 * slotTTL)
		if !h.surely() {
			t.Error("it is lost, although the server takes signs of life")
		}
		release()
		if got := api.lease(); got.Holder != "" {
			t.Errorf("after the release it is held by %s", got.Holder)
		}
		version := api.lease().Version
		release() // once is enough
		pass(slotTTL)
		if got := api.lease(); got.Version != version {
			t.Error("something was written after the release")
		}
	})
}

// TestSlotSaysHowLong: the time before the first look is waited, too.
func TestSlotSaysHowLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, log := agentOf(t)
		s.pace.first = time.Hour
		begin := time.Now()
		if _, err := s.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := "waited=" + time.Since(begin).Round(time.Second).String(); !strings.Contains(log.String(), want) {
			t.Errorf("it does not say %s:\n%s", want, log)
		}
	})
}

// TestHoldLeft: an agent that is told to stop leaves the slot taken, because
// systemd may still be at it.
func TestHoldLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		h, release, api, _ := holding(t, ctx)
		stop()
		pass(2 * slotTTL)
		if !h.surely() {
			t.Error("the signs of life end before the release")
		}
		release()
		if got := api.lease(); got.Holder != h.me {
			t.Errorf("it is held by %q", got.Holder)
		}
	})
}

// TestHoldSurvivesAnOutage: a hold is sure for four fifths of its time, says so
// when that is over, and goes on when the server is back.
func TestHoldSurvivesAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, release, api, log := holding(t, t.Context())
		api.set(true)
		pass(slotTTL*4/5 - 2*time.Second)
		if !h.surely() {
			t.Error("it is not sure any more before its time")
		}
		pass(3 * time.Second)
		if h.surely() {
			t.Error("it is sure although its time is over")
		}
		pass(time.Minute)
		if got := strings.Count(log.String(), "may be lost"); got != 1 {
			t.Errorf("it was said %d times:\n%s", got, log)
		}
		api.set(false)
		pass(time.Minute)
		if !h.surely() {
			t.Error("no sign of life after the server is back")
		}
		release()
		if got := api.lease(); got.Holder != "" {
			t.Errorf("after the release it is held by %s", got.Holder)
		}
	})
}

// TestSureFromBeforeTheRequest: the time of a hold begins when the sign of life
// is sent, because others may see it at once, however late its answer is.
func TestSureFromBeforeTheRequest(t *testing.T) {
	late := func(do func() (Lease, error)) (Lease, error) {
		l, err := do()
		time.Sleep(9 * time.Second) //nolint:forbidigo // in a bubble
		return l, err
	}
	for _, when := range []string{"taking", "renewing"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, api, _ := agentOf(t)
				if when == "taking" {
					api.onUpdate(late)
				}
				h, err := s.acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				release := h.keep(t.Context())
				if when == "renewing" {
					api.onUpdate(late)
					pass(slotTTL/5 + 10*time.Second)
				}
				if got, want := h.sure, api.lease().Renewed.Add(sureFor(slotTTL)); !got.Equal(want) {
					t.Errorf("it is sure until %v, want %v", got, want)
				}
				api.onUpdate(nil)
				release()
			})
		})
	}
}

// TestLateSuccess: an update was carried out, and nobody told us.
func TestLateSuccess(t *testing.T) {
	silent := func(do func() (Lease, error)) (Lease, error) {
		_, _ = do()
		return Lease{}, errTimeout
	}
	t.Run("taking", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, api, _ := agentOf(t)
			tries := 0
			api.onUpdate(func(do func() (Lease, error)) (Lease, error) {
				if tries++; tries < 3 {
					return silent(do)
				}
				return do()
			})
			begin := time.Now()
			release, err := s.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(begin); waited > 2*time.Minute || tries != 3 {
				t.Errorf("it was ours after %v and %d updates", waited, tries)
			}
			release()
		})
	})
	t.Run("renewing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, release, api, log := holding(t, t.Context())
			tries := 0
			api.onUpdate(func(do func() (Lease, error)) (Lease, error) {
				if tries++; tries%3 == 1 {
					return silent(do)
				}
				return do()
			})
			pass(3 * slotTTL)
			if !h.surely() || log.Len() == 0 || strings.Contains(log.String(), "WARN") {
				t.Errorf("it is sure: %v\n%s", h.surely(), log)
			}
			api.onUpdate(nil)
			release()
		})
	})
	t.Run("releasing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, release, api, log := holding(t, t.Context())
			tries := 0
			api.onUpdate(func(do func() (Lease, error)) (Lease, error) {
				if tries++; tries == 1 {
					return silent(do)
				}
				return do()
			})
			release()
			if api.lease().Holder != "" || strings.Contains(log.String(), "could not be freed") {
				t.Errorf("it is held by %q\n%s", api.lease().Holder, log)
			}
		})
	})
}

// TestHoldLost: somebody else has the slot, or has deleted it. Nothing is done
// about that, and above all nothing to the other's slot.
func TestHoldLost(t *testing.T) {
	tests := map[string]func(*script){
		"taken":   func(api *script) { api.put(func(l *Lease) { l.Holder = "node-b_x" }) },
		"freed":   func(api *script) { api.put(func(l *Lease) { l.Holder = "" }) },
		"deleted": func(api *script) { api.remove() },
	}
	for name, happens := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, release, api, log := holding(t, t.Context())
				happens(api)
				want := api.lease()
				pass(slotTTL / 4)
				if h.surely() {
					t.Error("it is sure of a slot that is not its own")
				}
				if !strings.Contains(log.String(), "was lost while the restart goes on") {
					t.Errorf("nothing is said:\n%s", log)
				}
				release()
				if got := api.lease(); got.Version != want.Version || got.Holder != want.Holder {
					t.Errorf("the slot is %+v, was %+v", got, want)
				}
			})
		})
	}
	t.Run("before the release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, release, api, _ := holding(t, t.Context())
			api.put(func(l *Lease) { l.Holder = "node-b_x" })
			release()
			if got := api.lease(); got.Holder != "node-b_x" {
				t.Errorf("the other's slot was freed: %+v", got)
			}
		})
	})
}

// TestReleaseIsQuick: an agent that is told to stop has five seconds.
func TestReleaseIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, release, api, log := holding(t, t.Context())
		api.set(true)
		begin := time.Now()
		release()
		if took := time.Since(begin); took > releaseTime {
			t.Errorf("the release took %v", took)
		}
		if !strings.Contains(log.String(), "could not be freed") {
			t.Errorf("nothing is said:\n%s", log)
		}
	})
}

// TestAcquireEnds: with ctx, wherever it waits.
func TestAcquireEnds(t *testing.T) {
	for name, limit := range map[string]time.Duration{"before the first look": time.Nanosecond, "while it waits": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, api, log := agentOf(t)
				go func() { // a holder that lives
					for sleep(t.Context(), time.Minute) == nil {
						api.put(func(l *Lease) { l.Holder = "node-b_x" })
					}
				}()
				api.put(func(l *Lease) { l.Holder = "node-b_x" })
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				release, err := s.Acquire(ctx)
				if !errors.Is(err, context.DeadlineExceeded) || release != nil {
					t.Errorf("the error is %v", err)
				}
				if limit > time.Minute && strings.Count(log.String(), "holder=node-b_x") != 1 {
					t.Errorf("why it waits is not said once:\n%s", log)
				}
			})
		})
	}
}

// TestServerIsSpared: while it refuses, the looks become few, and as few as it
// asks for.
func TestServerIsSpared(t *testing.T) {
	tests := map[string]struct {
		err  error
		most int
	}{
		"errors":            {errTimeout, 14 + 60},
		"its own words":     {&busyError{after: 5 * time.Minute, err: errTimeout}, 13},
		"more than we take": {&busyError{after: 24 * time.Hour, err: errTimeout}, 13},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, api, _ := agentOf(t)
				looks := 0
				api.get = func() error { looks++; return tc.err }
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if _, err := s.Acquire(ctx); err == nil {
					t.Error("a slot was given without a server")
				}
				if looks < 5 || looks > tc.most {
					t.Errorf("%d looks in an hour, want at most %d", looks, tc.most)
				}
			})
		})
	}
}

// TestOutageThenFree: a slot is taken soon after the server is back.
func TestOutageThenFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, api, _ := agentOf(t)
		api.set(true)
		time.AfterFunc(5*time.Minute, func() { api.set(false) })
		begin := time.Now()
		release, err := s.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begin); waited < 5*time.Minute || waited > 9*time.Minute {
			t.Errorf("it waited for %v", waited)
		}
		release()
	})
}
