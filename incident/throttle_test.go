package incident

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lines collects what a Throttle of incidents emits, as client, count and
// evidence.
type lines []string

func (l *lines) throttle(limit int) *Throttle[Key, Incident] {
	return NewThrottle(10*time.Second, limit, Rules[Key, Incident]{
		Key:   Incident.Key,
		Merge: Merge,
		Fold:  Fold,
		Emit: func(in Incident) {
			*l = append(*l, fmt.Sprintf("%v %d %s", in.Client.Addr(), in.Count, in.Evidence))
		},
	})
}

func (l *lines) take() []string {
	out := []string(*l)
	*l = nil
	return out
}

func lost(client, evidence string) Incident {
	return Incident{
		Cause:    OrphanedAnswer,
		Client:   netip.AddrPortFrom(netip.MustParseAddr(client), 41000),
		Count:    1,
		Evidence: evidence,
	}
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // the clock of the bubble is fake
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestThrottleMergesWithinTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got lines
		th := got.throttle(100)

		th.Add(time.Now(), lost("10.0.0.1", "a"))
		expect(t, got.take(), "10.0.0.1 1 a")
		pass(time.Second)
		th.Add(time.Now(), lost("10.0.0.1", "b"))
		th.Add(time.Now(), lost("10.0.0.2", "c"))
		expect(t, got.take(), "10.0.0.2 1 c")
		pass(time.Second)
		th.Add(time.Now(), lost("10.0.0.1", "d"))
		expect(t, got.take())

		next, ok := th.Next()
		if want := time.Now().Add(8 * time.Second); !ok || !next.Equal(want) {
			t.Errorf("Next() = %v, %v; want %v", next, ok, want)
		}
		pass(8*time.Second - 1)
		th.Due(time.Now())
		expect(t, got.take())
		pass(1)
		th.Due(time.Now())
		expect(t, got.take(), "10.0.0.1 2 d")

		// The line at the end began another window.
		th.Add(time.Now(), lost("10.0.0.1", "e"))
		expect(t, got.take())
		pass(10 * time.Second)
		th.Due(time.Now())
		expect(t, got.take(), "10.0.0.1 1 e")

		// A quiet window frees the key.
		pass(10 * time.Second)
		th.Due(time.Now())
		expect(t, got.take())
		if _, ok := th.Next(); ok || len(th.held) != 0 {
			t.Errorf("%d keys are held after a quiet window", len(th.held))
		}
		th.Add(time.Now(), lost("10.0.0.1", "f"))
		expect(t, got.take(), "10.0.0.1 1 f")
	})
}

func TestThrottleAddEmitsWhatIsDue(t *testing.T) {
	var got lines
	th := got.throttle(100)
	start := time.Unix(1000, 0)
	th.Add(start, lost("10.0.0.1", "a"))
	th.Add(start, lost("10.0.0.1", "b"))
	got.take()
	th.Add(start.Add(time.Minute), lost("10.0.0.1", "c"))
	expect(t, got.take(), "10.0.0.1 1 b")
	th.Flush()
	expect(t, got.take(), "10.0.0.1 1 c")
}

func TestThrottleFoldsTheOverflow(t *testing.T) {
	var got lines
	th := got.throttle(2)
	now := time.Unix(1000, 0)
	for i := range 6 {
		th.Add(now, lost(fmt.Sprintf("10.0.0.%d", i+1), "late"))
	}
	expect(t, got.take(),
		"10.0.0.1 1 late", "10.0.0.2 1 late",
		"invalid IP 1 too many clients for a line each; the newest, 10.0.0.3:41000: late")
	if len(th.held) != 3 {
		t.Errorf("%d keys are held, want the limit of 2 and the one folded", len(th.held))
	}
	th.Due(now.Add(10 * time.Second))
	expect(t, got.take(), "invalid IP 3 too many clients for a line each; the newest, 10.0.0.6:41000: late")
}

func TestThrottleFlush(t *testing.T) {
	var got lines
	th := got.throttle(100)
	now := time.Unix(1000, 0)
	for range 3 {
		th.Add(now, lost("10.0.0.1", "a"))
		th.Add(now, lost("10.0.0.2", "b"))
	}
	th.Add(now, lost("10.0.0.3", "c"))
	got.take()
	th.Flush()
	expect(t, got.take(), "10.0.0.1 2 a", "10.0.0.2 2 b")
	th.Flush()
	expect(t, got.take())
}

// TestThrottleLosesNothing holds the counts of a long random run together.
func TestThrottleLosesNothing(t *testing.T) {
	var in, out uint64
	th := NewThrottle(10*time.Second, 5, Rules[Key, Incident]{
		Key: Incident.Key, Merge: Merge, Fold: Fold,
		Emit: func(i Incident) { out += i.Count },
	})
	now := time.Unix(1000, 0)
	for i := range 10_000 {
		now = now.Add(time.Duration(i*7919%1500) * time.Millisecond)
		th.Add(now, lost(fmt.Sprintf("10.0.0.%d", i*31%11), ""))
		in++
	}
	th.Flush()
	if in != out {
		t.Errorf("%d incidents went in, the lines stand for %d", in, out)
	}
}
