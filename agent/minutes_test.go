package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMinutes: each minute is counted for an hour, and no longer.
func TestMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m minutes
		// sums gives what the hour holds, by the minutes since it was counted.
		sums := func() map[int][3]uint64 {
			out := make(map[int][3]uint64)
			last := time.Now().Unix() / 60
			hour := m.hour(time.Now())
			for i, in := range hour {
				if want := last - 59 + int64(i); in.at != want {
					t.Errorf("bar %d is of minute %d, want %d", i, in.at, want)
				}
				if in.lookups+in.lost+in.failed > 0 {
					out[59-i] = [3]uint64{in.lookups, in.lost, in.failed}
				}
			}
			return out
		}
		expect := func(want map[int][3]uint64) {
			t.Helper()
			if diff := cmp.Diff(want, sums()); diff != "" {
				t.Errorf("after %v (-want +got):\n%s", time.Now(), diff)
			}
		}
		expect(map[int][3]uint64{})
		m.add(time.Now(), 5, 0, 0)
		m.add(time.Now(), 1, 2, 3)
		m.add(time.Now().Add(-2*time.Minute), 7, 0, 0)
		m.add(time.Now().Add(-time.Hour), 1000, 0, 0) // over
		m.add(time.Time{}, 1000, 0, 0)
		expect(map[int][3]uint64{0: {6, 2, 3}, 2: {7, 0, 0}})

		pass(57 * time.Minute)
		expect(map[int][3]uint64{57: {6, 2, 3}, 59: {7, 0, 0}})
		pass(time.Minute)
		expect(map[int][3]uint64{58: {6, 2, 3}})
		pass(2 * time.Minute)
		expect(map[int][3]uint64{})
		m.add(time.Now(), 1, 0, 0) // where the first ones stood
		expect(map[int][3]uint64{0: {1, 0, 0}})

		// The clock was an hour ahead and has been set back.
		m.add(time.Now().Add(time.Hour), 9, 9, 9)
		expect(map[int][3]uint64{})
		m.add(time.Now(), 2, 0, 0)
		expect(map[int][3]uint64{0: {2, 0, 0}})
	})
}
