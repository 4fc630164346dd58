package place

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
)

// emulated is a store of a distribution that is not really there: a directory with
// its layout, and a function in the place of its tool, which makes the bundle of
// the files that the real one reads.
type emulated struct {
	t      *testing.T
	root   string
	host   *host.Host
	layout layout
	// base is in the bundle without a file that we know of, as p11-kit has it.
	base  []byte
	calls []string
	// harm, if there is one, is called after each run of the tool.
	harm func(run int)
	// step is called before and after each run.
	step func(string)
}

func emulate(t *testing.T, name, id string, base ...anchor.Anchor) *emulated {
	t.Helper()
	e := &emulated{t: t, layout: layoutOf(t, name)}
	for _, a := range base {
		e.base = append(e.base, a.PEM()...)
	}
	files := map[string]string{
		"etc/os-release":             "ID=" + id + "\n",
		"usr/sbin/" + e.layout.tool:  "#!/bin/sh\n",
		e.layout.has + "/":           "",
		e.layout.anchors + "/":       "",
		e.layout.bundles[0]:          string(e.base),
		"etc/ca-certificates.conf":   "# comment\n!mozilla/off.crt\nmozilla/missing.crt\nmozilla/on.crt\n",
		"usr/share/ca-certificates/": "",
	}
	if e.layout.conf != "" {
		files["usr/share/ca-certificates/mozilla/on.crt"] = string(e.base)
		files["usr/share/ca-certificates/mozilla/off.crt"] = string(newAnchor(t, "off").PEM())
	}
	if name == "Flatcar" {
		files["usr/share/ca-certificates/on.crt"] = string(e.base)
		files["etc/ssl/certs/on.pem"] = "->/usr/share/ca-certificates/on.crt"
	}
	e.host, e.root = newHost(t, files)
	// As if it had been made after all else.
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(filepath.Join(e.root, e.layout.bundles[0]), later, later); err != nil {
		t.Fatal(err)
	}
	return e
}

// open is the store as a new agent has it.
func (e *emulated) open() *Store {
	e.t.Helper()
	s, err := FindStore(e.host)
	if err != nil {
		e.t.Fatal(err)
	}
	if s.Layout() != e.layout.name {
		e.t.Fatalf("the layout is %s", s.Layout())
	}
	s.run = e.run
	return s
}

func (e *emulated) run(_ context.Context, _ string, argv []string) error {
	if e.step != nil {
		e.step("tool")
		defer e.step("tool has run")
	}
	e.calls = append(e.calls, strings.Join(argv, " "))
	var bundle []byte
	if e.layout.conf == "" && e.layout.name != "Flatcar" {
		bundle = slices.Clone(e.base)
	}
	st, err := (&Store{h: e.host, layout: e.layout}).look()
	if err != nil {
		return err
	}
	for _, f := range st.foreign {
		content, err := e.host.ReadFile(f.path, maxFile)
		if err != nil {
			return err
		}
		bundle = append(bundle, content...)
	}
	for _, f := range st.own {
		bundle = append(bundle, f.content...)
	}
	name := filepath.Join(e.root, e.layout.bundles[0])
	if err := os.WriteFile(name+".made", bundle, 0o644); err != nil {
		return err
	}
	if err := os.Rename(name+".made", name); err != nil {
		return err
	}
	if e.layout.name == "Flatcar" {
		if err := e.rehash(st); err != nil {
			return err
		}
	}
	if e.harm != nil {
		e.harm(len(e.calls))
	}
	return nil
}

