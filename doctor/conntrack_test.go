package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/conntrack"
)

func healthy() reading {
	return reading{
		release:  "6.1.0-13-amd64",
		settings: conntrack.Settings{Loaded: true, Events: "2", Accounting: "1", Timestamps: "0", Max: 1000, Buckets: 1000},
		before:   conntrack.Statistics{Drop: 7, InsertFailed: 7, ClashResolved: 3, Entries: 10, Limit: 1000},
		now:      conntrack.Statistics{Drop: 7, InsertFailed: 7, ClashResolved: 9, Entries: 10, Limit: 1000},
		elapsed:  500 * time.Millisecond, clashResolve: true,
	}
}

func TestJudgeConntrack(t *testing.T) {
	denied := fmt.Errorf("read: %w", conntrack.ErrPermission)
	tests := []struct {
		name string
		with func(*reading)
		want []string // CHECK STATE of all that are not ok
		says []string
	}{
		{name: "healthy", says: []string{"drop 7, insert_failed 7", "advice: sysctl -w net.netfilter.nf_conntrack_timestamp=1"}},
		{name: "nine tenths full", with: func(r *reading) { r.now.Entries = 900 }, want: []string{"conntrack_table finding"}, says: []string{"900 of at most 1000 entries", "nf_conntrack_max"}},
		{name: "nearly so", with: func(r *reading) { r.now.Entries = 899 }},
		{name: "the limit by sysctl only", with: func(r *reading) { r.now.Limit, r.now.Entries = 0, 950 }, want: []string{"conntrack_table finding"}},
		{name: "no limit known", with: func(r *reading) { r.now.Limit, r.settings.Max = 0, 0 }, want: []string{"conntrack_table unknown"}},
		{name: "long chains", with: func(r *reading) { r.settings.Buckets = 10; r.now.Entries = 41 }, want: []string{"conntrack_table finding"}},
		{name: "drops rise", with: func(r *reading) { r.now.Drop, r.now.InsertFailed = 9, 9 }, want: []string{"conntrack_drops finding"}, says: []string{"in 500ms rose drop by 2, insert_failed by 2", "keep one of them"}},
		{name: "early drops rise", with: func(r *reading) { r.now.EarlyDrop = 1 }, want: []string{"conntrack_drops finding"}, says: []string{"rose early_drop by 1 ("}},
		{name: "an old kernel counts merges as failures", with: func(r *reading) { r.clashResolve = false; r.release = "5.4.0"; r.now.InsertFailed = 9 }, want: []string{"kernel finding"}, says: []string{"Linux 5.10 or later"}},
		{name: "backported", with: func(r *reading) { r.release = "4.18.0-553.el8" }},
		{name: "no events", with: func(r *reading) { r.settings.Events = "0" }, want: []string{"conntrack_events finding"}, says: []string{"sysctl -w net.netfilter.nf_conntrack_events=1"}},
		{name: "built without events", with: func(r *reading) { r.settings.Events = "" }, want: []string{"conntrack_events finding"}},
		{name: "an exempting rule", with: func(r *reading) { r.exemption.Rule = "a rule in chain x" }, want: []string{"conntrack_exempt finding"}, says: []string{"a rule in chain x"}},
		{name: "NodeLocal's rule", with: func(r *reading) { r.exemption = conntrack.Exemption{NodeLocal: true, Rule: "a rule"} }},
		{name: "denied", with: func(r *reading) { r.statisticsErr, r.exemptionErr, r.clashResolve = denied, denied, false },
			want: []string{"conntrack_table unknown", "conntrack_drops unknown", "conntrack_exempt unknown"}, says: []string{"NET_ADMIN"}},
		{name: "denied, of an unknown release", with: func(r *reading) { r.statisticsErr, r.clashResolve, r.release = denied, false, "next" },
			want: []string{"kernel unknown", "conntrack_table unknown", "conntrack_drops unknown"}},
		{name: "settings unreadable", with: func(r *reading) { r.settingsErr = errors.New("no such luck") },
			want: []string{"conntrack_events unknown", "conntrack_accounting unknown", "conntrack_timestamps unknown"}, says: []string{"no such luck"}},
		{name: "no connection tracking", with: func(r *reading) { r.settings = conntrack.Settings{}; r.now.Entries = 999 }, says: []string{"no connection tracking"}},
	}
	var checks []string
	for _, v := range healthy().verdicts() {
		checks = append(checks, v.Check)
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := healthy()
			if tc.with != nil {
				tc.with(&r)
			}
			var got, names []string
			var all strings.Builder
			for _, v := range r.verdicts() {
				names = append(names, v.Check)
				if v.State != OK {
					got = append(got, fmt.Sprintf("%s %s", v.Check, v.State))
					if v.Remedy == "" {
						t.Errorf("%s has no remedy", v.Check)
					}
				}
				all.WriteString(v.Evidence + "\n" + v.Remedy + "\n")
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("not ok (-want +got):\n%s%s", diff, all.String())
			}
			if diff := cmp.Diff(checks, names); diff != "" {
				t.Errorf("the checks or their order changed (-want +got):\n%s", diff)
			}
			for _, want := range tc.says {
				if !strings.Contains(all.String(), want) {
					t.Errorf("nothing says %q:\n%s", want, all.String())
				}
			}
		})
	}
}

func TestSince510(t *testing.T) {
	for release, want := range map[string][2]bool{
		"6.18.5": {true, true}, "5.10.0-8-amd64": {true, true}, "5.10-rc1": {true, true}, "5.4.0-150": {false, true},
		"4.18.0-553.el8": {false, true}, "": {false, false}, "x.y": {false, false},
	} {
		if recent, known := since510(release); [2]bool{recent, known} != want {
			t.Errorf("%q: recent %v, known %v", release, recent, known)
		}
	}
}
