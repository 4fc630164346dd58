package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// witness knows all holds of all agents, and complains when one slot has two.
type witness struct {
	mu    sync.Mutex
	holds map[*hold]bool
	wrong string

	taken, killed int
}

func (w *witness) add(h *hold) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for other := range w.holds {
		if other.name == h.name && other.surely() && h.surely() {
			w.wrong = fmt.Sprintf("%s and %s are both sure to have %s", other.me, h.me, h.name)
		}
	}
	w.holds[h] = true
	w.taken++
}

func (w *witness) drop(h *hold) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.holds, h)
}

// sure is how many holds are sure now.
func (w *witness) sure() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for h := range w.holds {
		if h.surely() {
			n++
		}
	}
	return n
}

// applied is called when the server gives a lease to somebody: whoever else has
// a hold on it must not be sure of it any more.
func (w *witness) applied(before, after Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for h := range w.holds {
		if h.name != after.Name || h.me == after.Holder {
			continue
		}
		if h.surely() && after.Holder != "" {
			w.wrong = fmt.Sprintf("%s is given to %s, and %s is sure to have it", after.Name, after.Holder, h.me)
		}
	}
}

// actor is an agent that wants to restart again and again.
type actor struct {
	*Slots
	port    *port
	witness *witness
}

// live restarts until ctx ends. Some restarts outlive the time to live.
func (a *actor) live(ctx context.Context, rnd *rand.Rand) {
	for sleep(ctx, time.Duration(rnd.Int64N(int64(20*time.Second)))) == nil {
		h, err := a.acquire(ctx)
		if err != nil {
			return
		}
		a.witness.add(h)
		release := h.keep(ctx)
		_ = sleep(ctx, time.Duration(rnd.ExpFloat64()*float64(15*time.Second)))
		if ctx.Err() != nil {
			// Killed: nothing is freed, and what systemd was told goes on for as
			// long as the hold lasts.
			release()
			return
		}
		a.witness.drop(h)
		release()
	}
}

// trouble cuts, kills, deletes and stops what it likes.
func trouble(ctx context.Context, m *model, rnd *rand.Rand, actors []*actor, reborn func(*actor)) {
	for sleep(ctx, time.Duration(rnd.Int64N(int64(30*time.Second)))) == nil {
		a := actors[rnd.IntN(len(actors))]
		switch rnd.IntN(10) {
		case 0:
			m.remove()
		case 1, 2:
			m.set(true)
		case 3, 4, 5:
			m.set(false)
		case 6, 7:
			a.port.cut(true)
		case 8:
			a.port.cut(false)
		case 9:
			reborn(a)
		}
	}
}

// interleaving runs some agents for some minutes and returns what was wrong. With
// the directory of a service account they use the real client.
func interleaving(t *testing.T, seed uint64, account string) *witness {
	w := &witness{holds: make(map[*hold]bool)}
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		m := newModel(seed)
		m.chaos = rnd.Float64() * 0.12
		m.applied = w.applied
		network, end := m.serve()
		agents, limit := 2+rnd.IntN(4), 8*time.Minute
		if account != "" { // each request costs more
			agents, limit = 2+rnd.IntN(2), 150*time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		slots := 1 + rnd.IntN(2)
		if rnd.IntN(2) == 0 { // somebody has made the Leases
			for i := range slots {
				m.store(Lease{Name: slotPrefix + strconv.Itoa(i)})
			}
		}
		// Agents of several versions may differ, but then nobody deletes a Lease.
		m.keep = rnd.IntN(2) == 0
		ttl := func() time.Duration {
			if m.keep {
				return time.Duration(15+rnd.IntN(3)*5) * time.Second
			}
			return 20 * time.Second
		}
		var all sync.WaitGroup
		var actors []*actor
		kills := make(map[*actor]context.CancelFunc)
		start := func(a *actor) {
			life, kill := context.WithCancel(ctx)
			kills[a] = kill
			own := rand.New(rand.NewPCG(seed, rnd.Uint64()))
			all.Go(func() { a.live(life, own) })
		}
		for i := range agents {
			begun, offset, rate := time.Now(), time.Duration(rnd.Int64N(int64(2*time.Hour)))-time.Hour, 0.9+rnd.Float64()*0.2
			p := &port{model: m}
			var api Leases = p
			if account != "" {
				c := &Client{base: "http://api", dir: account, namespace: "nodestead", timeout: requestTime, dial: network.dial}
				defer c.Close()
				api = wire{c, p}
			}
			a := &actor{port: p, witness: w, Slots: &Slots{
				cfg: SlotsConfig{
					Leases: api, Node: fmt.Sprintf("node-%d", i), Slots: slots,
					ControlPlane: func(context.Context) (bool, error) { return i == 0, nil }, Log: slog.New(slog.DiscardHandler),
				},
				ttl:  ttl(),
				pace: pace{first: 5 * time.Second, shortest: 2 * time.Second, longest: 8 * time.Second, retry: time.Second},
				now: func() time.Time {
					return begun.Add(offset + time.Duration(float64(time.Since(begun))*rate))
				},
			}}
			actors = append(actors, a)
			start(a)
		}
		trouble(ctx, m, rnd, actors, func(a *actor) {
			kills[a]()
			w.killed++
			start(a)
		})
		all.Wait()
		for _, kill := range kills {
			kill()
		}
		time.Sleep(2 * time.Minute) //nolint:forbidigo // in a bubble: requests still on their way arrive
		end()
	})
	return w
}

// TestNoTwoHolders lets agents whose clocks differ compete while requests and
// answers are lost, late and refused, the server stops, and agents are cut off
// and killed.
func TestNoTwoHolders(t *testing.T) {
	count := 10_000
	if raced {
		count = 300
	}
	interleave(t, count, 3*count, func(t *testing.T, seed uint64) *witness { return interleaving(t, seed, "") })
}

// interleave runs many interleavings of random seeds, in which enough slots must
// be taken.
func interleave(t *testing.T, count, enough int, run func(*testing.T, uint64) *witness) {
	base := rand.Uint64()
	var mu sync.Mutex
	var next, taken, killed int
	for range runtime.GOMAXPROCS(0) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for {
				mu.Lock()
				next++
				n := next
				mu.Unlock()
				if n > count {
					return
				}
				seed := base + uint64(n)
				w := run(t, seed)
				if w.wrong != "" {
					t.Fatalf("seed %d: %s", seed, w.wrong)
				}
				mu.Lock()
				taken += w.taken
				killed += w.killed
				mu.Unlock()
			}
		})
	}
	t.Cleanup(func() {
		t.Logf("%d interleavings, %d slots taken, %d agents killed", count, taken, killed)
		if !t.Failed() && taken < enough {
			t.Errorf("only %d slots were taken in %d interleavings: that tests little", taken, count)
		}
	})
}
