package certsync

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

// newAnchor makes a CA.
func newAnchor(t *testing.T, name string) anchor.Anchor {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return anchor.Stored(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), name)[0]
}

func names(all []anchor.Anchor) []string {
	var out []string
	for _, a := range all {
		out = append(out, a.Cert.Subject.CommonName)
	}
	slices.Sort(out)
	return out
}

// TestOverlap holds how long an anchor stays that its source has dropped.
func TestOverlap(t *testing.T) {
	now := time.Now()
	kept, old := newAnchor(t, "kept"), newAnchor(t, "old")
	memory := anchor.Memory{"/ca": {"a.crt": {string(kept.PEM())}, "b.crt": {string(old.PEM())}}}
	since := func(d time.Duration) map[string]leaving {
		return map[string]leaving{old.Fingerprint: {PEM: string(old.PEM()), Since: now.Add(-d)}}
	}
	tests := []struct {
		name    string
		overlap time.Duration
		allow   []string
		reads   []anchor.Anchor
		memory  anchor.Memory
		leaving map[string]leaving
		want    []string
		since   map[string]time.Duration // how long the rest has been leaving
	}{
		{name: "off", reads: []anchor.Anchor{kept}, memory: memory, want: []string{"kept"}},
		{name: "off, and was on", reads: []anchor.Anchor{kept}, memory: memory, leaving: since(time.Minute), want: []string{"kept"}},
		{name: "dropped now", overlap: time.Hour, reads: []anchor.Anchor{kept}, memory: memory,
			want: []string{"kept", "old"}, since: map[string]time.Duration{old.Fingerprint: 0}},
		{name: "on its way", overlap: time.Hour, reads: []anchor.Anchor{kept}, leaving: since(59 * time.Minute),
			want: []string{"kept", "old"}, since: map[string]time.Duration{old.Fingerprint: 59 * time.Minute}},
		{name: "over", overlap: time.Hour, reads: []anchor.Anchor{kept}, leaving: since(time.Hour), want: []string{"kept"}},
		{name: "back again", overlap: time.Hour, reads: []anchor.Anchor{kept, old}, leaving: since(time.Minute), want: []string{"kept", "old"}},
		{name: "no longer allowed", overlap: time.Hour, allow: []string{kept.Fingerprint}, reads: []anchor.Anchor{kept}, memory: memory,
			leaving: since(time.Minute), want: []string{"kept"}},
		{name: "the clock was set back", overlap: time.Hour, reads: []anchor.Anchor{kept}, leaving: since(-time.Hour),
			want: []string{"kept", "old"}, since: map[string]time.Duration{old.Fingerprint: 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := newState()
			st.Memory = tt.memory
			if tt.leaving != nil {
				st.Leaving = tt.leaving
			}
			got, left := overlap(anchor.Reading{Anchors: tt.reads}, st, Config{Overlap: tt.overlap, Allow: tt.allow}, now)
			if diff := cmp.Diff(tt.want, names(got)); diff != "" {
				t.Errorf("anchors (-want +got):\n%s", diff)
			}
			if !slices.IsSortedFunc(got, func(a, b anchor.Anchor) int { return strings.Compare(a.Fingerprint, b.Fingerprint) }) {
				t.Error("they are not sorted")
			}
			since := make(map[string]time.Duration)
			for f, l := range left {
				since[f] = now.Sub(l.Since)
			}
			if tt.since == nil {
				tt.since = map[string]time.Duration{}
			}
			if diff := cmp.Diff(tt.since, since); diff != "" {
				t.Errorf("on their way (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLoadedSince holds when a run of a daemon is taken to have loaded the
// anchors of the store.
func TestLoadedSince(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC) }
	st := newState()
	st.Installed = map[string]time.Time{"a": at(10), "b": at(20)}
	st.Runtimes["docker"] = runtimeState{Loaded: loaded{Invocation: "run", Fingerprints: []string{"b"}}}
	tests := []struct {
		name       string
		invocation string
		anchors    []string
		want       time.Time
	}{
		{"the last one counts", "other", []string{"a", "b"}, at(20)},
		{"what this run has loaded does not count", "run", []string{"a", "b"}, at(10)},
		{"all loaded", "run", []string{"b"}, at(5)},
		{"no run is known", "", []string{"a", "b"}, at(20)},
		{"none", "other", nil, at(5)},
	}
	for _, tt := range tests {
		if got := st.loadedSince("docker", tt.invocation, at(5), tt.anchors); !got.Equal(tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestInstalledAt holds what is noted of a change of the bundle.
func TestInstalledAt(t *testing.T) {
	before, now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	since := before.Add(time.Minute)
	st := newState()
	st.Installed = map[string]time.Time{"stays": before, "again": before, "gone": before}
	st.installedAt([]string{"stays", "again", "new", "found"}, map[string]bool{"again": true, "new": true, "gone": false}, now,
		func(string) time.Time { return since })
	want := map[string]time.Time{"stays": before, "again": now, "new": now, "found": since}
	if diff := cmp.Diff(want, st.Installed); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// stored is a CA of the lab as an anchor.
func stored(ca *lab.CA) []anchor.Anchor { return anchor.Stored(ca.PEM(), "") }

// TestNotReady: what was decided about a daemon is over when the daemon is gone, and
// what a run of it began with while the store was not ready is not taken for
// loaded.
func TestNotReady(t *testing.T) {
	h, err := host.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s := &Syncer{host: h, now: time.Now, log: slog.New(slog.DiscardHandler), state: newState(), runtimes: map[daemon.Name]*runtime{}}
	rt := newRuntime(daemon.Config{Name: daemon.Docker, Unit: "docker.service", Restart: daemon.Auto})
	s.runtimes[daemon.Docker] = rt
	a, began := newAnchor(t, "a"), time.Now()
	s.state.Installed[a.Fingerprint] = began.Add(-time.Hour)
	rt.facts = daemon.Facts{Present: true, Unit: host.Unit{Name: "docker.service", ActiveState: "active", InvocationID: "run", Started: began}}
	s.tend(t.Context(), rt, work{wanted: []anchor.Anchor{a}}, false, true, &Status{})
	s.state.installedAt([]string{a.Fingerprint}, map[string]bool{a.Fingerprint: true}, began.Add(time.Minute), nil)
	if since := s.state.loadedSince(daemon.Docker, "run", began, []string{a.Fingerprint}); !since.After(began) {
		t.Errorf("it is taken to have loaded what it cannot have: %+v", s.state.Runtimes)
	}

	rt.decision = daemon.Decision{Action: daemon.Pending, Reason: "no_live_restore"}
	rt.look(t.Context(), s)
	if wrong := (Status{Runtimes: []RuntimeStatus{rt.status()}}).Wrong(); wrong != nil {
		t.Errorf("a daemon that is gone: %v", wrong)
	}
}
