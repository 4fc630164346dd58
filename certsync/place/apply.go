package place

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// Apply implements Target. It plans again under the lock, since another agent may
// have been at it, runs the tool, and waits until nobody else does, because two
// runs at a time destroy the bundle. What is then wrong is mended by another run.
// It can be killed anywhere, and run again.
func (s *Store) Apply(ctx context.Context, _ Plan, anchors []anchor.Anchor) (err error) {
	unlock, err := s.h.Lock(ctx, storeLock)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := s.apply(ctx, anchors); err != nil {
		return fmt.Errorf("bring the trust store up to date: %w", err)
	}
	return nil
}

func (s *Store) apply(ctx context.Context, anchors []anchor.Anchor) error {
	p, before, err := s.compare(anchors)
	if err != nil {
		return err
	}
	if p.Empty() {
		return p.blocked()
	}
	if why := s.readOnly(); why != "" {
		return errors.New(why)
	}
	gone := map[string]bool{}
	for _, c := range p.Changes {
		if err := s.change(c); err != nil {
			return err
		}
		if c.Content == nil {
			gone[c.Fingerprints[0]] = true
		}
	}
	r := &rebuild{Store: s, anchors: anchors, gone: gone}
	if !before.older { // else what somebody has removed may rightly go
		r.before = before.bundle.certs
	}
	return r.run(ctx, p.Tool)
}

// change writes or removes one of our files.
func (s *Store) change(c Change) error {
	if c.Content == nil {
		return s.h.Remove(c.Path)
	}
	if _, err := s.h.Stat(path.Dir(c.Path)); err != nil {
		if _, err := s.h.MkdirOwn(path.Dir(c.Path)); err != nil {
			return err
		}
	}
	_, err := s.h.WriteFile(c.Path, c.Content, anchorMode)
	return err
}

// rebuild is the making of a bundle.
type rebuild struct {
	*Store
	anchors []anchor.Anchor
	before  map[string]int  // what was in the bundle, and shall stay
	gone    map[string]bool // anchors that were taken out
	lost    []string        // certificates of others that the last run lost
}

// run runs the tool until the bundle is right.
func (r *rebuild) run(ctx context.Context, argv []string) error {
	var wrong []string
	for range maxRuns {
		alone, err := r.quiet(ctx)
		if err != nil {
			return err
		}
		if alone && r.layout.unfinished != "" {
			// Nobody writes it any more, and the tool would append to it.
			if err := r.h.Remove(r.layout.unfinished); err != nil {
				return err
			}
		}
		failed := r.Store.run(ctx, storeUnit, argv)
		if failed != nil && ctx.Err() != nil {
			return failed
		}
		if _, err := r.quiet(ctx); err != nil {
			return err
		}
		mark, err := r.mark(r.anchors)
		if err != nil {
			return err
		}
		var problems []Problem
		var last bool
		if wrong, problems, last, err = r.verify(); err != nil {
			return err
		}
		if failed != nil { // as it does when another run has moved its bundle away
			wrong = append(wrong, failed.Error())
		}
		if len(wrong) == 0 {
			if err := (Plan{Problems: problems}).blocked(); err != nil {
				return err
			}
			r.inOrder(mark, r.anchors, problems)
			return nil
		}
		r.stuck, r.stuckAt, r.why = mark, time.Now(), strings.Join(wrong, "; ")
		if last {
			break
		}
		argv = append([]string{r.tool}, r.layout.fresh...)
	}
	return fmt.Errorf("%s has run, and even so: %s", r.tool, strings.Join(wrong, "; "))
}

// verify says what is wrong with what the tool has made, and whether another run
// would be in vain.
func (r *rebuild) verify() (wrong []string, problems []Problem, last bool, err error) {
	st, err := r.look()
	if err != nil {
		return nil, nil, false, err
	}
	st.older = false // it has just been made, whatever the clock says
	p := r.layout.plan(st, r.tool, r.anchors, nil)
	if !p.Empty() {
		wrong = append(wrong, p.Why)
	}
	must := r.layout.must(st)
	extra := 0
	for fp := range st.bundle.certs {
		unasked := r.layout.conf != "" && must[fp]+st.own[fp].certs[fp] == 0
		if unasked || r.gone[fp] && !st.given(fp) {
			extra++
		}
	}
	if extra > 0 {
		wrong = append(wrong, fmt.Sprintf("the bundle has certificates that should be gone: %d", extra))
	}
	if r.layout.conf != "" {
		return wrong, p.Problems, false, nil
	}
	// What should be in is not known; but a run that nobody disturbed does not
	// lose the same certificates twice, unless they were meant to go.
	lost := slices.Sorted(maps.Keys(r.before))
	lost = slices.DeleteFunc(lost, func(fp string) bool { return st.bundle.has(fp) || r.gone[fp] })
	last = len(lost) > 0 && len(wrong) == 0 && slices.Equal(lost, r.lost)
	r.lost = lost
	if len(lost) > 0 {
		wrong = append(wrong, fmt.Sprintf("the bundle has lost certificates of others: %d, first %s", len(lost), lost[0]))
	}
	return wrong, p.Problems, last, nil
}

// quiet waits until nobody else runs the tool, and reports whether that is so. It
// does not wait forever: a run may hang.
func (s *Store) quiet(ctx context.Context) (bool, error) {
	limit := time.NewTimer(quietLimit)
	defer limit.Stop()
	ticker := time.NewTicker(quietPoll)
	defer ticker.Stop()
	for {
		pids, err := runs(s.h)
		if err != nil || len(pids) == 0 {
			return err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("wait for a run of the tool by process %d: %w", pids[0], ctx.Err())
		case <-limit.C:
			return false, nil
		case <-ticker.C:
		}
	}
}
