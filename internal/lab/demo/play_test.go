package main

import (
	"strings"
	"testing"
)

// What is missing, and what is too much, fails a scene.
func TestVerdict(t *testing.T) {
	t.Parallel()
	const (
		slow   = `time=1 level=DEBUG msg="dns lookup was slow"`
		advice = `time=1 level=INFO msg="dns works, and could work better" advice=random_backends`
		orphan = `time=2 level=WARN msg="dns lookup lost" cause=orphaned_answer pod=runner`
		other  = `time=2 level=WARN msg="dns lookup lost" cause=unknown pod=runner`
		total  = `nodestead_dns_lookups_total{namespace="ci",outcome="noerror",qtype="A",resolver="musl"}`
		second = `nodestead_dns_lookups_total{namespace="ci",outcome="timeout",qtype="A",resolver="musl"}`
		moving = `nodestead_conntrack_collisions_total{result="orphaned"}`
		quiet  = `nodestead_conntrack_drop_total`
		missed = `nodestead_sensor_lost_total{sensor="lookup"}`
	)
	played := []scene{
		{logs: []line{{`level=INFO `, "advice=random_backends"}}},
		{
			asks: []ask{{names: []string{"a.test."}, count: 3}, {names: []string{"b", "c"}, lookups: 4}}, // 14 lookups
			logs: []line{{"level=WARN ", "cause=orphaned_answer"}}, moved: []string{orphaned}, still: []string{dropped},
		},
	}
	before := series{total: 100, moving: 1}
	cases := []struct {
		name  string
		lines []string
		after series
		want  string // part of the error
	}{
		{name: "seen", lines: []string{slow, orphan}, after: series{total: 112, second: 2, moving: 2}},
		{name: "an earlier scene's line again", lines: []string{advice, orphan}, after: series{total: 114, moving: 2}},
		{name: "no line", lines: []string{slow}, after: series{total: 114, moving: 2}, want: "no line with"},
		{name: "parts in two lines", lines: []string{"level=WARN ", "cause=orphaned_answer"}, after: series{total: 114, moving: 2}, want: "no line with"},
		{name: "nothing moved", lines: []string{orphan}, after: series{total: 114, moving: 1}, want: "has not risen"},
		{name: "a lookup not counted", lines: []string{orphan}, after: series{total: 113, moving: 2}, want: "13 lookups were counted, want 14"},
		{name: "one counted twice", lines: []string{orphan}, after: series{total: 115, moving: 2}, want: "15 lookups were counted, want 14"},
		{name: "another line", lines: []string{orphan, other}, after: series{total: 114, moving: 2}, want: "cause=unknown"},
		{name: "what must be still", lines: []string{orphan}, after: series{total: 114, moving: 2, quiet: 1}, want: dropped + " moved from 0 to 1"},
		{name: "what must always be still", lines: []string{orphan}, after: series{total: 114, moving: 2, missed: 1}, want: "sensor_lost_total moved"},
	}
	for _, c := range cases {
		err := seen(played[1], c.lines, before, c.after)
		if err == nil {
			err = tooMuch(played, c.lines, before, c.after)
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
