package cluster

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// permitting runs a test with permits of one slot in a bubble.
func permitting(t *testing.T, test func(t *testing.T, p *Permits, api *script, ready *atomic.Int64, stop func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, api, _ := agentOf(t)
		var ready atomic.Int64
		p := NewPermits(s, func() { ready.Add(1) })
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		stop := sync.OnceFunc(func() { cancel(); done.Wait() })
		test(t, p, api, &ready, stop)
		stop()
	})
}

// until passes time until it was said so often that there is a slot.
func until(t *testing.T, ready *atomic.Int64, times int64) {
	t.Helper()
	for begin := time.Now(); ready.Load() < times; pass(time.Second) {
		if time.Since(begin) > time.Hour {
			t.Fatal("no slot in an hour")
		}
	}
}

func TestPermit(t *testing.T) {
	permitting(t, func(t *testing.T, p *Permits, api *script, ready *atomic.Int64, _ func()) {
		pass(time.Hour)
		if api.lease().Holder != "" {
			t.Error("a slot is taken that nobody asked for")
		}
		for range 3 { // passes that ask
			if _, ok, why := p.Permit(); ok || why == "" {
				t.Errorf("a permit at once: %v, %q", ok, why)
			}
		}
		until(t, ready, 1)
		release, ok, _ := p.Permit()
		if !ok || api.lease().Holder == "" {
			t.Fatal("no permit, although there was one")
		}
		if _, ok, _ := p.Permit(); ok {
			t.Error("two permits at once")
		}
		pass(10 * time.Minute)
		if api.lease().Holder == "" || ready.Load() != 1 {
			t.Error("the slot is not held, or another one came")
		}
		release()
		if api.lease().Holder != "" {
			t.Error("the slot is not free after the release")
		}
		pass(time.Hour) // the second restart's turn; nobody takes it up
		if ready.Load() != 2 || api.lease().Holder != "" {
			t.Errorf("told %d times, held by %q", ready.Load(), api.lease().Holder)
		}
		pass(time.Hour)
		if ready.Load() != 2 {
			t.Error("slots are taken that nobody asked for")
		}
	})
}

// TestPermitOnce: those who asked while they waited need no second slot.
func TestPermitOnce(t *testing.T) {
	permitting(t, func(t *testing.T, p *Permits, api *script, ready *atomic.Int64, _ func()) {
		for ready.Load() == 0 {
			if _, ok, _ := p.Permit(); ok {
				t.Fatal("a permit before it was said")
			}
			pass(time.Second)
		}
		release, ok, _ := p.Permit()
		if !ok {
			t.Fatal("no permit")
		}
		release()
		pass(time.Hour)
		if got := api.lease().Transitions; got != 1 || ready.Load() != 1 {
			t.Errorf("the slot was taken %d times", got)
		}
	})
}

// TestPermitWhy: it says who has the slot.
func TestPermitWhy(t *testing.T) {
	permitting(t, func(t *testing.T, p *Permits, api *script, _ *atomic.Int64, _ func()) {
		api.put(func(l *Lease) { l.Holder = "node-b_x" })
		p.Permit()
		pass(2 * time.Minute)
		if _, _, why := p.Permit(); !strings.Contains(why, "holder node-b_x") || !strings.Contains(why, "nodestead-restart-0") {
			t.Errorf("it says %q", why)
		}
		api.set(true)
		pass(4 * time.Minute)
		if _, _, why := p.Permit(); !strings.Contains(why, "cannot be asked for") || !strings.Contains(why, "timeout") {
			t.Errorf("it says %q", why)
		}
	})
}

// TestPermitStops: an agent that stops in the middle of a restart frees nothing.
func TestPermitStops(t *testing.T) {
	permitting(t, func(t *testing.T, p *Permits, api *script, ready *atomic.Int64, stop func()) {
		p.Permit()
		until(t, ready, 1)
		release, ok, _ := p.Permit()
		if !ok {
			t.Fatal("no permit")
		}
		stop()
		release()
		if api.lease().Holder == "" {
			t.Error("the slot was freed")
		}
	})
}
