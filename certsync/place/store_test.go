package place

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// TestQuiet proves that a plan reads nothing again while nothing changes: a look at
// this bundle would take more memory than it has bytes.
func TestQuiet(t *testing.T) {
	const size = 4 << 20
	e := emulate(t, "RHEL", "rhel", newAnchor(t, "dist"))
	e.base = append(e.base, "# "+strings.Repeat("x", size)+"\n"...)
	a := newAnchor(t, "a")
	s := e.open()
	cost := func() uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p, err := s.Plan([]anchor.Anchor{a})
		runtime.ReadMemStats(&after)
		if err != nil || !p.Empty() {
			t.Errorf("plan: %+v, %v", p, err)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	p, err := s.Plan([]anchor.Anchor{a})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), p, []anchor.Anchor{a}); err != nil {
		t.Fatal(err)
	}
	if got := cost(); got > size/4 {
		t.Errorf("the first plan after it takes %d bytes", got)
	}
	s = e.open()
	if got := cost(); got < size {
		t.Errorf("a new agent takes %d bytes, so that this test proves nothing", got)
	}
	if got := cost(); got > size/4 {
		t.Errorf("its second plan takes %d bytes", got)
	}
	// Whatever changes is seen.
	name := filepath.Join(e.root, e.layout.ownPath(a.Fingerprint))
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Plan([]anchor.Anchor{a}); err != nil || !p.Drift || len(p.Changes) != 1 {
		t.Errorf("with another mode: %+v, %v", p, err)
	}
}

// TestClock proves that a clock which is wrong costs one run of the tool, and not
// one for each pass.
func TestClock(t *testing.T) {
	e := emulate(t, "RHEL", "rhel", newAnchor(t, "dist"))
	a := newAnchor(t, "a")
	e.harm = func(int) {
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(filepath.Join(e.root, e.layout.anchors), later, later); err != nil {
			t.Fatal(err)
		}
	}
	s := e.open()
	p, err := s.Plan([]anchor.Anchor{a})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), p, []anchor.Anchor{a}); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Plan([]anchor.Anchor{a}); err != nil || !p.Empty() || len(e.calls) != 1 {
		t.Errorf("after %d calls: %+v, %v", len(e.calls), p, err)
	}
}

// TestForeignPlaces: which files of others give an anchor depends on what the
// distribution's tool reads.
func TestForeignPlaces(t *testing.T) {
	a := newAnchor(t, "a")
	der, pem := string(a.Cert.Raw), string(a.PEM())
	for _, tt := range []struct {
		name, id, file, content string
		given                   bool
	}{
		{"Debian", "debian", "x.crt", pem, true},
		{"Debian", "debian", "deep/er/x.crt", pem, true},
		{"Debian", "debian", ".x.crt", pem, true},
		{"Debian", "debian", "x.pem", pem, false},
		{"Debian", "debian", "x.crt", der, false},
		{"Debian", "debian", "x.crt", pem + string(newAnchor(t, "b").PEM()), false},
		{"Debian", "debian", "deep/nodestead-" + a.Fingerprint + ".crt", pem, true},
		{"Alpine", "alpine", "x", pem, true},
		{"Alpine", "alpine", ".x.crt", pem, false},
		{"Alpine", "alpine", "deep/x.crt", pem, false},
		{"RHEL", "rhel", "x", pem, true},
		{"RHEL", "rhel", "x.der", der, true},
		{"RHEL", "rhel", "deep/x.crt", pem, false},
		{"RHEL", "rhel", ".nodestead-KILLED.tmp", pem, false},
		{"Flatcar", "flatcar", "x.pem", pem, true},
		{"Flatcar", "flatcar", "x.crt", pem, false},
	} {
		t.Run(tt.name+" "+tt.file, func(t *testing.T) {
			e := emulate(t, tt.name, tt.id)
			put(t, e.root, map[string]string{e.layout.anchors + "/" + tt.file: tt.content})
			st, err := e.open().look()
			if err != nil {
				t.Fatal(err)
			}
			if got := st.given(a.Fingerprint); got != tt.given || len(st.own) > 0 {
				t.Errorf("it is given: %v; ours: %d", got, len(st.own))
			}
		})
	}
}

