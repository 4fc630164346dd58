package place

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/internal/lab"
)

// counted has stores count the runs of their tool.
func counted(stores ...*Store) *atomic.Int32 {
	ran := new(atomic.Int32)
	for _, s := range stores {
		run := s.run
		s.run = func(ctx context.Context, unit string, argv []string) error {
			ran.Add(1)
			return run(ctx, unit, argv)
		}
	}
	return ran
}

// testTwoAgents has two agents that do not know of each other bring the store to
// the same set at once. One of them does it, the other has nothing left to do.
func testTwoAgents(t *testing.T, n *node) {
	one, two := n.open(t), n.open(t)
	ran := counted(one, two)
	for round := range 10 {
		anchors := sorted(newAnchor(t, fmt.Sprint("agents ", round)))
		var wg sync.WaitGroup
		for _, s := range []*Store{one, two} {
			p := n.plan(t, s, anchors)
			wg.Go(func() {
				if err := s.Apply(t.Context(), p, anchors); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := ran.Swap(0); got != 1 {
			t.Errorf("round %d: the tool has run %d times", round, got)
		}
		n.check(t, anchors...)
		for _, s := range []*Store{one, two} {
			if p := n.plan(t, s, anchors); !p.Empty() {
				t.Errorf("round %d: there is still something to do: %+v", round, p)
			}
		}
	}
	n.sync(t, n.store)
}

// testAnotherRun has somebody else run the tool, or dpkg's trigger, while the store
// is brought up to date: from before it on, or when it has come to some point.
func testAnotherRun(t *testing.T, n *node) {
	bundle, half := filepath.Join(n.Root(), debianBundle), filepath.Join(n.Root(), debianBundle+".new")
	size := func(name string) int64 {
		fi, err := os.Stat(name)
		if err != nil {
			return -1
		}
		return fi.Size()
	}
	full := size(bundle)
	for round := range 10 {
		an := newAnchor(t, fmt.Sprint("another run ", round))
		anchors := []anchor.Anchor{an}
		point := []func() bool{
			func() bool { return true },
			func() bool { return size(filepath.Join(n.Root(), localDir, "nodestead-"+an.Fingerprint+".crt")) > 0 },
			func() bool { return size(half) >= 0 },
			func() bool { return size(half) > full/2 },
			func() bool { return size(half) > full*9/10 },
		}[round%5]
		other := []string{debTool, "--fresh"}
		if round >= 5 {
			other = []string{"sh", "-c", "dpkg-trigger --no-await update-ca-certificates && dpkg --triggers-only ca-certificates"}
		}
		p := n.plan(t, n.store, anchors)
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := lab.Until(t.Context(), time.Minute, func() error {
				select {
				case <-done: // too late
					return nil
				default:
				}
				if point() {
					return nil
				}
				return errors.New("not there yet")
			})
			if err == nil {
				_, err = n.Run(t.Context(), other...)
			}
			if err != nil { // it is spoiled by us as well as we by it
				t.Logf("round %d: %v", round, err)
			}
		})
		err := n.store.Apply(t.Context(), p, anchors)
		close(done)
		wg.Wait()
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		// The other may have begun after the last look. Then the next plan sees it.
		if p := n.plan(t, n.store, anchors); !p.Empty() {
			t.Logf("round %d: the next plan has to mend: %s", round, p.Why)
			if err := n.store.Apply(t.Context(), p, anchors); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		n.check(t, anchors...)
	}
	n.sync(t, n.store)
}
