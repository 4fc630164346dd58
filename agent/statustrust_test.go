package agent

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/place"
)

// trustHalf is trust after a pass that came to s.
func trustHalf(s certsync.Status) *trust {
	h := newTrust(Default(), slog.New(slog.DiscardHandler), nil)
	h.status = newTrustMetrics(prometheus.NewRegistry(), h.cfg.Trust)
	h.status.set(s)
	return h
}

func hashOf(style string) string {
	sum := sha256.Sum256([]byte(style))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// root is an anchor that ends after so many days and an hour.
func root(name string, days int) anchor.Anchor {
	end := time.Now().Add(time.Duration(days)*24*time.Hour + time.Hour)
	return anchor.Anchor{Fingerprint: "f-" + name, Source: "/ca/" + name, Cert: certificate(pkix.Name{CommonName: name}, end.Unix())}
}

// trustState is a status and what the page says of it.
type trustState struct {
	name                                          string
	status                                        certsync.Status
	verdicts, anchors, sources, targets, runtimes []string
	states                                        map[string][]string // by selector
}

func trustStates(t *testing.T) []trustState {
	t.Helper()
	now := time.Now()
	until := func(days int) string {
		return now.Add(time.Duration(days)*24*time.Hour + time.Hour).UTC().Format(time.DateOnly)
	}
	return []trustState{
		{
			name:     "before the first pass",
			verdicts: []string{"warn: trust: the first pass has not ended yet"},
		},
		{
			name:     "empty",
			status:   certsync.Status{Time: now},
			verdicts: []string{"good: trust is in sync: 0 certificates installed"},
		},
		{
			name:     "no CA yet",
			status:   certsync.Status{Time: now, Broken: []anchor.Refusal{{Source: "/ca", Reason: "empty", Detail: "no files in it"}}},
			verdicts: []string{"good: trust: no CA is given yet, so that nothing is installed"},
			sources:  []string{"no CA yet /ca : empty . no files in it. Nothing is installed."},
		},
		{
			name:     "a CA is known, and its source is gone",
			status:   certsync.Status{Time: now, Anchors: []anchor.Anchor{root("new", 729)}, Broken: []anchor.Refusal{{Source: "/ca", Reason: "missing"}}},
			verdicts: []string{"bad: source /ca is broken: missing"},
			sources:  []string{"source is broken /ca : missing . What it gave last stays."},
			states:   map[string][]string{"li.anchor": {"good"}},
			anchors:  []string{"ends in 729 days CN=new f-new from /ca/new , until " + until(729)},
		},
		{
			name:     "a pass hangs",
			status:   certsync.Status{Time: now.Add(-10 * time.Minute)},
			verdicts: []string{"bad: trust: the last pass ended 10 minutes ago: the one that runs takes long, or hangs", "good: trust was in sync: 0 certificates installed"},
		},
		{
			name: "in sync",
			status: certsync.Status{
				Time:    now,
				Anchors: []anchor.Anchor{root("new", 3650), {Fingerprint: "ff", Source: "/ca/leaf", Leaf: true, Cert: root("leaf", 400).Cert}},
				Targets: []certsync.TargetStatus{{Name: "store", InSync: true, LastSuccess: now}},
				Runtimes: []certsync.RuntimeStatus{
					{
						Name: daemon.Docker, Present: true, Facts: daemon.Facts{Version: "20.10.24"},
						Decision: daemon.Decision{Action: daemon.Leave, Reason: "trusted", Detail: "docker trusts what it was asked about"},
						Answers:  []daemon.Answer{{Registry: "registry:5000", Verdict: daemon.Trusted, Text: "not found", At: now.Add(-3 * time.Minute)}},
						Restarts: map[string]int{daemon.Helped: 2, daemon.DidNotHelp: 1},
					},
					{Name: daemon.CRIO, Decision: daemon.Decision{Action: daemon.Leave, Reason: "not_present", Detail: "there is no crio on this node"}},
				},
			},
			verdicts: []string{"good: trust is in sync: 2 certificates installed"},
			anchors: []string{
				"ends in 400 days CN=leaf a server's, no CA ff from /ca/leaf , until " + until(400),
				"ends in 10 years CN=new f-new from /ca/new , until " + until(3650),
			},
			targets: []string{"in sync store"},
			states:  map[string][]string{"li.anchor": {"good", "good"}, "li.target": {"good"}, "div.runtime": {"good", ""}},
			runtimes: []string{
				"in order docker 20.10.24 trusted docker trusts what it was asked about trusted registry:5000 asked 3 minutes ago Restarts since the start: 2 helped, 1 did not help",
				"not on this node crio",
			},
		},
		{
			name:     "a month left",
			status:   certsync.Status{Time: now, Anchors: []anchor.Anchor{root("good", 30), root("old", 29)}},
			verdicts: []string{"warn: CN=old ends in 29 days"},
			states:   map[string][]string{"li.anchor": {"warn", "good"}},
			anchors:  []string{"ends in 29 days CN=old f-old from /ca/old , until " + until(29), "ends in 30 days CN=good f-good from /ca/good , until " + until(30)},
		},
		{
			name:     "a week left",
			status:   certsync.Status{Time: now, Anchors: []anchor.Anchor{root("old", 6)}},
			verdicts: []string{"bad: CN=old ends in 6 days"},
			states:   map[string][]string{"li.anchor": {"bad"}},
			anchors:  []string{"ends in 6 days CN=old f-old from /ca/old , until " + until(6)},
		},
		{
			name:     "long ones",
			status:   certsync.Status{Time: now, Anchors: []anchor.Anchor{root("a", 729), root("b", 730)}},
			verdicts: []string{"good: trust is in sync: 2 certificates installed"},
			states:   map[string][]string{"li.anchor": {"good", "good"}},
			anchors:  []string{"ends in 729 days CN=a f-a from /ca/a , until " + until(729), "ends in 2 years CN=b f-b from /ca/b , until " + until(730)},
		},
		{
			name:     "expired",
			status:   certsync.Status{Time: now, Anchors: []anchor.Anchor{root("old", -3)}},
			verdicts: []string{"bad: CN=old ended 2 days ago"},
			states:   map[string][]string{"li.anchor": {"bad"}},
			anchors:  []string{"ended 2 days ago CN=old f-old from /ca/old , until " + until(-3)},
		},
		{
			name: "broken",
			status: certsync.Status{
				Time: now, Errs: []string{"the state could not be written"},
				Broken:   []anchor.Refusal{{Source: "/ca", Reason: "missing", Detail: "there is no such directory"}},
				Refused:  []anchor.Refusal{{Source: "/b/key.pem", Reason: "private_key", Detail: "take it out"}},
				Warnings: []anchor.Refusal{{Source: "/b/ca.pem", Reason: "not_self_signed", Detail: "give the root as well"}},
				Targets: []certsync.TargetStatus{
					{Name: "store", Err: "read-only", LastSuccess: now.Add(-2 * time.Hour)}, {Name: "a"}, {Name: "b"}, {Name: "c"},
					{Name: "docker/r", InSync: true, Problems: []place.Problem{{Path: "/etc/x", Reason: "foreign_hosts_toml", Detail: "it is not ours"}}},
				},
				Runtimes: []certsync.RuntimeStatus{
					{
						Name: daemon.Docker, Present: true,
						Decision: daemon.Decision{Action: daemon.Pending, Reason: "no_live_restore", Detail: "it would stop containers; it says: r: x509: unknown authority", Remedy: "switch it on"},
						Answers:  []daemon.Answer{{Registry: "r", Verdict: daemon.Untrusted, Text: "x509: unknown authority", At: now}, {Registry: "s", Verdict: daemon.Unclear, Text: "no route", At: now}},
					},
					{Name: daemon.Containerd, Err: "its socket is gone"},
					{Name: daemon.CRIO, Present: true, Decision: daemon.Decision{Action: daemon.Leave, Reason: "unclear", Detail: "crio could not tell: s: no route"}, Answers: []daemon.Answer{{Registry: "s", Verdict: daemon.Unclear, Text: "no route", At: now}}},
				},
			},
			verdicts: []string{
				"bad: trust: the last pass did not succeed",
				"bad: source /ca is broken: missing",
				"warn: something in the sources is refused: private_key",
				"bad: not in sync: store, a, b and 1 more",
				"bad: docker: restart is pending",
				"bad: containerd: could not be looked at",
				"warn: crio: could not tell",
			},
			sources: []string{
				"source is broken /ca : missing . there is no such directory. What it gave last stays.",
				"refused /b/key.pem : private_key : take it out",
				"taken, and may disappoint /b/ca.pem : not_self_signed : give the root as well",
			},
			states: map[string][]string{"li.target": {"bad", "bad", "bad", "bad", "warn"}, "div.runtime": {"bad", "bad", "warn"}},
			targets: []string{
				"not in sync store last in sync 2 hours ago read-only",
				"not in sync a last in sync never", "not in sync b last in sync never", "not in sync c last in sync never",
				"in sync docker/r foreign_hosts_toml at /etc/x : it is not ours",
			},
			runtimes: []string{
				"restart is pending docker no_live_restore it would stop containers What to do: switch it on untrusted r asked now : x509: unknown authority unclear s asked now : no route",
				"could not be looked at containerd its socket is gone",
				"could not tell crio unclear crio could not tell unclear s asked now : no route",
			},
		},
	}
}

// hostileTrust has a text of a stranger's at each place where one can bring it.
func hostileTrust(t *testing.T, evil string) certsync.Status {
	t.Helper()
	refusal := []anchor.Refusal{{Source: evil, Reason: anchor.Reason(evil), Detail: evil}}
	return certsync.Status{
		Time: time.Now(), Errs: []string{evil}, Broken: refusal, Refused: refusal, Warnings: refusal,
		Anchors: []anchor.Anchor{{Fingerprint: "ff", Source: evil, Cert: certificate(pkix.Name{CommonName: evil}, time.Now().Unix())}},
		Targets: []certsync.TargetStatus{{Name: evil, Err: evil, Problems: []place.Problem{{Path: evil, Reason: evil, Detail: evil}}}},
		Runtimes: []certsync.RuntimeStatus{{
			Name: daemon.Docker, Present: true, Err: evil, Facts: daemon.Facts{Version: evil},
			Decision: daemon.Decision{Action: daemon.Pending, Reason: evil, Detail: evil, Remedy: evil},
			Answers:  []daemon.Answer{{Registry: evil, Verdict: daemon.Verdict(evil), Text: evil}},
		}},
	}
}

// fullTrust is a status with all that it can hold: 16 sources of 20 certificates
// and 100 files, and 64 registries at three daemons.
func fullTrust(t testing.TB, text string) certsync.Status {
	t.Helper()
	s := certsync.Status{Time: time.Now()}
	for i := range 16 * 20 {
		s.Anchors = append(s.Anchors, root(fmt.Sprintf("root %d of a company with a long name %s", i, short(text, 256)), 40+i))
	}
	for i := range 16 * 100 {
		r := anchor.Refusal{Source: fmt.Sprintf("/etc/nodestead/ca/%d/%s", i, short(text, 20)), Reason: "not_a_ca", Detail: text}
		s.Refused, s.Warnings = append(s.Refused, r), append(s.Warnings, r)
	}
	for _, name := range []daemon.Name{daemon.Docker, daemon.Containerd, daemon.CRIO} {
		r := certsync.RuntimeStatus{Name: name, Present: true}
		for i := range 64 {
			registry := fmt.Sprintf("registry-%d.a-company-with-a-long-name.example.de:5000", i)
			s.Targets = append(s.Targets, certsync.TargetStatus{Name: string(name) + "/" + registry, InSync: i%2 == 0, LastSuccess: time.Now()})
			r.Answers = append(r.Answers, daemon.Answer{Registry: registry, Verdict: daemon.Trusted, Text: text})
		}
		s.Runtimes = append(s.Runtimes, r)
	}
	return s
}

// TestRuntimeThatWaits: a turn or a time that has not come is no fault; that pulls
// fail meanwhile is one.
func TestRuntimeThatWaits(t *testing.T) {
	for _, tt := range []struct {
		reason  string
		verdict daemon.Verdict
		state   state
		word    string
	}{
		{certsync.WaitingForSlot, daemon.Trusted, warn, "restart waits"},
		{certsync.OutsideWindow, daemon.Unclear, warn, "restart waits"},
		{certsync.OutsideWindow, daemon.Untrusted, bad, "does not trust a registry, restart waits"},
		{"no_live_restore", daemon.Untrusted, bad, "restart is pending"},
	} {
		v := newRuntimeView(certsync.RuntimeStatus{
			Name: daemon.Docker, Present: true, Decision: daemon.Decision{Action: daemon.Pending, Reason: tt.reason},
			Answers: []daemon.Answer{{Registry: "r", Verdict: tt.verdict}},
		})
		if v.State != tt.state || v.Word != tt.word {
			t.Errorf("%s, %s: %s %q, want %s %q", tt.reason, tt.verdict, v.State, v.Word, tt.state, tt.word)
		}
	}
}