// TestPlanted plants links where our files shall be, and where the tool looks.
func TestPlanted(t *testing.T) {
	a := newAnchor(t, "a")
	e := emulate(t, "Debian", "debian")
	own := strings.TrimPrefix(e.layout.ownPath(a.Fingerprint), "/")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, a.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, e.root, map[string]string{
		own:                           "->" + outside,
		"secret.crt":                  string(a.PEM()),
		e.layout.anchors + "/loop":    "->.",
		e.layout.anchors + "/up.crt":  "->../../../../../../../../etc/passwd",
		e.layout.anchors + "/out.crt": "->" + outside,
	})
	s := e.open()
	e.bring(s, a)
	if content, err := os.ReadFile(filepath.Join(e.root, own)); err != nil || string(content) != string(a.PEM()) {
		t.Errorf("our file: %q, %v", content, err)
	}
	if fi, err := os.Lstat(filepath.Join(e.root, own)); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("our file is %v, %v", fi.Mode(), err)
	}
	put(t, e.root, map[string]string{"x": "y"})
	if err := os.Remove(filepath.Join(e.root, own)); err != nil {
		t.Fatal(err)
	}
	// To a file with the very content.
	put(t, e.root, map[string]string{own: "->/secret.crt"})
	if p := e.bring(s, a); !p.Drift {
		t.Errorf("a link in our place is no drift: %+v", p)
	}
	e.bring(s)
	got := readTree(t, e.root)
	if got["secret.crt"] != string(a.PEM()) || got[own] != "" {
		t.Errorf("after the removal: %q and %q", got["secret.crt"], got[own])
	}
	if content, err := os.ReadFile(outside); err != nil || string(content) != string(a.PEM()) {
		t.Errorf("the file outside: %q, %v", content, err)
	}
}

// fakeInfo is what Stat tells of a file of anybody's: to make one takes root.
type fakeInfo struct {
	fs.FileInfo
	uid  uint32
	mode fs.FileMode
}

func (f fakeInfo) Mode() fs.FileMode { return f.mode }
func (f fakeInfo) Sys() any          { return &syscall.Stat_t{Uid: f.uid} }

func TestUnsafeBy(t *testing.T) {
	own := uint32(os.Geteuid())
	for _, tt := range []struct {
		uid  uint32
		mode fs.FileMode
		safe bool
	}{
		{0, 0o644, true}, {own, 0o644, true}, {0, fs.ModeDir | 0o755, true}, {own + 1, 0o644, false},
		{0, 0o664, false}, {0, 0o646, false}, {0, fs.ModeDir | fs.ModeSticky | 0o777, false},
	} {
		if got := unsafeBy(fakeInfo{uid: tt.uid, mode: tt.mode}); (got == "") != tt.safe {
			t.Errorf("user %d, mode %v: %q", tt.uid, tt.mode, got)
		}
	}
}

// TestCertsOrder: a registry's anchors are always in one of its directories.
func TestCertsOrder(t *testing.T) {
	a := newAnchor(t, "a")
	h, root := newHost(t, map[string]string{
		"certs.d/" + registry + "/nodestead.crt":             certsContent(a),
		"certs.d/registry.example.org_5000_/client.cert":     "x",
		"certs.d/registry.example.org_5000_/client.key":      "x",
		"certs.d/unconfigured.example.org:5000/.keep":        "",
		"certs.d/unconfigured.example.org:5000/something":    "",
		"certs.d/unconfigured.example.org:5000/foreign.cert": "",
	})
	var steps []string
	h.OnStep(func(step string) {
		steps = append(steps, step)
		found, err := filepath.Glob(filepath.Join(root, "certs.d", "registry*", "nodestead.crt"))
		if err != nil || len(found) == 0 {
			t.Errorf("at %q there is none: %v", step, err)
		}
	})
	c := NewCerts(h, "containerd", "/certs.d", registry)
	if err := c.Apply(t.Context(), Plan{}, []anchor.Anchor{a}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(steps, "renamed") || !slices.Contains(steps, "removed") {
		t.Errorf("steps: %q", steps)
	}
	want := []string{"containerd/" + registry}
	var got []string
	for _, target := range ListCerts(h, "containerd", "/certs.d") {
		got = append(got, target.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("registries with our file (-want +got):\n%s", diff)
	}
}
