package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestRead reads through the links that distributions have, and through those
// that lead out.
func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plant(t, dir, "outside/secret")
	root := filepath.Join(dir, "root")
	plant(t, root,
		"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"etc/pki/tls/certs/ca-bundle.crt -> /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"etc/ssl/certs -> ../pki/tls/certs",
		"run/lock/x",
		"var/run -> /run",
		"etc/up -> ../../../../run/lock/x",
		"etc/out -> "+dir+"/outside/secret",
		"etc/relative-out -> ../../outside/secret",
		"etc/loop -> loop",
		"etc/slash -> /run/lock/x/",
		"etc/fifo|",
		"etc/empty/",
	)
	h := open(t, root)
	for _, test := range []struct{ name, want, err string }{
		{name: "/run/lock/x", want: "content of run/lock/x"},
		{name: "run/lock/x", want: "content of run/lock/x"},
		{name: "/../run/./lock//x", want: "content of run/lock/x"},
		{name: "/etc/ssl/certs/ca-bundle.crt", want: "content of etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"},
		{name: "/var/run/lock/x", want: "content of run/lock/x"},
		{name: "/etc/up", want: "content of run/lock/x"},
		{name: "/etc/out", err: "no such file or directory"},
		{name: "/etc/relative-out", err: "no such file or directory"},
		{name: "/etc/loop", err: "too many levels of symbolic links"},
		{name: "/etc/slash", err: "not a directory"},
		{name: "/run/lock/x/y", err: "not a directory"},
		{name: "/etc/fifo", err: "not a regular file"},
		{name: "/etc/empty", err: "not a regular file"},
		{name: "/", err: "not a regular file"},
		{name: "/etc/none", err: "no such file or directory"},
	} {
		got, err := h.ReadFile(test.name, 100)
		if !says(err, test.err) || string(got) != test.want {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), test.name) {
			t.Errorf("%s is not in %q", test.name, err)
		}
	}
	const x = "content of run/lock/x"
	if got, err := h.ReadFile("/run/lock/x", int64(len(x))); err != nil || string(got) != x {
		t.Errorf("at the limit: %q, %v", got, err)
	}
	if got, err := h.ReadFile("/run/lock/x", int64(len(x))-1); !says(err, "larger than 20 bytes") {
		t.Errorf("beyond the limit: %q, %v", got, err)
	}
	if _, err := h.ReadFile("/etc/none", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if fi, err := h.Lstat("/var/run"); err != nil || fi.Mode().Type() != fs.ModeSymlink {
		t.Errorf("lstat of a link: %v, %v", fi, err)
	}
	if got, want := h.Socket("/var/run/lock/x"), root+"/run/lock/x"; got != want {
		t.Errorf("a socket behind an absolute link is %s, want %s", got, want)
	}
	if got, want := h.Socket("/run/none"), root+"/run/none"; got != want {
		t.Errorf("a missing socket is %s, want %s", got, want)
	}
	for _, name := range []string{"/etc/none", "/run/lock/x/y"} {
		if fi, err := h.Stat(name); err == nil {
			t.Errorf("stat %s: %v", name, fi)
		}
		if fi, err := h.Lstat(name); err == nil {
			t.Errorf("lstat %s: %v", name, fi)
		}
		if all, err := h.ReadDir(name); err == nil {
			t.Errorf("list %s: %v", name, all)
		}
	}
	entries, err := h.ReadDir("/var/run/..")
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"run"}, names); diff != "" {
		t.Errorf("/var, which is the cleaned path (-want +got):\n%s", diff)
	}
}

// says tells whether an error has the text; none is wanted if that is empty.
func says(err error, text string) bool {
	if err == nil || text == "" {
		return err == nil && text == ""
	}
	return strings.Contains(err.Error(), text)
}

// TestMaxLinks follows as many links as the kernel does.
func TestMaxLinks(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "0")
	for i := range maxLinks + 1 {
		plant(t, root, fmt.Sprintf("%d -> %d", i+1, i))
	}
	h := open(t, root)
	for name, want := range map[string]string{"40": "", "41": "too many levels of symbolic links"} {
		if _, err := h.ReadFile(name, 100); !says(err, want) {
			t.Errorf("%s links: %v", name, err)
		}
	}
}

// FuzzResolve compares what a name leads to with what the kernel finds when it
// resolves in a root (openat2(2), Linux 5.6, which nodes need not have).
func FuzzResolve(f *testing.F) {
	f.Add("/a/b", "../f", "/l", "a/b/l/l")
	f.Add("a", "/", "../../../../../outside", "l/l/b/l")
	f.Add("l", "..", ".", "l")
	f.Add("a/f/", "b/./l", "../../a//l", "a/l")
	f.Add("a/f/..", "b/..", "none/..", "a/b/l/f")
	f.Add("/a/l", "/a/b/l", "/l", "l")
	f.Add("a/", "./", "/./", "l/b/l/l")
	f.Fuzz(func(t *testing.T, inRoot, inA, inB, name string) {
		dir := t.TempDir()
		plant(t, dir, "outside/f", "f")
		root := filepath.Join(dir, "root")
		plant(t, root, "a/b/f", "a/f", "f")
		for at, target := range map[string]string{"l": inRoot, "a/l": inA, "a/b/l": inB} {
			if err := os.Symlink(target, filepath.Join(root, at)); err != nil {
				t.Skip("no target of a link")
			}
		}
		if strings.Contains(name, "\x00") {
			t.Skip("no name")
		}
		h := open(t, root)
		for _, follow := range []bool{true, false} {
			stat := h.Lstat
			how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_IN_ROOT}
			if follow {
				stat = h.Stat
				how.Flags &^= unix.O_NOFOLLOW
			}
			want, wantErr := inode(root, path.Clean("/"+name), how)
			fi, err := stat(name)
			if !errors.Is(err, wantErr) {
				t.Fatalf("%q, follow %v: %v, the kernel says %v", name, follow, err, wantErr)
			}
			if err == nil && fi.Sys().(*syscall.Stat_t).Ino != want {
				t.Errorf("%q, follow %v: found %v, the kernel finds another file", name, follow, fi)
			}
		}
	})
}

func inode(root, name string, how unix.OpenHow) (uint64, error) {
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(rootFD) }()
	fd, err := unix.Openat2(rootFD, name, &how)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err
}
