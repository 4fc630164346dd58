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
	// Each byte is a part; "" is a slash more, at the begin, in between or at the end.
	vocabulary := []string{"a", "b", "f", "l", "..", ".", "", "none", "outside"}
	spell := func(letters []byte) string {
		var parts []string
		for _, letter := range letters {
			parts = append(parts, vocabulary[int(letter)%len(vocabulary)])
		}
		return strings.Join(parts, "/")
	}
	const a, b, file, l, up, here, slash, none, outside = 0, 1, 2, 3, 4, 5, 6, 7, 8
	f.Add([]byte{slash, a, b}, []byte{up, file}, []byte{slash, l}, []byte{a, b, l, l})
	f.Add([]byte{a}, []byte{slash, slash}, []byte{up, up, up, up, outside, file}, []byte{l, l, b, l})
	f.Add([]byte{up}, []byte{here}, []byte{up, outside}, []byte{l})
	f.Add([]byte{a, file, slash}, []byte{b, here, l}, []byte{up, up, a, slash, l}, []byte{a, l})
	f.Add([]byte{a, file, up}, []byte{none, up}, []byte{b, up}, []byte{a, l, file})
	f.Add([]byte{slash, a, l}, []byte{slash, a, b, l}, []byte{slash, l}, []byte{l})
	f.Add([]byte{a, slash}, []byte{file, here}, []byte{slash, here}, []byte{l, l})

	dir := f.TempDir()
	root := filepath.Join(dir, "root")
	for _, name := range []string{"outside/f", "f", "root/a/b/f", "root/a/f", "root/f"} {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(full, nil, 0o644); err != nil {
			f.Fatal(err)
		}
	}
	h, err := Open(root)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = h.Close() })
	f.Fuzz(func(t *testing.T, inRoot, inA, inB, nameLetters []byte) {
		if max(len(inRoot), len(inA), len(inB), len(nameLetters)) > 40 {
			return // longer ones tell nothing new, and the kernel refuses very long ones
		}
		for at, letters := range map[string][]byte{"l": inRoot, "a/l": inA, "a/b/l": inB} {
			link := filepath.Join(root, at)
			if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if target := spell(letters); target != "" {
				must(t, os.Symlink(target, link))
			}
		}
		name := spell(nameLetters)
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
	for errors.Is(err, unix.EAGAIN) { // ".." while anything on the machine is renamed
		fd, err = unix.Openat2(rootFD, name, &how)
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err
}
