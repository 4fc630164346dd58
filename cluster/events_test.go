package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// sent is a request for an Event.
type sent struct {
	At      time.Duration // since the begin
	Kind    string        // create or raise
	Object  string
	Reason  string
	Count   uint64
	Message string
}

// board is an API server as far as Events go.
type board struct {
	begin  time.Time
	mu     sync.Mutex
	got    []sent
	names  map[string]bool
	answer func(kind string, n int) error // nil: carried out
}

func (b *board) CreateEvent(_ context.Context, e Event) error {
	return b.request("create", e, func() error {
		if b.names[e.Name] {
			return fmt.Errorf("%w: %w", ErrConflict, &statusError{code: 409})
		}
		b.names[e.Name] = true
		return nil
	})
}

func (b *board) RaiseEvent(_ context.Context, e Event) error {
	return b.request("raise", e, func() error {
		if !b.names[e.Name] {
			return fmt.Errorf("%w: %w", ErrNotFound, &statusError{code: 404})
		}
		return nil
	})
}

func (b *board) request(kind string, e Event, do func() error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, sent{time.Since(b.begin), kind, e.About.Name, e.Reason, e.Count, e.Message})
	if b.answer != nil {
		if err := b.answer(kind, len(b.got)); err != nil {
			if errors.Is(err, errTimeout) {
				_ = do() // it was carried out all the same
			}
			return err
		}
	}
	return do()
}

func (b *board) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.names)
}

func (b *board) requests() []sent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got
}

// posting runs a test with Events in a bubble.
func posting(t *testing.T, answer func(kind string, n int) error, test func(t *testing.T, e *Events, b *board, log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := &board{begin: time.Now(), names: make(map[string]bool), answer: answer}
		e := NewEvents(b, "node-a", slog.New(slog.NewTextHandler(&log, nil)))
		ctx, stop := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		test(t, e, b, &log)
		stop()
		done.Wait()
	})
}

func lost(message string) Finding {
	return Finding{Cause: "orphaned_answer", Message: message, Warning: true, Count: 1}
}

func TestEventsAreAggregated(t *testing.T) {
	posting(t, nil, func(t *testing.T, e *Events, b *board, _ *bytes.Buffer) {
		for n := range 100 { // for 23 minutes
			e.Pod("ci", "runner", "u", lost(fmt.Sprint("lost ", n)))
			if n == 0 {
				synctest.Wait()
			}
			time.Sleep(14 * time.Second) //nolint:forbidigo // in a bubble
		}
		e.Pod("ci", "runner", "u", Finding{Cause: "slow_answer", Message: "slow", Count: 7})
		pass(time.Second)
		e.Node(Finding{Cause: "restart_pending", Message: "pending", Warning: true})
		pass(time.Hour)
		want := []sent{
			{0, "create", "runner", "OrphanedAnswer", 1, "lost 0"},
			{10 * time.Minute, "raise", "runner", "OrphanedAnswer", 43, "lost 42"},
			{20 * time.Minute, "raise", "runner", "OrphanedAnswer", 86, "lost 85"},
			{1400 * time.Second, "create", "runner", "SlowAnswer", 7, "slow"},
			{1401 * time.Second, "create", "node-a", "RestartPending", 1, "pending"},
			{30 * time.Minute, "raise", "runner", "OrphanedAnswer", 100, "lost 99"},
		}
		if diff := cmp.Diff(want, b.requests()); diff != "" {
			t.Errorf("the requests (-want +got):\n%s", diff)
		}
		if e.Lost() != 0 || len(e.ledger.entries) != 0 {
			t.Errorf("%d lost, %d entries left", e.Lost(), len(e.ledger.entries))
		}
		e.Pod("ci", "runner", "u", lost("again"))
		synctest.Wait()
		if got := b.requests(); len(got) != 7 || got[6].Kind != "create" || got[6].Count != 1 {
			t.Errorf("an hour later: %+v", got[6:])
		}
	})
}

// TestEventsOfSubjects: two daemons of a node have an Event each.
func TestEventsOfSubjects(t *testing.T) {
	posting(t, nil, func(t *testing.T, e *Events, b *board, _ *bytes.Buffer) {
		for _, daemon := range []string{"containerd", "docker", "docker"} {
			e.Node(Finding{Cause: "runtime_restarted", Subject: daemon, Message: daemon + " was restarted"})
		}
		synctest.Wait()
		if got := len(b.requests()); got != 2 {
			t.Errorf("%d requests, want one for each daemon", got)
		}
	})
}

