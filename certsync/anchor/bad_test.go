package anchor

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// badFile is the content of a file of which nothing may be taken.
type badFile struct {
	name    string
	content string
	want    []Reason
}

func allBad(t testing.TB) []badFile {
	root := newRoot(t, "in bad company")
	return slices.Concat(keyFiles(t, root), badForms(t, root), badCertificates(t))
}

// Each bad file is refused with its own reason. Nothing of it is taken, what was
// there before stays, and a good file beside it is taken all the same, except
// beside a public bundle.
func TestBadFiles(t *testing.T) {
	good, beside := newRoot(t, "good"), newRoot(t, "beside")
	for _, c := range allBad(t) {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := Config{Dirs: []string{dir}, Registries: []string{"registry.test:5000"}, Now: at(noon)}
			write(t, dir, "ca.crt", c.content)
			fresh := Read(cfg, nil)
			if len(fresh.Anchors) > 0 || len(fresh.Memory[dir]) > 0 {
				t.Errorf("taken: %v, remembered: %v", fresh.Anchors, fresh.Memory)
			}
			if diff := cmp.Diff(c.want, reasons(fresh.Refused)); diff != "" {
				t.Errorf("reasons (-want +got):\n%s%v", diff, fresh.Refused)
			}
			broken := NoAnchor
			if c.want[0] == TooMany {
				broken = TooMany
			}
			if diff := cmp.Diff([]Reason{broken}, reasons(fresh.Broken)); diff != "" {
				t.Errorf("broken (-want +got):\n%s", diff)
			}

			write(t, dir, "ca.crt", certPEM(good))
			first := Read(cfg, nil)
			write(t, dir, "ca.crt", c.content)
			then := Read(cfg, first.Memory)
			if diff := cmp.Diff(sorted(good), fingerprints(then.Anchors)); diff != "" {
				t.Errorf("after a good one (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(first.Memory, then.Memory); diff != "" {
				t.Errorf("memory (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(c.want, reasons(then.Refused)); diff != "" {
				t.Errorf("reasons after a good one (-want +got):\n%s", diff)
			}

			write(t, dir, "other.crt", certPEM(beside))
			both := Read(cfg, first.Memory)
			want := sorted(good, beside)
			if broken == TooMany {
				want = sorted(good)
			}
			if diff := cmp.Diff(want, fingerprints(both.Anchors)); diff != "" {
				t.Errorf("beside a good one (-want +got):\n%s", diff)
			}
			for _, r := range []Reading{fresh, then, both} {
				noContent(t, c.content, r)
			}
		})
	}
}

// noContent checks that no words of the content are repeated.
func noContent(t *testing.T, content string, r Reading) {
	t.Helper()
	for _, said := range slices.Concat(r.Refused, r.Warnings, r.Broken) {
		for _, run := range strings.FieldsFunc(content, notBase64) {
			if len(run) >= 16 && strings.Contains(said.Detail, run) {
				t.Errorf("%q has %q of the content", said.Detail, run)
			}
		}
		if len(said.Detail) > 200 {
			t.Errorf("%q has %d bytes", said.Detail, len(said.Detail))
		}
	}
}

// Each entry that is no plain file is refused with its own reason, and nobody
// waits for it.
func TestBadEntries(t *testing.T) {
	root := newRoot(t, "elsewhere")
	outside := t.TempDir()
	write(t, outside, "ca.crt", certPEM(root))
	link := func(to string) func(string) error { return func(path string) error { return os.Symlink(to, path) } }
	for _, c := range []struct {
		name  string
		entry string // ca.crt if empty
		make  func(path string) error
		want  []Reason
	}{
		{name: "a FIFO", make: func(path string) error { return unix.Mkfifo(path, 0o600) }, want: []Reason{NotRegular}},
		{name: "a socket", make: func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		}, want: []Reason{NotRegular}},
		{name: "a directory", make: func(path string) error {
			return os.Mkdir(path, 0o700)
		}, want: []Reason{NotRegular}},
		{name: "a link to a directory", make: link("."), want: []Reason{NotRegular}},
		{name: "a dangling link", make: link("nowhere"), want: []Reason{DanglingLink}},
		{name: "a link to a file's child", make: func(path string) error {
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".file"), nil, 0o600); err != nil {
				return err
			}
			return os.Symlink(".file/child", path)
		}, want: []Reason{DanglingLink}},
		{name: "a link to itself", make: link("ca.crt"), want: []Reason{Unreadable}},
		{name: "an absolute link", make: link(filepath.Join(outside, "ca.crt")), want: []Reason{Outside}},
		{name: "a relative link that leaves", make: link("../" + filepath.Base(outside) + "/ca.crt"), want: []Reason{Outside}},
		{name: "a link to a device", make: link("/dev/zero"), want: []Reason{Outside}},
		{name: "a link by way of a directory that leaves", make: func(path string) error {
			if err := os.Symlink(outside, filepath.Join(filepath.Dir(path), "..data")); err != nil {
				return err
			}
			return os.Symlink("..data/ca.crt", path)
		}, want: []Reason{Outside}},
		{name: "a name with a line end", entry: "ca\n.crt", make: file600(certPEM(root)), want: []Reason{BadName}},
		{name: "a name that is no UTF-8", entry: "ca\xff.crt", make: file600(certPEM(root)), want: []Reason{BadName}},
		{name: "a hidden file", entry: ".ca.crt", make: file600(certPEM(root))},
		{name: "a file hidden as the kubelet does", entry: "..ca.crt", make: file600(certPEM(root))},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			entry := c.entry
			if entry == "" {
				entry = "ca.crt"
			}
			if err := c.make(filepath.Join(dir, entry)); err != nil {
				t.Fatal(err)
			}
			beside := newRoot(t, "beside")
			write(t, dir, "other.crt", certPEM(beside))
			r := Read(Config{Dirs: []string{dir}, Now: at(noon)}, nil)
			if diff := cmp.Diff(sorted(beside), fingerprints(r.Anchors)); diff != "" {
				t.Errorf("taken (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.want, reasons(r.Refused)); diff != "" {
				t.Errorf("reasons (-want +got):\n%s%v", diff, r.Refused)
			}
			for _, refused := range r.Refused {
				if strings.Contains(refused.Source, "\n") || !utf8.ValidString(refused.Source) {
					t.Errorf("a name as it is: %q", refused.Source)
				}
			}
		})
	}
}

