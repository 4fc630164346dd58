package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary do one thing to a root instead: "what root
// n …". It kills itself at the n-th step.
const helperEnv = "NODESTEAD_HOST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		if err := help(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// helper is the test binary as another process, that is killed at its n-th step
// (0: at none). It has no umask that could be relied on.
func helper(t *testing.T, root string, n int, what ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{root, strconv.Itoa(n)}, what...)...)
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.Stderr = os.Stderr
	return cmd
}

func help(args []string) error {
	unix.Umask(0o077)
	h, err := Open(args[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	h.OnStep(func(string) {
		if n--; n == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	return helpWith(h, args[2], args[3:])
}

// killed runs a helper and tells whether it reached the step at which it dies.
func killed(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	err := cmd.Run()
	if err == nil {
		return false
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(interface{ Signaled() bool }).Signaled() == false {
		t.Fatal(err)
	}
	return true
}

func open(t *testing.T, root string) *Host {
	t.Helper()
	h, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needRoot skips tests of other owners and of real nodes.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// plant makes files below root: "dir/", "file", "link -> target", "fifo|", each
// with the mode (octal) that may stand in front of it, and parents.
func plant(t *testing.T, root string, entries ...string) {
	t.Helper()
	for _, entry := range entries {
		mode := int64(-1)
		if first, rest, ok := strings.Cut(entry, " "); ok && first[0] >= '0' && first[0] <= '7' && !strings.HasPrefix(rest, "->") {
			var err error
			mode, err = strconv.ParseInt(first, 8, 64)
			must(t, err)
			entry = rest
		}
		name, target, link := strings.Cut(entry, " -> ")
		full := filepath.Join(root, strings.TrimRight(name, "|"))
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		switch {
		case link:
			must(t, os.Symlink(target, full))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(full, 0o755))
		case strings.HasSuffix(name, "|"):
			must(t, unix.Mkfifo(full, 0o600))
		default:
			must(t, os.WriteFile(full, []byte("content of "+name), 0o644))
		}
		if mode >= 0 {
			must(t, unix.Chmod(full, uint32(mode)))
		}
	}
}

// snapshot is all that is below root: path → mode, owner and content.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	must(t, filepath.WalkDir(root, func(full string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%v %d", fi.Mode(), owner(fi))
		var content []byte
		var target string
		switch {
		case fi.Mode().IsRegular():
			content, err = os.ReadFile(full)
		case fi.Mode().Type() == fs.ModeSymlink:
			target, err = os.Readlink(full)
		}
		all[rel] = strings.TrimSpace(text + " " + string(content) + target)
		return err
	}))
	return all
}
