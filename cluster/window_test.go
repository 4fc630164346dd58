package cluster

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func window(t *testing.T, days, from, to, zone string) Window {
	t.Helper()
	w, err := NewWindow(strings.Fields(days), from, to, zone)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWindows(t *testing.T) {
	night := window(t, "mon tue wed thu", "22:00", "05:30", "Europe/Berlin")
	weekend := window(t, "sat Sun", "00:00", "24:00", "Europe/Berlin")
	tests := map[string]struct {
		windows []Window
		now     string
		want    time.Duration
	}{
		"none":                        {nil, "2026-06-01T12:00:00Z", 0},
		"before it":                   {[]Window{night}, "2026-06-01T19:00:00Z", time.Hour}, // Monday, 21:00 in Berlin
		"at its begin":                {[]Window{night}, "2026-06-01T20:00:00Z", 0},
		"after midnight":              {[]Window{night}, "2026-06-02T03:29:59Z", 0},
		"at its end":                  {[]Window{night}, "2026-06-02T03:30:00Z", 16*time.Hour + 30*time.Minute},
		"Friday morning":              {[]Window{night}, "2026-06-05T03:00:00Z", 0},
		"Friday night":                {[]Window{night}, "2026-06-05T20:00:00Z", 3 * 24 * time.Hour},
		"Monday before dawn":          {[]Window{night}, "2026-06-01T02:00:00Z", 18 * time.Hour},
		"another window is open":      {[]Window{night, weekend}, "2026-06-06T10:00:00Z", 0},
		"the nearest of two":          {[]Window{night, weekend}, "2026-06-05T20:00:00Z", 2 * time.Hour},
		"until midnight":              {[]Window{weekend}, "2026-06-07T21:59:59Z", 0},
		"not beyond it":               {[]Window{weekend}, "2026-06-07T22:00:00Z", 5 * 24 * time.Hour},
		"winter":                      {[]Window{night}, "2026-12-07T20:30:00Z", 30 * time.Minute},
		"the night of 23 hours":       {[]Window{window(t, "", "01:00", "04:00", "Europe/Berlin")}, "2026-03-29T01:59:00Z", 0}, // 03:59 in summer time
		"its end":                     {[]Window{window(t, "", "01:00", "04:00", "Europe/Berlin")}, "2026-03-29T02:00:00Z", 21 * time.Hour},
		"a begin that does not exist": {[]Window{window(t, "", "02:30", "06:00", "Europe/Berlin")}, "2026-03-29T00:59:00Z", time.Minute},
		"an end that does not exist":  {[]Window{window(t, "", "01:59", "02:18", "America/St_Johns")}, "2031-03-09T05:29:59Z", 0},
		"is at the change":            {[]Window{window(t, "", "01:59", "02:18", "America/St_Johns")}, "2031-03-09T05:30:00Z", 22*time.Hour + 59*time.Minute},
		"a window that never was":     {[]Window{window(t, "sun", "02:10", "02:50", "Europe/Berlin")}, "2026-03-29T00:30:00Z", 7*24*time.Hour - 20*time.Minute},
		"the whole day, always":       {[]Window{window(t, "", "03:00", "03:00", "")}, "2026-06-01T02:59:00Z", 0},
		"in another zone it is later": {[]Window{window(t, "mon", "00:00", "01:00", "Pacific/Kiritimati")}, "2026-05-31T09:59:00Z", time.Minute},
		"a Friday that never was":     {[]Window{window(t, "fri", "12:00", "13:00", "Pacific/Apia")}, "2011-12-30T00:00:00Z", 7*24*time.Hour - 2*time.Hour},
		"just closed, one day a week": {[]Window{window(t, "wed", "10:00", "11:00", "")}, "2026-06-03T11:00:00Z", 7*24*time.Hour - time.Hour},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			now, err := time.Parse(time.RFC3339, tc.now)
			if err != nil {
				t.Fatal(err)
			}
			if got := untilOpen(tc.windows, now); got != tc.want {
				t.Errorf("it opens in %v, want %v", got, tc.want)
			}
		})
	}
}

// TestWindowsAgree: when the time is over, the window is open, whatever the clock on
// the wall does; and just before it was not.
func TestWindowsAgree(t *testing.T) {
	zones := []string{"Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "UTC"}
	for range 20_000 {
		var days []string
		for _, d := range weekdays() {
			if rand.IntN(3) == 0 {
				days = append(days, d)
			}
		}
		at := func() string { return time.Unix(rand.Int64N(1440)*60, 0).UTC().Format("15:04") }
		from, to, zone := at(), at(), zones[rand.IntN(len(zones))]
		w := window(t, strings.Join(days, " "), from, to, zone)
		now := time.Unix(1.2e9+rand.Int64N(1e9), 0)
		d := untilOpen([]Window{w}, now)
		if d < 0 || d > 15*24*time.Hour {
			t.Fatalf("%v %s-%s %s at %v: it opens in %v", days, from, to, zone, now, d)
		}
		if untilOpen([]Window{w}, now.Add(d)) != 0 {
			t.Fatalf("%v %s-%s %s at %v: it is not open in %v", days, from, to, zone, now, d)
		}
		if d > 0 && untilOpen([]Window{w}, now.Add(d-1)) == 0 {
			t.Fatalf("%v %s-%s %s at %v: it is open before %v are over", days, from, to, zone, now, d)
		}
	}
}

func TestBadWindows(t *testing.T) {
	_, err := NewWindow([]string{"mon", "monday"}, "7", "25:00", "Mars/Olympus")
	for _, want := range []string{`day "monday"`, `from: "7"`, `to: "25:00"`, "time zone: unknown time zone Mars/Olympus"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %s: %v", want, err)
		}
	}
	for _, bad := range [][2]string{{"24:00", "UTC"}, {"10:00", "Local"}, {"10:00", "../etc/passwd"}} {
		if _, err := NewWindow(nil, bad[0], "05:00", bad[1]); err == nil {
			t.Errorf("from %s, zone %s: no error", bad[0], bad[1])
		}
	}
}

// TestAcquireWaitsForAWindow: without a single request.
func TestAcquireWaitsForAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, api, log := agentOf(t)
		s.cfg.Windows = []Window{window(t, "", "03:00", "04:00", "")} // the bubble begins at midnight
		release, err := s.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Now().Format("15:04"); got < "03:00" || got > "03:01" {
			t.Errorf("a slot was given at %s", got)
		}
		if got := api.kinds["get"]; got != 1 {
			t.Errorf("%d looks", got)
		}
		if !strings.Contains(log.String(), "no restart may begin now") {
			t.Errorf("it is not said:\n%s", log)
		}
		release()
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Hour)
		defer cancel()
		time.Sleep(time.Hour) //nolint:forbidigo // in a bubble
		if _, err := s.Acquire(ctx); err == nil {
			t.Error("a slot was given although the window is closed")
		}
	})
}

// TestWindowAndPatience: the control plane does not overtake the workers when a
// window opens, because nobody took the slot while it was closed.
func TestWindowAndPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := agentOf(t)
		s.cfg.ControlPlane = func(context.Context) (bool, error) { return true, nil }
		s.cfg.Windows = []Window{window(t, "", "00:00", "00:30", "")}
		pass(27 * time.Minute) // less than its patience is left
		release, err := s.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Since(time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)); got < s.pace.patience(1) || got > 10*time.Minute {
			t.Errorf("it had its turn %v after the window opened", got)
		}
		release()
	})
}
