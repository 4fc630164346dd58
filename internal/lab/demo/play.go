package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	// seenWithin is how long the agent may take to say what it saw: a lookup
	// that was given up is reported some ten seconds after it began.
	seenWithin = 20 * time.Second
	// patience is how long what else the agent does may take, on a machine with
	// far too much to do.
	patience = time.Minute
	// quietFor is longer than any of the agent's beats.
	quietFor = 1200 * time.Millisecond
	// together is how long packets are held for others at most: longer than a
	// machine stands still, and shorter than musl waits before it asks again.
	together = 2 * time.Second
	// counted are the lookups of the pods.
	counted = `dns_lookups_total{namespace="ci",`
)

// play plays a scene, shows it, and checks that it was seen.
func (s *stage) play(number int, c scene) error {
	fmt.Fprintf(s.out, "\n── %d. %s\n%s\n", number, c.title, c.story)
	before, err := s.agent.metrics()
	if err != nil {
		return err
	}
	from := len(s.agent.logged(0))
	if err := s.make(c); err != nil {
		return fmt.Errorf("scene %d was not played: %w", number, err)
	}

	var after series
	err = s.agent.until(s.ctx, seenWithin, func() (err error) {
		if after, err = s.agent.metrics(); err != nil {
			return err
		}
		return seen(c, s.agent.logged(from), before, after)
	})
	if err != nil {
		return fmt.Errorf("scene %d was not seen: %w", number, err)
	}
	if len(c.logs) == 0 {
		// Nothing may come: give the agent time for what it must not do.
		quiet, cancel := context.WithTimeout(s.ctx, quietFor)
		<-quiet.Done()
		cancel()
		if after, err = s.agent.metrics(); err != nil {
			return err
		}
	}
	lines := s.agent.logged(from)
	s.show(c, lines, before, after)
	if err := tooMuch(scenes[:number], lines, before, after); err != nil {
		return fmt.Errorf("scene %d: %w", number, err)
	}
	return nil
}

// make has the pods ask, and checks that they felt what they should.
func (s *stage) make(c scene) (err error) {
	if c.set != nil {
		if err := c.set(s); err != nil {
			return err
		}
	}
	var h *lab.Holder
	if c.hold > 0 {
		lookups := 0 // once each of them has collided, nothing delays what is asked again
		for _, a := range c.asks {
			lookups += a.times()
		}
		if h, err = s.HoldTimes(c.hold, together, lookups); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
	}
	felt := make([]string, len(c.asks))
	group, ctx := errgroup.WithContext(s.ctx)
	for i, a := range c.asks {
		group.Go(func() (err error) {
			felt[i], err = s.ask(ctx, a)
			return err
		})
	}
	err = group.Wait()
	for _, f := range felt {
		if f != "" { // it could ask
			fmt.Fprintf(s.out, "  the pod    │ %s\n", f)
		}
	}
	if err == nil && h != nil && h.Full() == 0 {
		err = fmt.Errorf("no %d packets were there together", c.hold)
	}
	if err == nil && c.check != nil {
		err = c.check(s)
	}
	return err
}

// ask has a pod look a name up, and says what it felt.
func (s *stage) ask(ctx context.Context, a ask) (felt string, err error) {
	answers, err := s.pods[a.pod].Resolve(ctx, "", lab.MuslStatic, max(1, a.count), a.names...)
	if err != nil {
		return "", err
	}
	var slowest time.Duration
	failed, result := 0, "ok"
	for _, v := range answers {
		slowest = max(slowest, v.Took)
		if v.Err != "" {
			failed++
			result = "could not resolve host (" + v.Err + ")"
		}
	}
	felt = fmt.Sprintf("%s: getaddrinfo of %s", a.pod, strings.Join(a.names, " and "))
	if a.count > 1 {
		felt += fmt.Sprintf(" × %d", a.count)
	}
	took := "it took"
	if a.times() > 1 {
		took = "the slowest took"
	}
	felt += fmt.Sprintf(": %s, %s %.3f s", result, took, slowest.Seconds())
	want := 0
	if a.fails {
		want = a.times()
	}
	if len(answers) != a.times() || failed != want || slowest < a.atLeast || a.below > 0 && slowest >= a.below {
		err = errors.New(felt)
	}
	return felt, err
}

// times is how often a name is looked up.
func (a ask) times() int { return len(a.names) * max(1, a.count) }

// lookups is how many the agent must count.
func (c scene) lookups() float64 {
	total := 0
	for _, a := range c.asks {
		each := a.lookups
		if each == 0 {
			each = 2
		}
		total += a.times() * each
	}
	return float64(total)
}

// seen tells what a scene still lacks.
func seen(c scene, lines []string, before, after series) error {
	for _, want := range c.logs {
		if !slices.ContainsFunc(lines, want.is) {
			return fmt.Errorf("no line with %q in the log", want)
		}
	}
	for _, part := range c.moved {
		if after.sum(part) <= before.sum(part) {
			return fmt.Errorf("%s has not risen", part)
		}
	}
	if got := after.sum(counted) - before.sum(counted); got < c.lookups() {
		return fmt.Errorf("%g lookups were counted, want %g", got, c.lookups())
	}
	return nil
}

// tooMuch tells what was seen in the last of the scenes and should not have
// been. Lines of the earlier ones may come again, merged.
func tooMuch(played []scene, lines []string, before, after series) error {
	c := played[len(played)-1]
	for _, l := range lines {
		expected := func(c scene) bool { return slices.ContainsFunc(c.logs, func(want line) bool { return want.is(l) }) }
		if !strings.Contains(l, " level=DEBUG ") && !slices.ContainsFunc(played, expected) {
			return fmt.Errorf("the agent should not have logged %s", l)
		}
	}
	for _, part := range slices.Concat(c.still, always) {
		if after.sum(part) != before.sum(part) {
			return fmt.Errorf("%s moved from %g to %g", part, before.sum(part), after.sum(part))
		}
	}
	if got := after.sum(counted) - before.sum(counted); got != c.lookups() {
		return fmt.Errorf("%g lookups were counted, want %g", got, c.lookups())
	}
	return nil
}

// is tells whether a line of the log has all parts.
func (l line) is(logged string) bool {
	for _, part := range l {
		if !strings.Contains(logged, part) {
			return false
		}
	}
	return true
}

// show prints what the agent said, each kind of line once, and which of its
// metrics moved.
func (s *stage) show(c scene, lines []string, before, after series) {
	for _, want := range c.logs {
		if i := slices.IndexFunc(lines, want.is); i >= 0 {
			_, text, _ := strings.Cut(lines[i], " ") // the time
			fmt.Fprintf(s.out, "  the log    │ %s\n", text)
		}
	}
	if len(c.logs) == 0 {
		fmt.Fprintln(s.out, "  the log    │ (nothing)")
	}
	for _, m := range slices.Sorted(maps.Keys(after)) {
		if after[m] > before[m] && !background(m) {
			fmt.Fprintf(s.out, "  metrics    │ %s %g → %g\n", m, before[m], after[m])
		}
	}
}

// background tells whether a metric moves all the time.
func background(m string) bool {
	for _, part := range []string{"_entries", "_search_restart_", "_lookups_pending", `messages_total{sensor="lookup"}`} {
		if strings.Contains(m, part) {
			return true
		}
	}
	return false
}
