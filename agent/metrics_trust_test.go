package agent

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
)

func newTestTrustMetrics() (*prometheus.Registry, *trustMetrics) {
	registry := prometheus.NewPedanticRegistry()
	return registry, newTrustMetrics(registry, Default().Trust)
}

// samples gives the trust metrics as they are scraped, without their help.
func samples(t *testing.T, registry *prometheus.Registry) []string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			out = append(out, fmt.Sprintf("%s{%s} %v", strings.TrimPrefix(family.GetName(), "nodestead_"), strings.Join(labels, ","), value))
		}
	}
	return sorted(out)
}

func sorted(lines []string) []string {
	slices.Sort(lines)
	return lines
}

func certificate(subject pkix.Name, notAfter int64) *x509.Certificate {
	return &x509.Certificate{Subject: subject, NotAfter: time.Unix(notAfter, 0)}
}

// full is a status that has a bit of everything.
func full() certsync.Status {
	return certsync.Status{
		Time: time.Unix(1000, 0),
		Anchors: []anchor.Anchor{
			{Fingerprint: "aa", Cert: certificate(pkix.Name{CommonName: "Example Root"}, 2000)},
			{Fingerprint: "bb", Cert: certificate(pkix.Name{CommonName: "bad \xff" + strings.Repeat("x", 300)}, 3000)},
		},
		Refused: []anchor.Refusal{
			{Source: "/ca/bundle.pem", Reason: "expired"}, {Source: "/ca/bundle.pem", Reason: "expired"}, {Source: "/ca/key\xff.pem", Reason: "private_key"},
		},
		Broken: []anchor.Refusal{{Source: "/ca", Reason: "empty"}},
		Targets: []certsync.TargetStatus{
			{Name: "store", InSync: true, LastSuccess: time.Unix(900, 500e6)},
			{Name: "docker/registry.example.de:5000", Err: "a foreign file"},
			{Name: "docker/registry.example.de:5000", InSync: true},
		},
		Changes: map[certsync.Change]int{{Target: "store", Result: certsync.Changed}: 2, {Target: "containerd/old:1", Result: certsync.Failed}: 1},
		Runtimes: []certsync.RuntimeStatus{
			{
				Name: daemon.Docker, Decision: daemon.Decision{Action: daemon.Pending, Reason: "disruptive"},
				Answers: []daemon.Answer{
					{Registry: "a:1", Verdict: daemon.Trusted}, {Registry: "b:2", Verdict: daemon.Untrusted}, {Registry: "c:3", Verdict: daemon.Unclear},
				},
				Restarts: map[string]int{daemon.Helped: 3},
			},
			{Name: daemon.Containerd, Decision: daemon.Decision{Action: daemon.Leave, Reason: "trusts"}},
		},
	}
}

func TestTrustMetrics(t *testing.T) {
	registry, m := newTestTrustMetrics()
	counters := func(runtimes ...string) (out []string) {
		for _, r := range runtimes {
			for _, result := range []string{"did_not_help", "failed", "healthy", "helped", "unknown"} {
				out = append(out, "runtime_restarts_total{result="+result+",runtime="+r+"} 0")
			}
		}
		return out
	}
	start := append(counters("containerd", "crio", "docker"),
		"trust_changes_total{result=changed,target=store} 0",
		"trust_changes_total{result=failed,target=store} 0",
		"trust_changes_total{result=repaired,target=store} 0")
	if diff := cmp.Diff(sorted(start), samples(t, registry)); diff != "" {
		t.Errorf("at the start (-want +got):\n%s", diff)
	}

	m.set(full())
	want := []string{
		"ca_not_after_timestamp_seconds{fingerprint=aa,subject=CN=Example Root} 2000",
		"ca_not_after_timestamp_seconds{fingerprint=bb,subject=CN=bad \uFFFD" + strings.Repeat("x", 256-8) + "…} 3000",
		"ca_rejected{reason=expired,source=/ca/bundle.pem} 2",
		"ca_rejected{reason=private_key,source=/ca/key\uFFFD.pem} 1",
		"ca_source_broken{source=/ca} 1",
		"ca_source_broken{source=/etc/nodestead/ca} 0",
		"registry_trusted{registry=a:1,runtime=docker} 1",
		"registry_trusted{registry=b:2,runtime=docker} 0",
		"runtime_restart_pending{reason=disruptive,runtime=docker} 1",
		"runtime_restarts_total{result=did_not_help,runtime=containerd} 0",
		"runtime_restarts_total{result=failed,runtime=containerd} 0",
		"runtime_restarts_total{result=healthy,runtime=containerd} 0",
		"runtime_restarts_total{result=helped,runtime=containerd} 0",
		"runtime_restarts_total{result=unknown,runtime=containerd} 0",
		"runtime_restarts_total{result=did_not_help,runtime=docker} 0",
		"runtime_restarts_total{result=failed,runtime=docker} 0",
		"runtime_restarts_total{result=healthy,runtime=docker} 0",
		"runtime_restarts_total{result=helped,runtime=docker} 3",
		"runtime_restarts_total{result=unknown,runtime=docker} 0",
		"trust_changes_total{result=changed,target=containerd/old:1} 0",
		"trust_changes_total{result=changed,target=docker/registry.example.de:5000} 0",
		"trust_changes_total{result=changed,target=store} 2",
		"trust_changes_total{result=failed,target=containerd/old:1} 1",
		"trust_changes_total{result=failed,target=docker/registry.example.de:5000} 0",
		"trust_changes_total{result=failed,target=store} 0",
		"trust_changes_total{result=repaired,target=containerd/old:1} 0",
		"trust_changes_total{result=repaired,target=docker/registry.example.de:5000} 0",
		"trust_changes_total{result=repaired,target=store} 0",
		"trust_in_sync{target=docker/registry.example.de:5000} 0",
		"trust_in_sync{target=store} 1",
		"trust_last_pass_timestamp_seconds{} 1000",
		"trust_last_success_timestamp_seconds{target=store} 900.5",
	}
	if diff := cmp.Diff(sorted(want), samples(t, registry)); diff != "" {
		t.Errorf("of a full status (-want +got):\n%s", diff)
	}

	// A pass that could not do anything: nobody knows whether it is in sync.
	m.set(certsync.Status{Time: time.Unix(1030, 0), Errs: []string{"another agent holds the lock"}, Changes: full().Changes})
	want = []string{
		"trust_in_sync{target=docker/registry.example.de:5000} 0",
		"trust_in_sync{target=store} 0",
		"trust_last_success_timestamp_seconds{target=store} 900.5",
	}
	got := slices.DeleteFunc(samples(t, registry), func(s string) bool {
		return !strings.HasPrefix(s, "trust_in_sync") && !strings.HasPrefix(s, "trust_last_success")
	})
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("of a pass that came to nothing (-want +got):\n%s", diff)
	}

	// What no longer holds is gone.
	m.set(certsync.Status{
		Time: time.Unix(1060, 0), Changes: full().Changes, Targets: []certsync.TargetStatus{{Name: "store", InSync: true, LastSuccess: time.Unix(1060, 0)}},
		Runtimes: []certsync.RuntimeStatus{{Name: daemon.Docker, Restarts: map[string]int{daemon.Helped: 4}}},
	})
	for _, s := range samples(t, registry) {
		for _, gone := range []string{"ca_not_after", "ca_rejected", "registry_trusted", "restart_pending", "trust_in_sync{target=docker", "source=/ca}"} {
			if strings.Contains(s, gone) {
				t.Errorf("it is still there: %s", s)
			}
		}
	}
}