// TestEventsAreLimited: a burst, and then one at a time; nobody waits, and what
// does not fit is counted.
func TestEventsAreLimited(t *testing.T) {
	posting(t, nil, func(t *testing.T, e *Events, b *board, _ *bytes.Buffer) {
		for n := range eventKeys + 500 {
			e.Pod("ci", fmt.Sprint("runner-", n), "u", lost("x"))
		}
		if got := time.Since(b.begin); got != 0 {
			t.Errorf("the callers waited for %v", got)
		}
		synctest.Wait()
		if got := len(b.requests()); got != eventBurst {
			t.Errorf("%d at once, want %d", got, eventBurst)
		}
		pass(eventPause * 20)
		if got := len(b.requests()); got < eventBurst+19 || got > eventBurst+20 {
			t.Errorf("%d after 20 pauses", got)
		}
		if got := e.Lost(); got < 500-eventBurst || got > 500 {
			t.Errorf("%d lost", got)
		}
		pass(eventPause * eventKeys)
		if got, want := len(b.requests())+int(e.Lost()), eventKeys+500; got != want {
			t.Errorf("sent and lost are %d, want %d", got, want)
		}
	})
}

// TestEventsOfOneName: a request that was carried out although no answer came
// makes no second Event.
func TestEventsOfOneName(t *testing.T) {
	posting(t, func(_ string, n int) error {
		if n == 1 {
			return errTimeout
		}
		return nil
	}, func(t *testing.T, e *Events, b *board, _ *bytes.Buffer) {
		e.Pod("ci", "runner", "u", lost("one"))
		synctest.Wait()
		e.Pod("ci", "runner", "u", lost("two"))
		pass(time.Hour)
		var kinds []string
		for _, s := range b.requests() {
			kinds = append(kinds, fmt.Sprint(s.Kind, s.Count))
		}
		if diff := cmp.Diff([]string{"create1", "create2", "raise2"}, kinds); diff != "" {
			t.Errorf("the requests (-want +got):\n%s", diff)
		}
		if len(b.names) != 1 {
			t.Errorf("%d events", len(b.names))
		}
	})
}

// TestEventsGone: an Event whose time in the cluster was over is made anew.
func TestEventsGone(t *testing.T) {
	posting(t, nil, func(t *testing.T, e *Events, b *board, _ *bytes.Buffer) {
		e.Pod("ci", "runner", "u", lost("one"))
		synctest.Wait()
		b.forget()
		e.Pod("ci", "runner", "u", lost("two"))
		e.Pod("ci", "runner", "u", lost("three"))
		pass(time.Hour)
		var kinds []string
		for _, s := range b.requests() {
			kinds = append(kinds, fmt.Sprint(s.Kind, s.Count))
		}
		if diff := cmp.Diff([]string{"create1", "raise3", "create2"}, kinds); diff != "" {
			t.Errorf("the requests (-want +got):\n%s", diff)
		}
	})
}

// TestEventsRefused: what is refused for good is not tried again, anything else
// a few times; both are counted and said once.
func TestEventsRefused(t *testing.T) {
	tests := map[string]struct {
		err      error
		requests int
		within   time.Duration
	}{
		"forbidden":    {&statusError{code: 403}, 1, time.Second},
		"no namespace": {fmt.Errorf("%w: %w", ErrNotFound, &statusError{code: 404}), 1, time.Second},
		"invalid":      {&statusError{code: 422}, 1, time.Second},
		"unauthorized": {&statusError{code: 401}, eventTries, 10 * time.Minute},
		"down":         {errors.New("connection refused"), eventTries, 10 * time.Minute},
		"busy":         {&busyError{after: 4 * time.Minute, err: &statusError{code: 429}}, eventTries, 17 * time.Minute},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			posting(t, func(string, int) error { return tc.err }, func(t *testing.T, e *Events, b *board, log *bytes.Buffer) {
				e.Pod("ci", "runner", "u", lost("one"))
				pass(time.Hour)
				got := b.requests()
				if len(got) != tc.requests {
					t.Fatalf("%d requests, want %d", len(got), tc.requests)
				}
				if last := got[len(got)-1].At; last > tc.within {
					t.Errorf("the last request came after %v", last)
				}
				if tc.err != nil && strings.HasPrefix(name, "busy") && got[1].At < 4*time.Minute {
					t.Errorf("the second request came after %v", got[1].At)
				}
				if e.Lost() != 1 {
					t.Errorf("%d lost, want 1", e.Lost())
				}
				want := 1
				if name == "no namespace" {
					want = 0
				}
				if got := strings.Count(log.String(), "events cannot be written"); got != want {
					t.Errorf("it is said %d times, want %d:\n%s", got, want, log)
				}
			})
		})
	}
}

