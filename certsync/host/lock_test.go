package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// background is for helper processes, which no test ends.
func background() context.Context { return context.Background() }

// helpLock takes a lock, says so, and holds it until standard input ends.
func helpLock(h *Host, name string) error {
	if _, err := h.Lock(background(), name); err != nil {
		return err
	}
	fmt.Println("locked")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// TestLock proves that two agents exclude each other, that waiting ends with its
// context, and that the file is nobody else's.
func TestLock(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "var/lock -> /run/lock", "run/")
	const name = "/var/lock/x.lock"
	h := open(t, root)
	unlock, err := h.Lock(t.Context(), name)
	must(t, err)
	fi, err := os.Lstat(filepath.Join(root, "run/lock/x.lock"))
	must(t, err)
	if fi.Mode() != 0o600 {
		t.Errorf("the lock file is %v", fi.Mode())
	}

	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	other := open(t, root)
	if _, err := other.Lock(ctx, name); !errors.Is(err, context.DeadlineExceeded) || !says(err, name) {
		t.Errorf("the second: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		unlock, err := other.Lock(t.Context(), name)
		if err == nil {
			err = unlock()
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("the second did not wait: %v", err)
	case <-time.After(2 * lockPoll):
	}
	must(t, unlock())
	must(t, <-done)
	// The last may go on even when its time is over, if nobody is in its way.
	unlock, err = h.Lock(ctx, name)
	must(t, err)
	must(t, unlock())
}

// TestLockExcludes counts how many are inside at a time.
func TestLockExcludes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	var inside, rounds atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		h := open(t, root)
		all.Go(func() {
			for range 3 {
				unlock, err := h.Lock(t.Context(), "/run/lock/x")
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				rounds.Add(1)
				inside.Add(-1)
				if err := unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if rounds.Load() != 12 {
		t.Errorf("%d rounds", rounds.Load())
	}
}

// TestLockOfDead proves that another process excludes us until it is killed.
func TestLockOfDead(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	cmd := helper(t, root, 0, "lock", "/run/lock/x")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "locked\n" {
		t.Errorf("%q, %v", line, err)
	}
	h := open(t, root)
	ctx, cancel := context.WithTimeout(t.Context(), 2*lockPoll)
	defer cancel()
	if _, err := h.Lock(ctx, "/run/lock/x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the other lives: %v", err)
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("the helper ended by itself")
	}
	unlock, err := h.Lock(t.Context(), "/run/lock/x")
	must(t, err)
	must(t, unlock())
}

// TestLockRemoved proves that who waits for a file that is removed meanwhile does
// not lock it beside another that locks a new one.
func TestLockRemoved(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	h := open(t, root)
	first, err := h.Lock(t.Context(), "/x")
	must(t, err)
	p, _, err := h.openParent("/x", true, nil)
	must(t, err)
	defer p.Close()
	f, err := p.openLock("x")
	must(t, err)
	defer f.Close()
	must(t, os.Remove(filepath.Join(root, "x")))
	second, err := h.Lock(t.Context(), "/x")
	must(t, err)
	must(t, first())
	if err := p.takeLock("x", f); err == nil {
		t.Error("a removed file was locked")
	}
	must(t, second())
}

// TestLockTraps plants lock files that are not ours.
func TestLockTraps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		plant []string
		chown string
		err   string
	}{
		{plant: []string{"1777 run/lock/"}},
		{plant: []string{"1777 run/lock/", "0600 run/lock/x"}},
		{plant: []string{"0775 run/lock/"}},
		{plant: []string{"0777 run/lock/"}, err: "/run/lock"},
		{plant: []string{"1777 run/", "run/lock/"}, err: "/run"},
		{plant: []string{"1777 run/lock/", "run/lock/x -> y", "run/lock/y"}, err: "/run/lock/x is a link"},
		{plant: []string{"1777 run/lock/", "run/lock/x -> y"}, err: "/run/lock/x is a link"},
		{plant: []string{"1777 run/lock/", "run/lock/x -> /y"}, err: "/run/lock/x is a link"},
		{plant: []string{"1777 run/lock/", "run/lock/x|"}, err: "/run/lock/x is no regular file"},
		{plant: []string{"1777 run/lock/", "0666 run/lock/x"}, err: "others may write to /run/lock/x"},
		{plant: []string{"1777 run/lock/", "0600 run/lock/x"}, chown: "run/lock/x", err: "/run/lock/x is owned by user 4711"},
		{plant: []string{"1777 run/lock/"}, chown: "run/lock", err: "/run/lock is owned by user 4711"},
	} {
		t.Run(fmt.Sprint(test.plant, " ", test.chown), func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			plant(t, root, test.plant...)
			if test.chown != "" {
				needRoot(t)
				must(t, os.Lchown(filepath.Join(root, test.chown), 4711, -1))
			}
			before := snapshot(t, root)
			h := open(t, root)
			unlock, err := h.Lock(t.Context(), "/run/lock/x")
			if test.err == "" {
				must(t, err)
				must(t, unlock())
				return
			}
			if !errors.Is(err, ErrUnsafe) || !says(err, test.err) {
				t.Errorf("%v", err)
			}
			if diff := cmp.Diff(before, snapshot(t, root)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
		})
	}
	root := t.TempDir()
	plant(t, root, "x/")
	if _, err := open(t, root).Lock(t.Context(), "/x"); err == nil {
		t.Error("a directory was locked")
	}
}
