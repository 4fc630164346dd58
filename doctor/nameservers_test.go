package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/probe"
)

var (
	first  = netip.MustParseAddrPort("10.96.0.10:53")
	second = netip.MustParseAddrPort("10.96.0.11:53")
	server = netip.MustParseAddrPort("10.244.3.2:53")
	other  = netip.MustParseAddrPort("10.244.3.3:53")
)

func TestJudgeAnswers(t *testing.T) {
	good := probe.Result{Name: "x.test.", Type: 1, Nameserver: first, Outcome: noError, Took: time.Millisecond, Attempts: 1}
	tests := []struct {
		name string
		with func(*probe.Result)
		want State
		says string
	}{
		{"in time", nil, OK, "10.96.0.10:53 answered A in 1ms (noerror)"},
		{"not found is an answer", func(r *probe.Result) { r.Outcome = nxDomain }, OK, "nxdomain"},
		{"a failure is an answer, after however many resends", func(r *probe.Result) { r.Outcome, r.Took = servFail, 2500*time.Millisecond }, OK, "servfail"},
		{"silent", func(r *probe.Result) { r.Outcome, r.Took, r.Attempts = probe.Timeout, 5*time.Second, 2 }, Finding, "10.96.0.11:53 did not answer A for x.test. in 5s (asked 2 times)"},
		{"silent, and who asked stood still", func(r *probe.Result) { r.Outcome, r.Took, r.Attempts = probe.Timeout, 6500*time.Millisecond, 2 }, Finding, "10.96.0.11:53 did not answer A for x.test. in 5s (asked 2 times)"},
		{"no way there", func(r *probe.Result) { r.Outcome, r.Err = probe.Timeout, errors.New("network is unreachable") }, Finding, "10.96.0.11:53 could not be asked A for x.test.: network is unreachable"},
		{"refused", func(r *probe.Result) { r.Outcome = "refused" }, Finding, "10.96.0.11:53 refused A"},
		{"to the retry", func(r *probe.Result) { r.Took, r.Attempts = 2501*time.Millisecond, 2 }, Finding, "10.96.0.11:53 answered A for x.test. after 2.5s only"},
		{"from another address", func(r *probe.Result) { r.Stray, r.Took = server, 4*time.Second }, Finding, "came from 10.244.3.2:53, which was not asked"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := good
			r.Nameserver = second
			if tc.with != nil {
				tc.with(&r)
			}
			v := judgeAnswers("c", [][]probe.Result{{good}, {r}})
			if v.State != tc.want || !strings.Contains(v.Evidence, tc.says) || (v.State == Finding) != (v.Remedy != "") {
				t.Errorf("%+v, want %s that says %q", v, tc.want, tc.says)
			}
			if !strings.Contains(v.Evidence, "10.96.0.10:53 answered") {
				t.Errorf("%q does not tell of the good one", v.Evidence)
			}
		})
	}
}

func TestJudgeDistinct(t *testing.T) {
	both := []netip.AddrPort{first, second}
	tests := []struct {
		name     string
		backends map[netip.AddrPort][]netip.AddrPort
		want     State
		says     string
	}{
		{"different servers", map[netip.AddrPort][]netip.AddrPort{first: {server}, second: {other}}, OK, "10.96.0.10:53 is translated to 10.244.3.2:53; 10.96.0.11:53 is translated to 10.244.3.3:53"},
		{"one in common", map[netip.AddrPort][]netip.AddrPort{first: {server}, second: {other, server}}, Finding, "10.96.0.10:53 and 10.96.0.11:53 are both translated to 10.244.3.2:53"},
		{"one is what the other is translated to", map[netip.AddrPort][]netip.AddrPort{first: {second}, second: {second}}, Finding, "both translated to 10.96.0.11:53"},
		{"one is not tracked", map[netip.AddrPort][]netip.AddrPort{first: {server}}, OK, "10.96.0.11:53 is not tracked"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			v := judgeDistinct(both, tc.backends)
			if v.State != tc.want || !strings.Contains(v.Evidence, tc.says) || (v.State == Finding) != (v.Remedy != "") {
				t.Errorf("%+v, want %s that says %q", v, tc.want, tc.says)
			}
		})
	}
}