// A file that becomes a FIFO just before it is opened makes nobody wait.
func TestOpenFIFO(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "ca.crt"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := must(os.OpenRoot(dir))(t)
	defer root.Close()
	opened := make(chan error, 1)
	go func() {
		f, err := openRegular(root, "ca.crt")
		if err == nil {
			err = errors.Join(errors.New("it was opened"), f.Close())
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if !errors.Is(err, errNotRegular) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it waits for the FIFO's other end")
	}
}

func file600(content string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(content), 0o600) }
}

// A device in the directory itself needs root to be made.
func TestDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mknod needs root")
	}
	dir := t.TempDir()
	if err := unix.Mknod(filepath.Join(dir, "ca.crt"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil { // /dev/zero
		t.Fatal(err)
	}
	r := Read(Config{Dirs: []string{dir}, Now: at(noon)}, nil)
	if diff := cmp.Diff([]Reason{NotRegular}, reasons(r.Refused)); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

// Each bad directory is broken with its own reason, and what it gave stays.
func TestBadDirectories(t *testing.T) {
	good := newRoot(t, "good")
	parent := t.TempDir()
	write(t, parent, "file", certPEM(good))
	for _, c := range []struct {
		name string
		make func(dir string) error
		want Reason
	}{
		{"missing", func(string) error { return nil }, Missing},
		{"a file", file600(certPEM(good)), NotDirectory},
		{"a dangling link", func(dir string) error { return os.Symlink("nowhere", dir) }, Missing},
		{"a link to itself", func(dir string) error { return os.Symlink(filepath.Base(dir), dir) }, Unreadable},
		{"empty", func(dir string) error { return os.Mkdir(dir, 0o700) }, Empty},
		{"only hidden files", func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, "..2026_03_01"), 0o700)
		}, Empty},
		{"too many files", func(dir string) error {
			err := os.Mkdir(dir, 0o700)
			for i := 0; i <= maxFiles && err == nil; i++ {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(certPEM(good)), 0o600)
			}
			return err
		}, TooManyFiles},
		{"too many hidden files", func(dir string) error {
			err := os.Mkdir(dir, 0o700)
			for i := 0; i < maxEntries && err == nil; i++ {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprint(".", i)), nil, 0o600)
			}
			return err
		}, TooManyFiles},
		{"too many bytes in all, the last file is not read", func(dir string) error {
			err := os.Mkdir(dir, 0o700)
			for i := 0; i < maxSource/maxFile && err == nil; i++ {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte("\n"), maxFile), 0o600)
			}
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "last"), []byte(certPEM(good)), 0o600))
		}, NoAnchor},
		{"too many certificates in all", func(dir string) error {
			err := os.Mkdir(dir, 0o700)
			for i := 0; i <= maxCerts && err == nil; i++ {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(certPEM(newRoot(t, "crowd"))), 0o600)
			}
			return err
		}, TooMany},
		{"too many certificates, most of them servers'", func(dir string) error {
			key := newKey(t)
			err := os.Mkdir(dir, 0o700)
			for i := 0; i < maxCerts && err == nil; i++ {
				leaf := certPEM(selfSign(t, "leaf", key, func(c *x509.Certificate) { c.IsCA = false }))
				err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(leaf), 0o600)
			}
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "last"), []byte(certPEM(newRoot(t, "one"))), 0o600))
		}, TooMany},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(parent, "source "+c.name)
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			for _, last := range []Memory{nil, {dir: {"ca.crt": {certPEM(good)}}}} {
				r := Read(Config{Dirs: []string{dir}, Now: at(noon)}, last)
				if diff := cmp.Diff([]Refusal{{Source: dir, Reason: c.want}}, r.Broken, ignoreDetail); diff != "" {
					t.Errorf("broken (-want +got):\n%s", diff)
				}
				var want []string
				if last != nil {
					want = sorted(good)
				}
				if diff := cmp.Diff(want, fingerprints(r.Anchors)); diff != "" {
					t.Errorf("anchors (-want +got):\n%s", diff)
				}
			}
		})
	}
}

var ignoreDetail = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Detail" }, cmp.Ignore())

// Every reason is one that a test has seen: none is left over, none is missing
// in the list.
func TestReasons(t *testing.T) {
	refusals, warnings := Reasons()
	seen := map[Reason]bool{ // by tests of their own
		Missing: true, NotDirectory: true, Unreadable: true, NoAnchor: true, TooManyFiles: true, BadName: true, NotRegular: true,
		DanglingLink: true, Outside: true, NotAllowed: true,
	}
	for _, c := range allBad(t) {
		for _, r := range c.want {
			seen[r] = true
		}
	}
	var got []Reason
	for r := range seen {
		got = append(got, r)
	}
	slices.Sort(got)
	if diff := cmp.Diff(refusals, got); diff != "" {
		t.Errorf("(-listed +tested):\n%s", diff)
	}
	if slices.ContainsFunc(warnings, func(r Reason) bool { return seen[r] }) {
		t.Errorf("a warning is a refusal as well: %v", warnings)
	}
}
