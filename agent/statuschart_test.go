package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestChart: what failed stands on what was lost, the largest minute fills the
// drawing and no more, and a single lookup is seen beside thousands.
func TestChart(t *testing.T) {
	at := time.Date(2026, 11, 29, 18, 0, 0, 0, time.UTC).Unix() / 60
	var hour [60]minute
	for i := range hour {
		hour[i].at = at + int64(i)
	}
	hour[0] = minute{at, 1, 0, 0}
	hour[1] = minute{at + 1, 2000, 500, 500}
	hour[2] = minute{at + 2, 1000, 1, 999}
	hour[59] = minute{at + 59, 0, 250, 0}
	v := newHourView(hour)
	want := hourView{
		Lookups: 3001, Lost: 751, Failed: 1499,
		All: chart{Most: 2000, Bars: []bar{
			{0, 96, 4, "lookups", "18:00: 1 lookup"},
			{10, 0, 100, "lookups", "18:01: 2,000 lookups"},
			{20, 50, 50, "lookups", "18:02: 1,000 lookups"},
		}},
		Bad: chart{Most: 1000, Bars: []bar{
			{10, 50, 50, "lost", "18:01: 500 lost, 500 failed"},
			{10, 0, 50, "failed", "18:01: 500 lost, 500 failed"},
			{20, 96, 4, "lost", "18:02: 1 lost, 999 failed"},
			{20, 0, 96, "failed", "18:02: 1 lost, 999 failed"},
			{590, 75, 25, "lost", "18:59: 250 lost, 0 failed"},
		}},
		From: time.Unix(at*60, 0), To: time.Unix((at+59)*60, 0),
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