// TestEventsAfterAnOutage: what happened meanwhile is told as one.
func TestEventsAfterAnOutage(t *testing.T) {
	down := true
	posting(t, func(string, int) error {
		if down {
			return errors.New("connection refused")
		}
		return nil
	}, func(t *testing.T, e *Events, b *board, log *bytes.Buffer) {
		for range 12 {
			e.Pod("ci", "runner", "u", lost("x"))
			pass(10 * time.Second)
		}
		b.mu.Lock()
		down = false
		b.mu.Unlock()
		pass(time.Hour)
		got := b.requests()
		if last := got[len(got)-1]; last.Count != 12 || e.Lost() != 0 {
			t.Errorf("the last request is %+v, %d lost", last, e.Lost())
		}
		if !strings.Contains(log.String(), "events are written again") {
			t.Errorf("nothing is said:\n%s", log)
		}
	})
}

// TestEventsAreClean: what came out of a packet does no harm.
func TestEventsAreClean(t *testing.T) {
	posting(t, nil, func(t *testing.T, e *Events, b *board, _ *bytes.Buffer) {
		e.Pod("ci", "runner", "u", lost("name=\x1b[2J\n"))
		e.Pod("", "nobody", "", lost("without a pod there is no event"))
		e.Pod("ci", "", "", lost("without a pod there is no event"))
		synctest.Wait()
		want := []sent{{0, "create", "runner", "OrphanedAnswer", 1, "name= [2J "}}
		if diff := cmp.Diff(want, b.requests()); diff != "" {
			t.Errorf("the requests (-want +got):\n%s", diff)
		}
	})
}

// TestBucket: the time between two tokens is not lost when one is taken late.
func TestBucket(t *testing.T) {
	begin := time.Now()
	b := bucket{}
	for n := range eventBurst {
		if at := b.take(begin); !at.IsZero() {
			t.Fatalf("token %d of the burst comes at %v", n, at.Sub(begin))
		}
	}
	for _, tc := range []struct{ at, next time.Duration }{ // next is 0 where there is a token
		{0, eventPause}, {eventPause - 1, eventPause}, {eventPause * 3 / 2, 0}, {eventPause * 3 / 2, 2 * eventPause}, {2 * eventPause, 0}, {2 * eventPause, 3 * eventPause},
	} {
		next := time.Duration(0)
		if at := b.take(begin.Add(tc.at)); !at.IsZero() {
			next = at.Sub(begin)
		}
		if next != tc.next {
			t.Errorf("at %v the next token comes at %v, want %v", tc.at, next, tc.next)
		}
	}
}

func TestEventText(t *testing.T) {
	for cause, want := range map[string]string{"orphaned_answer": "OrphanedAnswer", "unknown": "Unknown", "": "", "_a__b_": "AB"} {
		if got := reason(cause); got != want {
			t.Errorf("the reason of %q is %q, want %q", cause, got, want)
		}
	}
	for text, want := range map[string]string{
		"lost name=\x1b[31mx\nfoo\x00": "lost name= [31mx foo ",
		"caf\xe9":                      "caf?",
		"Grüße":                        "Grüße",
	} {
		if got := clean(text); got != want {
			t.Errorf("%q is cleaned to %q, want %q", text, got, want)
		}
	}
	for n := maxMessage - 4; n < maxMessage+4; n++ {
		got := clean(strings.Repeat("x", n) + "ü")
		if len(got) > maxMessage || !utf8.ValidString(got) {
			t.Errorf("of %d bytes %d are left: %q", n+2, len(got), got[len(got)-8:])
		}
	}
	now := time.Now()
	names := map[string]bool{}
	for _, about := range []About{{"ci", "a", "1"}, {"ci", "a", "2"}, {"cd", "a", "1"}, {"", "a", "1"}, {"ci", strings.Repeat("a.", 126) + "a", "1"}} {
		for _, of := range [][2]string{{"x", ""}, {"y", ""}, {"x", "y"}} {
			for _, node := range []string{"n", "m"} {
				for _, at := range []time.Time{now, now.Add(1)} {
					name := eventName(eventKey{about, of[0], of[1]}, node, at)
					if names[name] || len(name) > 253 || strings.Contains(name, "..") {
						t.Errorf("the name %s", name)
					}
					names[name] = true
				}
			}
		}
	}
}
