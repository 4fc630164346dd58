package incident

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	client     = netip.MustParseAddrPort("10.244.1.2:41000")
	nameserver = netip.MustParseAddrPort("10.96.0.10:53")
	loser      = netip.MustParseAddrPort("10.244.3.2:53")
	winner     = netip.MustParseAddrPort("10.244.3.3:53")
	when       = time.Unix(1_700_000_000, 0)
)

func TestFromOrphan(t *testing.T) {
	tests := []struct {
		name     string
		orphan   conntrack.Orphan
		waited   time.Duration
		exact    bool
		evidence string
	}{
		{
			name:     "exact",
			orphan:   conntrack.Orphan{Winner: winner, Lateness: 1_500_123_456, Exact: true},
			waited:   1_500_123_456,
			exact:    true,
			evidence: "answer arrived from 10.244.3.2:53 1.5s after the question; its conntrack entry had lived 1s; the question that it collided with went to 10.244.3.3:53",
		},
		{
			name:     "lower bound",
			orphan:   conntrack.Orphan{Winner: winner, Lateness: time.Second},
			waited:   time.Second,
			evidence: "answer arrived from 10.244.3.2:53 more than 1s after the question; its conntrack entry had lived 1s; the question that it collided with went to 10.244.3.3:53",
		},
		{
			name:     "winner unknown",
			orphan:   conntrack.Orphan{Lateness: time.Second},
			waited:   time.Second,
			evidence: "answer arrived from 10.244.3.2:53 more than 1s after the question; its conntrack entry had lived 1s",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.orphan.Time = when
			tt.orphan.Original = conntrack.Tuple{Source: client, Destination: nameserver}
			tt.orphan.Backend = loser
			want := Incident{
				Time: when, Cause: OrphanedAnswer, Client: client, Nameserver: nameserver, Backend: loser,
				Waited: tt.waited, WaitedExact: tt.exact, Count: 1, Evidence: tt.evidence, Remedy: orphanRemedy,
			}
			got := FromOrphan(tt.orphan)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("incident (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRemedyHelpsMusl keeps options that musl ignores out of the remedy.
func TestRemedyHelpsMusl(t *testing.T) {
	for _, remedy := range []string{orphanRemedy, collisionRemedy, tableRemedy, droppedRemedy, staleRemedy, silentRemedy, localRemedy,
		slowRemedy, failureRemedy, mismatchRemedy, searchRemedy, truncatedRemedy} {
		for _, ignored := range []string{"single-request", "use-vc", "rotate", "edns0"} {
			if strings.Contains(remedy, ignored) {
				t.Errorf("%q names %s, which musl ignores", remedy, ignored)
			}
		}
	}
}

func TestKey(t *testing.T) {
	byClient := Incident{Cause: OrphanedAnswer, Client: client, Workload: workload.Workload{Namespace: "ci"}}
	otherPort := byClient
	otherPort.Client = netip.AddrPortFrom(client.Addr(), 5)
	if byClient.Key() != otherPort.Key() {
		t.Error("two ports of one client have two keys")
	}
	byPod := byClient
	byPod.Workload.Pod = "runner"
	otherAddress := byPod
	otherAddress.Client = netip.MustParseAddrPort("[fd00::2]:5")
	if byPod.Key() != otherAddress.Key() {
		t.Error("two addresses of one pod have two keys")
	}
	if byPod.Key() == byClient.Key() {
		t.Error("a pod and an unknown client have one key")
	}
}

func TestFold(t *testing.T) {
	in := FromOrphan(conntrack.Orphan{Original: conntrack.Tuple{Source: client, Destination: nameserver}, Backend: loser})
	in.Workload = workload.Workload{Namespace: "ci", Pod: "runner"}
	in.Count = 7
	folded := Fold(in)
	if folded.Count != 7 || folded.Key() != (Key{Cause: OrphanedAnswer}) {
		t.Errorf("Fold gave count %d, key %+v", folded.Count, folded.Key())
	}
	if !strings.Contains(folded.Evidence, "ci/runner") {
		t.Errorf("evidence %q lacks the newest pod", folded.Evidence)
	}
}
