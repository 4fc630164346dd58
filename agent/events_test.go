package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/cluster"
	"github.com/nodestead/nodestead/incident"
)

func TestIncidentMessage(t *testing.T) {
	server := netip.MustParseAddrPort("10.96.0.10:53")
	for _, tt := range []struct {
		name string
		in   incident.Incident
		want string
	}{
		{"lost", incident.Incident{Cause: incident.OrphanedAnswer, Name: "git.example.de.", Type: "AAAA", Nameserver: server, Evidence: "late", Remedy: "wait"},
			"DNS lookup lost: git.example.de. AAAA at 10.96.0.10:53: late. Remedy: wait"},
		{"failed", incident.Incident{Cause: incident.ServerFailure, Name: "a.b.", Type: "A", Nameserver: server, Evidence: "SERVFAIL", Remedy: "ask it"},
			"DNS lookup failed: a.b. A at 10.96.0.10:53: SERVFAIL. Remedy: ask it"},
		{"conntrack alone", incident.Incident{Cause: incident.OrphanedAnswer, Evidence: "late"}, "DNS lookup lost: late"},
		{"a name that speaks", incident.Incident{Cause: incident.Unknown, Name: "x. Remedy: run\x1b[2J evil\u202e\"\n", Type: "A", Evidence: "none"},
			`DNS lookup lost: "x. Remedy: run\x1b[2J evil\u202e\"\n" A: none`},
		{"a long name", incident.Incident{Cause: incident.Unknown, Name: strings.Repeat("a", 2000), Type: "A", Evidence: "none"},
			`DNS lookup lost: "` + strings.Repeat("a", 253) + `\u2026" A: none`},
	} {
		if diff := cmp.Diff(tt.want, incidentMessage(tt.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestTrustFindings(t *testing.T) {
	pending := func(name daemon.Name, reason, detail string) certsync.RuntimeStatus {
		return certsync.RuntimeStatus{Name: name, Decision: daemon.Decision{Action: daemon.Pending, Reason: reason, Detail: detail, Remedy: "R"}}
	}
	runtimes := func(r ...certsync.RuntimeStatus) certsync.Status { return certsync.Status{Runtimes: r} }
	restarted := func(results map[string]int, d daemon.Decision) certsync.Status {
		return runtimes(certsync.RuntimeStatus{Name: daemon.Docker, Restarts: results, Decision: d})
	}
	sources := certsync.Status{
		Broken:  []anchor.Refusal{{Source: "/ca", Reason: "no_anchor", Detail: "none"}},
		Refused: []anchor.Refusal{{Source: "/ca/a", Reason: "expired", Detail: "D1"}, {Source: "/ca/a", Reason: "expired", Detail: "D2"}, {Source: "/ca/b", Reason: "html", Detail: "D3"}},
	}
	noCA := certsync.Status{Broken: []anchor.Refusal{{Source: "/ca", Reason: "missing", Detail: "no such directory"}}}
	lost := certsync.Status{Broken: noCA.Broken, Anchors: []anchor.Anchor{root("old", 1)}}
	asked := func(action daemon.Action) certsync.Status {
		return runtimes(certsync.RuntimeStatus{
			Name: daemon.Docker, Decision: daemon.Decision{Action: action, Reason: "would_not_help", Remedy: "the right CA"},
			Answers: []daemon.Answer{{Registry: "r:1", Verdict: daemon.Untrusted, Text: "x509"}, {Registry: "r:2", Verdict: daemon.Unclear}, {Registry: "r:3", Verdict: daemon.Trusted}},
		})
	}
	var none []cluster.Finding
	for _, tt := range []struct {
		name        string
		before, now certsync.Status
		want        []cluster.Finding
	}{
		{"nothing", certsync.Status{}, certsync.Status{}, none},
		{"sources", certsync.Status{}, sources, []cluster.Finding{
			{Cause: "ca_refused", Message: "refused as a trust anchor: /ca/a: expired: D1; refused as a trust anchor: /ca/b: html: D3", Warning: true, Count: 2},
			{Cause: "ca_source_broken", Message: "source /ca is broken, what it gave last stays: no_anchor: none", Warning: true, Count: 1},
		}},
		{"no CA yet", certsync.Status{}, noCA, []cluster.Finding{
			{Cause: "ca_not_given", Message: "no CA is given yet, so that nothing is installed: source /ca: missing: no such directory", Count: 1},
		}},
		{"a CA was given, and its source is gone", noCA, lost, []cluster.Finding{
			{Cause: "ca_source_broken", Message: "source /ca is broken, what it gave last stays: missing: no such directory", Warning: true, Count: 1},
		}},
		{"the same sources", sources, sources, none},
		{"sources that are whole again", sources, certsync.Status{}, none},
		{"pending", certsync.Status{}, runtimes(pending(daemon.Containerd, "no_live_restore", "A"), pending(daemon.Docker, "no_live_restore", "B")), []cluster.Finding{
			{Cause: "restart_pending_no_live_restore", Subject: "containerd", Message: "restart of containerd is pending: no_live_restore: A. Remedy: R", Warning: true, Count: 1},
			{Cause: "restart_pending_no_live_restore", Subject: "docker", Message: "restart of docker is pending: no_live_restore: B. Remedy: R", Warning: true, Count: 1},
		}},
		{"a detail changes", runtimes(pending(daemon.Docker, certsync.WaitingForSlot, "holder a")), runtimes(pending(daemon.Docker, certsync.WaitingForSlot, "holder b")), none},
		{"the reason changes", runtimes(pending(daemon.Docker, certsync.WaitingForSlot, "holder a")), runtimes(pending(daemon.Docker, certsync.OutsideWindow, "soon")), []cluster.Finding{
			{Cause: "restart_pending_outside_window", Subject: "docker", Message: "restart of docker is pending: outside_window: soon. Remedy: R", Count: 1},
		}},
		{"a registry", certsync.Status{}, asked(daemon.Leave), []cluster.Finding{
			{Cause: "registry_untrusted", Subject: "docker", Message: "docker does not trust r:1: x509. Remedy: the right CA", Warning: true, Count: 1},
		}},
		{"the same registry, another decision", asked(daemon.Leave), asked(daemon.Restart), none},
		{"helped, in the first pass", certsync.Status{}, restarted(map[string]int{daemon.Helped: 1, daemon.Failed: 0}, daemon.Decision{}), []cluster.Finding{
			{Cause: "runtime_restarted", Subject: "docker", Message: "docker was restarted, so that it trusts the private CA (helped)", Count: 1},
		}},
		{"the same count", restarted(map[string]int{daemon.Helped: 1}, daemon.Decision{}), restarted(map[string]int{daemon.Helped: 1}, daemon.Decision{}), none},
		{"did not help", restarted(map[string]int{daemon.DidNotHelp: 1}, daemon.Decision{}), restarted(map[string]int{daemon.DidNotHelp: 2}, daemon.Decision{Action: daemon.Leave, Remedy: "R"}), []cluster.Finding{
			{Cause: "restart_did_not_help", Subject: "docker", Message: "docker was restarted, and does not trust what is installed: it is not restarted again for these certificates. Remedy: R", Warning: true, Count: 1},
		}},
		{"failed", certsync.Status{}, restarted(map[string]int{daemon.Failed: 1}, daemon.Decision{Action: daemon.Pending, Reason: "restart_failed", Detail: "D", Remedy: "R"}), []cluster.Finding{
			{Cause: "restart_pending_restart_failed", Subject: "docker", Message: "restart of docker is pending: restart_failed: D. Remedy: R", Warning: true, Count: 1},
			{Cause: "restart_failed", Subject: "docker", Message: "docker was restarted, and is not healthy. Remedy: R", Warning: true, Count: 1},
		}},
	} {
		if diff := cmp.Diff(tt.want, trustFindings(tt.before, tt.now)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