// rehash makes links as OpenSSL does, under names that are no hashes of subjects.
func (e *emulated) rehash(st state) error {
	dir := filepath.Join(e.root, e.layout.links)
	old, err := filepath.Glob(filepath.Join(dir, "????????.0"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	for _, f := range slices.Concat(st.foreign, slices.Collect(maps.Values(st.own))) {
		for fp := range f.certs {
			if err := os.Symlink(filepath.Base(f.path), filepath.Join(dir, fp[:8]+".0")); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads the bundle.
func (e *emulated) read() []byte {
	e.t.Helper()
	content, err := os.ReadFile(filepath.Join(e.root, e.layout.bundles[0]))
	if err != nil {
		e.t.Fatal(err)
	}
	return content
}

// spoil writes another bundle, if it shall.
func (e *emulated) spoil(shall bool, content []byte) {
	e.t.Helper()
	if !shall {
		return
	}
	if err := os.WriteFile(filepath.Join(e.root, e.layout.bundles[0]), content, 0o644); err != nil {
		e.t.Fatal(err)
	}
}

// bundle are the fingerprints in the bundle.
func (e *emulated) bundle() map[string]int {
	e.t.Helper()
	certs, _ := anchor.Fingerprints(e.read())
	return certs
}

// bring brings a store to the anchors.
func (e *emulated) bring(s *Store, anchors ...anchor.Anchor) Plan {
	e.t.Helper()
	p, err := s.Plan(anchors)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := s.Apply(e.t.Context(), p, anchors); err != nil {
		e.t.Fatal(err)
	}
	e.quiet(s, anchors...)
	return p
}

// quiet checks that nothing is left to do, and that a new agent finds the same.
func (e *emulated) quiet(s *Store, anchors ...anchor.Anchor) {
	e.t.Helper()
	for _, s := range []*Store{s, e.open()} {
		if p, err := s.Plan(anchors); err != nil || !p.Empty() {
			e.t.Errorf("there is still something to do: %+v, %v", p, err)
		}
	}
}

func count(anchors ...anchor.Anchor) map[string]int {
	m := map[string]int{}
	for _, a := range anchors {
		m[a.Fingerprint]++
	}
	return m
}

// TestEmulated goes through the life of a store in each layout. The distributions
// are emulated: their directories and the calls of their tools are real, the tools
// are not.
func TestEmulated(t *testing.T) {
	for _, tt := range []struct{ name, id, add, remove string }{
		{"Debian", "debian", "/usr/sbin/update-ca-certificates", "/usr/sbin/update-ca-certificates --fresh"},
		{"Alpine", "alpine", "/usr/sbin/update-ca-certificates", "/usr/sbin/update-ca-certificates"},
		{"RHEL", "rhel", "/usr/sbin/update-ca-trust extract", "/usr/sbin/update-ca-trust extract"},
		{"SUSE", "sles", "/usr/sbin/update-ca-certificates", "/usr/sbin/update-ca-certificates --fresh"},
		{"Arch", "arch", "/usr/sbin/trust extract-compat", "/usr/sbin/trust extract-compat"},
		{"Flatcar", "flatcar", "/usr/sbin/update-ca-certificates", "/usr/sbin/update-ca-certificates"},
		{"Garden Linux", "gardenlinux", "/usr/sbin/update-ca-certificates --localcertsdir /var/lib/ca-certificates-local",
			"/usr/sbin/update-ca-certificates --fresh --localcertsdir /var/lib/ca-certificates-local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dist, theirs, a, b := newAnchor(t, "dist"), newAnchor(t, "theirs"), newAnchor(t, "a"), newAnchor(t, "b")
			e := emulate(t, tt.name, tt.id, dist)
			s := e.open()
			e.quiet(s)
			put(t, e.root, map[string]string{e.layout.anchors + "/theirs" + e.layout.suffix: string(theirs.PEM())})
			if err := e.run(t.Context(), "", []string{"theirs"}); err != nil {
				t.Fatal(err)
			}
			before := readTree(t, e.root)

			e.bring(s, sorted(a, b, theirs)...)
			if diff := cmp.Diff(count(dist, theirs, a, b), e.bundle()); diff != "" {
				t.Errorf("the bundle after adding (-want +got):\n%s", diff)
			}
			got := readTree(t, e.root)
			for _, an := range []anchor.Anchor{a, b} {
				name := strings.TrimPrefix(e.layout.ownPath(an.Fingerprint), "/")
				if got[name] != string(an.PEM()) {
					t.Errorf("%s is %q", name, got[name])
				}
			}
			e.bring(s, b)
			e.bring(s)
			if diff := cmp.Diff([]string{"theirs", tt.add, tt.remove, tt.remove}, e.calls); diff != "" {
				t.Errorf("calls of the tool (-want +got):\n%s", diff)
			}
			after := readTree(t, e.root)
			delete(after, strings.TrimPrefix(storeLock, "/"))
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("all other files (-before +after):\n%s", diff)
			}

			// It ends at each step, and another agent goes on.
			for _, shall := range [][]anchor.Anchor{sorted(a, b), {b}, nil} {
				e.killed(shall)
				if diff := cmp.Diff(count(append(shall, dist, theirs)...), e.bundle()); diff != "" {
					t.Errorf("the bundle (-want +got):\n%s", diff)
				}
			}
		})
	}
}

var errKilled = errors.New("killed")

// killed applies, ends at the first step, then at the second, and so on, until all
// steps were made. Each time it is a new agent that knows nothing.
func (e *emulated) killed(anchors []anchor.Anchor) {
	e.t.Helper()
	defer func() { e.step = nil; e.host.OnStep(nil) }()
	steps := 0
	for n := 1; ; n++ {
		left := n
		e.step = func(string) {
			if left--; left == 0 {
				steps++
				panic(errKilled)
			}
		}
		e.host.OnStep(e.step)
		s := e.open()
		ended := func() (ended bool) {
			defer func() {
				if r := recover(); r != nil && r != any(errKilled) {
					panic(r)
				} else if r != nil {
					ended = true
				}
			}()
			p, err := s.Plan(anchors)
			if err == nil {
				err = s.Apply(e.t.Context(), p, anchors)
			}
			if err != nil {
				e.t.Error(err)
			}
			return false
		}()
		for name, content := range readTree(e.t, filepath.Join(e.root, e.layout.anchors)) {
			fp, ours := strings.CutPrefix(name, "nodestead-")
			if ours && count(anchors...)[strings.TrimSuffix(fp, e.layout.suffix)] > 0 && scan([]byte(content), false).certs == nil {
				e.t.Errorf("half a file: %s", name)
			}
		}
		if !ended {
			e.quiet(s, anchors...)
			if steps < 2 {
				e.t.Errorf("only %d steps", steps)
			}
			return
		}
	}
}

// TestRepair has somebody spoil the bundle after a run of the tool.
func TestRepair(t *testing.T) {
	for _, tt := range []struct {
		name, id string
		harm     func(e *emulated, run int)
		calls    int
		fails    string // part of the error
		stuck    bool   // the next plan says that it was in vain
	}{
		{name: "Debian", id: "debian", calls: 1},
		{name: "Debian", id: "debian", calls: 2, harm: func(e *emulated, run int) { e.spoil(run < 2, nil) }},
		{name: "Debian", id: "debian", calls: 3, harm: func(e *emulated, run int) { e.spoil(run < 3, append(e.read(), e.read()...)) }},
		{name: "Debian", id: "debian", calls: 4, harm: func(e *emulated, _ int) { e.spoil(true, nil) }, fails: "the bundle lacks an anchor", stuck: true},
		{name: "RHEL", id: "rhel", calls: 2, harm: func(e *emulated, run int) { e.spoil(run < 2, nil) }},
		{name: "RHEL", id: "rhel", calls: 4, harm: func(e *emulated, _ int) { e.spoil(true, nil) }, fails: "the bundle lacks an anchor", stuck: true},
		// It is gone twice in the same way: nobody disturbs.
		{name: "RHEL", id: "rhel", calls: 2, harm: func(e *emulated, _ int) { e.spoil(true, e.read()[len(e.base):]) },
			fails: "the bundle has lost certificates of others: 1"},
	} {
		t.Run(fmt.Sprint(tt.name, tt.calls, tt.fails), func(t *testing.T) {
			dist, a := newAnchor(t, "dist"), newAnchor(t, "a")
			e := emulate(t, tt.name, tt.id, dist)
			if tt.harm != nil {
				e.harm = func(run int) { tt.harm(e, run) }
			}
			s := e.open()
			p, err := s.Plan([]anchor.Anchor{a})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Apply(t.Context(), p, []anchor.Anchor{a})
			if got := fmt.Sprint(err); (err != nil) != (tt.fails != "") || !strings.Contains(got, tt.fails) {
				t.Errorf("the error is %v", err)
			}
			if len(e.calls) != tt.calls {
				t.Errorf("the tool has run %d times", len(e.calls))
			}
			p, err = s.Plan([]anchor.Anchor{a})
			if !p.Empty() || (err != nil) != tt.stuck || tt.stuck != slices.Contains(reasons(p), "tool_did_not_help") {
				t.Errorf("the next plan: %+v, %v", p, err)
			}
			if !tt.stuck {
				return
			}
			// When something has changed, it is tried again.
			e.harm = nil
			e.spoil(true, []byte("\n"))
			e.bring(s, a)
		})
	}
}
