package doctor

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/probe"
)

func TestCandidates(t *testing.T) {
	search := []string{"default.svc.cluster.local", "corp.example.", ".", strings.Repeat("long.", 50)}
	tests := []struct {
		name  string
		ndots int
		want  []string
	}{
		{"git.test", 5, []string{"git.test.default.svc.cluster.local.", "git.test.corp.example.", "git.test."}},
		{"git.test", 1, []string{"git.test."}},
		{"git.test.", 5, []string{"git.test."}},
		{"a.b.c.d.e", 5, []string{"a.b.c.d.e.default.svc.cluster.local.", "a.b.c.d.e.corp.example.", "a.b.c.d.e."}},
		{"a.b.c.d.e.f", 5, []string{"a.b.c.d.e.f."}},
	}
	for _, tc := range tests {
		if diff := cmp.Diff(tc.want, candidates(tc.name, search, tc.ndots)); diff != "" {
			t.Errorf("%s, ndots %d (-want +got):\n%s", tc.name, tc.ndots, diff)
		}
	}
}

// The verdicts on a name, from what came of each name of the search list.
func TestJudgeNames(t *testing.T) {
	missing := step{"x.svc.test.", nxDomain, nxDomain}
	tests := []struct {
		name  string
		steps []step
		// the states of name_families, name_search and name_cost
		families, search, cost State
		evidence               []string
	}{
		{name: "healthy", steps: []step{{"x.test.", noError, probe.NoData}}, families: OK, search: OK, cost: OK, evidence: []string{"musl: success; glibc: success"}},
		{name: "IPv6 only", steps: []step{{"x.test.", probe.NoData, noError}}, families: OK, search: OK, cost: OK},
		{name: "two names in vain", steps: []step{missing, missing, {"x.test.", noError, noError}}, families: OK, search: OK, cost: OK, evidence: []string{"after 4 questions in vain"}},
		{name: "three in vain", steps: []step{missing, missing, missing, {"x.test.", noError, noError}}, families: OK, search: OK, cost: OK, evidence: []string{"advice: ", "search_amplification: ", "after 6 questions in vain (3 names", "ndots:1"}},
		{name: "AAAA denied", steps: []step{{"x.test.", noError, nxDomain}}, families: Finding, search: Finding, cost: OK,
			evidence: []string{"family_mismatch: x.test. A noerror, AAAA nxdomain (musl goes on, glibc succeeds)", "musl: not found (EAI_NONAME); glibc: success", "template IN AAAA"}},
		{name: "AAAA denied and found further on", steps: []step{{"x.svc.test.", noError, nxDomain}, {"x.test.", noError, noError}}, families: Finding, search: OK, cost: OK},
		{name: "AAAA fails", steps: []step{missing, {"x.test.", noError, servFail}}, families: Finding, search: Finding, cost: OK, evidence: []string{"musl: fails: EAI_AGAIN; glibc: success"}},
		{name: "AAAA fails on a search domain", steps: []step{{"x.svc.test.", noError, servFail}, {"x.test.", noError, noError}}, families: Finding, search: Finding, cost: OK},
		{name: "A is silent", steps: []step{{"x.test.", probe.Timeout, noError}}, families: Finding, search: Finding, cost: OK},
		{name: "a search domain without data", steps: []step{missing, {"x.corp.test.", probe.NoData, probe.NoData}, {"x.test.", noError, noError}}, families: OK, search: Finding, cost: OK,
			evidence: []string{"search_stopped: musl stops at x.corp.test.", "musl: stops: no address (EAI_NODATA); glibc: success", "take the domain out of the search list"}},
		{name: "a search domain that fails", steps: []step{{"x.corp.test.", servFail, servFail}, {"x.test.", noError, noError}}, families: OK, search: Finding, cost: OK,
			evidence: []string{"search_stopped: musl stops at x.corp.test.", "musl: fails: EAI_AGAIN; glibc: success", "see why its server fails"}},
		{name: "a search domain that is silent: glibc tries the name itself", steps: []step{{"x.corp.test.", probe.Timeout, probe.Timeout}, {"x.svc.test.", noError, noError}, {"x.test.", nxDomain, nxDomain}}, families: OK, search: Finding, cost: OK,
			evidence: []string{"musl: fails: EAI_AGAIN; glibc: not found"}},
		{name: "one family of a search domain denied, the other without data", steps: []step{{"x.corp.test.", probe.NoData, nxDomain}, {"x.test.", noError, noError}}, families: OK, search: OK, cost: OK},
		{name: "A denied, AAAA silent", steps: []step{{"x.corp.test.", nxDomain, probe.Timeout}, {"x.test.", noError, noError}}, families: OK, search: OK, cost: OK},
		{name: "refused is silence to musl", steps: []step{{"x.test.", "refused", "refused"}}, families: OK, search: Finding, cost: OK, evidence: []string{"no matter of the search list"}},
		{name: "not there", steps: []step{missing, {"x.test.", nxDomain, nxDomain}}, families: OK, search: Finding, cost: OK, evidence: []string{"musl: not found (EAI_NONAME); glibc: not found (EAI_NONAME)", "spelt right"}},
		{name: "there, without an address", steps: []step{{"x.test.", probe.NoData, probe.NoData}}, families: OK, search: Finding, cost: OK, evidence: []string{"no address (EAI_NODATA)"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			verdicts := []Verdict{judgeFamilies(tc.steps), judgeSearch("x", tc.steps), judgeCost("x", tc.steps)}
			var all strings.Builder
			for i, want := range []State{tc.families, tc.search, tc.cost} {
				v := verdicts[i]
				if v.State != want {
					t.Errorf("%s is %s, want %s: %s", v.Check, v.State, want, v.Evidence)
				}
				if (v.State == Finding) != (v.Remedy != "" && !strings.HasPrefix(v.Remedy, "advice: ")) {
					t.Errorf("%s is %s with remedy %q", v.Check, v.State, v.Remedy)
				}
				all.WriteString(v.Evidence + "\n" + v.Remedy + "\n")
			}
			for _, want := range tc.evidence {
				if !strings.Contains(all.String(), want) {
					t.Errorf("nothing says %q:\n%s", want, all.String())
				}
			}
			for _, ignored := range []string{"single-request", "use-vc", "rotate", "edns0"} {
				if strings.Contains(all.String(), ignored) {
					t.Errorf("a remedy names %s, which musl ignores", ignored)
				}
			}
		})
	}
}

// Several nameservers are one to a resolver that asks all of them.
func TestCombined(t *testing.T) {
	tests := []struct {
		name    string
		results []probe.Result
		want    string
	}{
		{"none", nil, probe.Timeout},
		{"silence and an answer", []probe.Result{{Type: 1, Outcome: probe.Timeout}, {Type: 1, Outcome: noError, Accepted: true}}, noError},
		{"a failure, and an answer", []probe.Result{{Type: 1, Outcome: servFail}, {Type: 1, Outcome: nxDomain, Accepted: true}}, nxDomain},
		{"two answers: the first one counts", []probe.Result{{Type: 1, Outcome: noError}, {Type: 1, Outcome: nxDomain, Accepted: true}}, nxDomain},
		{"silence and a failure", []probe.Result{{Type: 1, Outcome: servFail}, {Type: 1, Outcome: probe.Timeout}}, servFail},
		{"the other type", []probe.Result{{Type: 28, Outcome: noError, Accepted: true}}, probe.Timeout},
	}
	for _, tc := range tests {
		if got := combined(tc.results, 1); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}
