package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A container chooses what is at the path of its resolv.conf.
func TestContainerFile(t *testing.T) {
	const good = "nameserver 10.96.0.10\n"
	link := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	write := func(text string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o644) }
	}
	for name, tc := range map[string]struct {
		make func(path string) error
		want string // "" where it must not be read
	}{
		"a file":                      {write(good), good},
		"a link in the container":     {link("../run/resolv.conf"), "nameserver 10.0.0.1\n"},
		"a link that goes round":      {link("resolv.conf"), ""},
		"a link out of the container": {link("../../secret"), ""},
		"an absolute link":            {link("/etc/passwd"), ""},
		"a link to the host's file":   {link("../out/secret"), ""},
		"nothing":                     {func(string) error { return nil }, ""},
		"a directory":                 {func(path string) error { return os.Mkdir(path, 0o755) }, ""},
		"a FIFO":                      {func(path string) error { return unix.Mkfifo(path, 0o644) }, ""},
		"a socket": {func(path string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}, ""},
		"an immense file":   {func(path string) error { return sparse(path, 1<<40) }, strings.Repeat("\x00", maxSmallFile)},
		"an empty file":     {write(""), ""},
		"its own directory": {link("."), ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "root") //nolint:usetesting // the path of a socket has room for 107 bytes
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			root := filepath.Join(dir, "1/root")
			for _, d := range []string{"etc", "run"} {
				if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, err := range []error{
				write("secret")(filepath.Join(dir, "1/secret")),
				os.Symlink("..", filepath.Join(root, "out")),
				write("nameserver 10.0.0.1\n")(filepath.Join(root, "run/resolv.conf")),
				tc.make(filepath.Join(root, "etc/resolv.conf")),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			read := make(chan struct{})
			go func() {
				defer close(read)
				got, err := procfs(dir).containerFile(1, "etc/resolv.conf")
				if got != tc.want || (err == nil) != (tc.want != "") {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}()
			select {
			case <-read:
			case <-time.After(10 * time.Second):
				t.Fatal("it waits")
			}
		})
	}
}

// A file of procfs says that it has no size; to read some of them waits.
func TestContainerFileOfProcfs(t *testing.T) {
	if text, err := procfs("/proc").containerFile(os.Getpid(), "proc/version"); err == nil {
		t.Errorf("read %q", text)
	}
}

func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Close()
}
