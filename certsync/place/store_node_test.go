package place

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

const (
	localDir = "usr/local/share/ca-certificates"
	debTool  = "/usr/sbin/update-ca-certificates"
)

// node is a booted Debian with its real tools.
type node struct {
	*lab.Box
	store *Store
}

func (n *node) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// open opens the node as another agent would.
func (n *node) open(t *testing.T) *Store {
	t.Helper()
	h, err := host.Open(n.Root())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := FindStore(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) plan(t *testing.T, s *Store, anchors []anchor.Anchor) Plan {
	t.Helper()
	p, err := s.Plan(anchors)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sync brings the store to the anchors, and checks that all is well then.
func (n *node) sync(t *testing.T, s *Store, anchors ...anchor.Anchor) Plan {
	t.Helper()
	p := n.plan(t, s, anchors)
	if p.Empty() {
		t.Fatalf("nothing is planned: %+v", p)
	}
	if err := s.Apply(t.Context(), p, anchors); err != nil {
		t.Fatal(err)
	}
	n.check(t, anchors...)
	if after := n.plan(t, s, anchors); !after.Empty() {
		t.Errorf("after it there is still something to do: %s: %+v", after.Why, after)
	}
	return p
}

// check proves, by other means than the product's, that the bundle is exactly
// what Debian's tool makes of the node's files, and that OpenSSL finds the anchors
// by their hash links, and no other of ours.
func (n *node) check(t *testing.T, anchors ...anchor.Anchor) {
	t.Helper()
	want := map[string]int{}
	add := func(name string) {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		certs, _ := anchor.Fingerprints(content)
		for fp, k := range certs {
			want[fp] += k
		}
	}
	conf, err := os.ReadFile(filepath.Join(n.Root(), "etc/ca-certificates.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(conf)) {
		if line = strings.TrimSpace(line); line != "" && !strings.ContainsAny(line[:1], "#!") {
			add(filepath.Join(n.Root(), "usr/share/ca-certificates", line))
		}
	}
	err = filepath.WalkDir(filepath.Join(n.Root(), localDir), func(name string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.HasSuffix(name, ".crt") {
			add(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range anchors {
		if want[a.Fingerprint] == 0 {
			t.Errorf("no file gives anchor %s", a.Cert.Subject)
		}
	}
	bundle, err := os.ReadFile(filepath.Join(n.Root(), debianBundle))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := anchor.Fingerprints(bundle)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the bundle (-want +got):\n%s", diff)
	}
	n.checkLinks(t, anchors)
}

func (n *node) checkLinks(t *testing.T, anchors []anchor.Anchor) {
	t.Helper()
	out, err := n.Run(t.Context(), "find", "/etc/ssl/certs", "-xtype", "l")
	if err != nil || out != "" {
		t.Errorf("links to nothing: %s (%v)", out, err)
	}
	if _, err := os.Lstat(filepath.Join(n.Root(), debianBundle+".new")); err == nil {
		t.Errorf("%s.new is still there", debianBundle)
	}
	for _, a := range anchors {
		if err := n.verify(t, a); err != nil {
			t.Errorf("OpenSSL does not find %s: %v", a.Cert.Subject, err)
		}
	}
}

// verify looks for an anchor as OpenSSL does: behind the links that are named for
// the hash of its subject, from .0 on without a gap.
func (n *node) verify(t *testing.T, a anchor.Anchor) error {
	t.Helper()
	put(t, n.Root(), map[string]string{"tmp/verify.pem": string(a.PEM())})
	hash := n.run(t, "openssl", "x509", "-noout", "-subject_hash", "-in", "/tmp/verify.pem")
	for i := 0; ; i++ {
		content, err := n.Run(t.Context(), "cat", fmt.Sprintf("/etc/ssl/certs/%s.%d", strings.TrimSpace(hash), i))
		if err != nil || content == string(a.PEM()) {
			return err
		}
	}
}

func (n *node) remove(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(n.Root(), name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStoreOnNode tests the store with Debian's real tool under a real systemd.
func TestStoreOnNode(t *testing.T) {
	l := lab.ForTest(t)
	b, err := l.Boot(t.Context(), lab.BoxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Box: b}
	n.store = n.open(t)
	t.Run("install", func(t *testing.T) { testInstall(t, n) })
	// With fewer certificates each run of the tool is shorter.
	n.run(t, "sh", "-c", `sed -i '50,$s/^[a-z]/!&/' /etc/ca-certificates.conf && update-ca-certificates --fresh`)
	t.Run("rotate", func(t *testing.T) { testRotate(t, n) })
	t.Run("drift", func(t *testing.T) { testDrift(t, n) })
	t.Run("foreign", func(t *testing.T) { testForeign(t, n) })
	t.Run("stale", func(t *testing.T) { testStale(t, n) })
	t.Run("two agents", func(t *testing.T) { testTwoAgents(t, n) })
	t.Run("another run", func(t *testing.T) { testAnotherRun(t, n) })
	t.Run("containers", func(t *testing.T) { testContainers(t, n) })
	t.Run("read-only", func(t *testing.T) { testReadOnly(t, n) })
	t.Run("RHEL", func(t *testing.T) { testRHEL(t, n) })
}

func testInstall(t *testing.T, n *node) {
	a, b := newAnchor(t, "first"), newAnchor(t, "second")
	if n.store.Layout() != "Debian" {
		t.Fatalf("the layout is %s", n.store.Layout())
	}
	leaf := newAnchor(t, "leaf", lab.Leaf("registry.example.org"))
	anchors := sorted(a, b, leaf)
	if p := n.plan(t, n.store, nil); !p.Empty() {
		t.Errorf("without anchors, this is planned: %+v", p)
	}
	want := Plan{Target: "store", Tool: []string{debTool}, Why: "2 anchors are new"}
	for _, an := range sorted(a, b) {
		want.Changes = append(want.Changes, Change{
			Path: path.Join("/", localDir, "nodestead-"+an.Fingerprint+".crt"), Content: an.PEM(), Fingerprints: []string{an.Fingerprint},
		})
		want.Missing = append(want.Missing, an.Fingerprint)
	}
	p := n.plan(t, n.store, anchors)
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	var tool time.Duration
	run := n.store.run
	n.store.run = func(ctx context.Context, unit string, argv []string) error {
		start := time.Now()
		defer func() { tool += time.Since(start) }()
		return run(ctx, unit, argv)
	}
	start := time.Now()
	if err := n.store.Apply(t.Context(), p, anchors); err != nil {
		t.Fatal(err)
	}
	t.Logf("applied in %v, without the tool %v", time.Since(start), time.Since(start)-tool)
	n.check(t, a, b)
	bundle, err := os.Stat(filepath.Join(n.Root(), debianBundle))
	if err != nil {
		t.Fatal(err)
	}
	// plans gives what each of the plans without a change takes, of time at least and of memory.
	plans := func(s *Store, times int) (best time.Duration, memory int64) {
		t.Helper()
		best = time.Hour
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range times {
			start := time.Now()
			if p := n.plan(t, s, anchors); !p.Empty() {
				t.Fatalf("there is still something to do: %+v", p)
			}
			best = min(best, time.Since(start))
		}
		runtime.ReadMemStats(&after)
		return best, int64(after.TotalAlloc-before.TotalAlloc) / int64(times)
	}
	best, memory := plans(n.store, 50)
	t.Logf("a plan without a change takes %v and %d bytes", best, memory)
	if memory > bundle.Size()/4 {
		t.Errorf("a plan without a change takes %d bytes, as if it read the bundle of %d", memory, bundle.Size())
	}
	// A new agent looks at all of it, and finds the same.
	best, memory = plans(n.open(t), 1)
	t.Logf("a plan by a new agent takes %v and %d bytes", best, memory)
	if memory < bundle.Size() {
		t.Errorf("a new agent takes %d bytes, so that this proves nothing", memory)
	}
	n.sync(t, n.store) // all of it goes
}

func testRotate(t *testing.T, n *node) {
	old, next := newAnchor(t, "same name"), newAnchor(t, "same name")
	n.sync(t, n.store, old)
	n.sync(t, n.store, sorted(old, next)...)
	if p := n.sync(t, n.store, next); !slices.Contains(p.Tool, "--fresh") || p.Drift {
		t.Errorf("the removal plans %v, drift %v", p.Tool, p.Drift)
	}
	if err := n.verify(t, old); err == nil {
		t.Error("OpenSSL still finds the old one")
	}
	n.sync(t, n.store)
	if err := n.verify(t, next); err == nil {
		t.Error("OpenSSL still finds the new one")
	}
}

func testDrift(t *testing.T, n *node) {
	a, b := newAnchor(t, "a"), newAnchor(t, "b")
	anchors := sorted(a, b)
	n.sync(t, n.store, anchors...)
	own := filepath.Join(localDir, "nodestead-"+a.Fingerprint+".crt")
	for _, tt := range []struct {
		name string
		harm func(t *testing.T)
	}{
		{"file removed", func(t *testing.T) { n.remove(t, own) }},
		{"file removed, and the tool was run", func(t *testing.T) { n.remove(t, own); n.run(t, debTool) }},
		{"other content", func(t *testing.T) { put(t, n.Root(), map[string]string{own: "junk\n"}) }},
		{"other mode", func(t *testing.T) { n.run(t, "chmod", "600", "/"+own) }},
		{"a link in its place", func(t *testing.T) {
			n.remove(t, own)
			put(t, n.Root(), map[string]string{own: "->/etc/passwd"})
		}},
		{"bundle cut", func(t *testing.T) { n.run(t, "truncate", "-s", "1000", debianBundle) }},
		{"bundle removed", func(t *testing.T) { n.remove(t, debianBundle) }},
		{"a hash link to nothing", func(t *testing.T) { n.run(t, "ln", "-s", "nothing.pem", "/etc/ssl/certs/01234567.0") }},
		{"links removed", func(t *testing.T) { n.run(t, "sh", "-c", "find /etc/ssl/certs -type l -lname 'nodestead-*' -delete") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.harm(t)
			if p := n.sync(t, n.store, anchors...); !p.Drift {
				t.Errorf("it does not count as drift: %+v", p)
			}
		})
	}
	n.sync(t, n.store)
}

// testForeign proves that an anchor which somebody else has put there counts, that
// it is added when theirs is gone, and that their files stay as they are.
func testForeign(t *testing.T, n *node) {
	a, other := newAnchor(t, "theirs"), newAnchor(t, "other")
	name := filepath.Join(localDir, "theirs", "ca.crt")
	put(t, n.Root(), map[string]string{name: string(a.PEM())})
	n.run(t, debTool)
	foreign := readTree(t, filepath.Join(n.Root(), localDir))
	if p := n.plan(t, n.store, sorted(a)); !p.Empty() {
		t.Errorf("although it is there, this is planned: %+v", p)
	}
	n.sync(t, n.store, sorted(a, other)...)
	if p := n.sync(t, n.store, a); len(p.Changes) != 1 || p.Changes[0].Content != nil {
		t.Errorf("planned: %+v", p)
	}
	if diff := cmp.Diff(foreign, readTree(t, filepath.Join(n.Root(), localDir))); diff != "" {
		t.Errorf("files of others (-want +got):\n%s", diff)
	}
	if p := n.plan(t, n.store, nil); !p.Empty() {
		t.Errorf("to take all of ours back, this is planned: %+v", p)
	}
	n.remove(t, name)
	n.sync(t, n.store, a)

	// What the tool puts into the bundle, and should not.
	const key = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"
	junk, keyFile := filepath.Join(localDir, "junk.crt"), filepath.Join(localDir, "key.crt")
	put(t, n.Root(), map[string]string{junk: "no certificate\n", keyFile: key})
	both := sorted(a, other)
	p, err := n.store.Plan(both)
	if err == nil || !strings.HasPrefix(err.Error(), "would_publish_key: ") || !strings.Contains(err.Error(), keyFile) || !p.Empty() {
		t.Errorf("with a private key in the way: %v, planned %+v", err, p)
	}
	if err := n.store.Apply(t.Context(), p, both); err == nil {
		t.Error("with a private key in the way, all was applied")
	}
	if strings.Contains(n.run(t, "cat", debianBundle), "PRIVATE KEY") {
		t.Error("the private key was published")
	}
	n.remove(t, keyFile)
	n.sync(t, n.store, both...)
	// Somebody else runs the tool while a key is there.
	put(t, n.Root(), map[string]string{keyFile: key})
	n.run(t, "update-ca-certificates")
	p = n.plan(t, n.store, both)
	if diff := cmp.Diff([]string{"foreign_no_certificate", "foreign_private_key"}, reasons(p)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	n.remove(t, junk, keyFile)
	if p := n.plan(t, n.store, both); len(p.Problems) != 1 || p.Problems[0].Reason != "bundle_private_key" {
		t.Errorf("problems: %+v", p.Problems)
	}
	n.sync(t, n.store)
}

// testStale proves that half a bundle of a killed run does no harm, and costs no
// more than one run.
func testStale(t *testing.T, n *node) {
	a, old := newAnchor(t, "a"), newAnchor(t, "old")
	s := n.open(t)
	ran := counted(s)
	for _, anchors := range [][]anchor.Anchor{{a}, {a}, nil} {
		put(t, n.Root(), map[string]string{debianBundle + ".new": string(old.PEM())})
		n.sync(t, s, anchors...)
		if got := ran.Swap(0); got != 1 {
			t.Errorf("the tool has run %d times", got)
		}
	}
}

// testContainers proves that runs of the tool in containers, which have a root of
// their own, are nobody's concern, and those on the node are.
func testContainers(t *testing.T, n *node) {
	n.run(t, "sh", "-ec", `mkdir -p /run/container && mount -t tmpfs tmpfs /run/container && cd /run/container
		mkdir usr tmp && mount --bind /usr usr && ln -s usr/bin usr/lib usr/lib64 .
		printf '#!/bin/sh\necho $$ >/tmp/pid\nread line </tmp/fifo\n' >tmp/update-ca-certificates
		chmod +x tmp/update-ca-certificates && mkfifo tmp/fifo && cp -a tmp/. /tmp/`)
	for root, want := range map[string]int{"/run/container": 0, "/": 1} {
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := n.Run(t.Context(), "chroot", root, "/tmp/update-ca-certificates"); err != nil && t.Context().Err() == nil {
				t.Logf("%s: %v", root, err) // read has found no line
			}
		})
		err := lab.Until(t.Context(), 10*time.Second, func() error {
			_, err := os.Stat(filepath.Join(n.Root(), root, "tmp/pid"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		pids, err := runs(n.store.h)
		if err != nil || len(pids) != want {
			t.Errorf("%s: runs are %v, %v", root, pids, err)
		}
		n.run(t, "sh", "-c", "true >"+filepath.Join(root, "tmp/fifo"))
		wg.Wait()
	}
	n.run(t, "sh", "-ec", "rm /tmp/pid /tmp/fifo /tmp/update-ca-certificates; umount -R /run/container")
}

// testReadOnly proves that a read-only file system is told from a failure, before
// anything is tried.
func testReadOnly(t *testing.T, n *node) {
	a := newAnchor(t, "a")
	for _, dir := range []string{"/" + localDir, "/etc/ssl/certs"} {
		n.run(t, "sh", "-ec", `mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"`, dir)
		s := n.open(t)
		p, err := s.Plan([]anchor.Anchor{a})
		if err == nil || !p.Empty() || !slices.Contains(reasons(p), "read_only") {
			t.Errorf("%s: plan: %+v, %v", dir, p, err)
		}
		if err := s.Apply(t.Context(), p, []anchor.Anchor{a}); err == nil {
			t.Errorf("%s: it is applied", dir)
		}
		n.run(t, "umount", dir)
	}
	if p := n.plan(t, n.store, nil); !p.Empty() {
		t.Errorf("something was left: %+v", p)
	}
}
