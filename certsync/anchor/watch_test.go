package anchor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// journal collects what is logged.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// startWatcher runs a Watcher until the test ends.
func startWatcher(t testing.TB, change func(*Watcher), dirs ...string) (*Watcher, *journal) {
	t.Helper()
	log := new(journal)
	w := NewWatcher(dirs, slog.New(slog.NewTextHandler(log, nil)))
	if change != nil {
		change(w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w, log
}

// patience is how long a test waits for what comes in 50 ms on an idle machine.
const patience = 10 * time.Second

// told waits until a change is told.
func told(t testing.TB, w *Watcher) {
	t.Helper()
	select {
	case <-w.Changed():
	case <-time.After(patience):
		t.Fatal("nobody told")
	}
}

// toldUntil waits until a change is told after which ok holds. (A test that is
// slow may be told more than once.)
func toldUntil(t testing.TB, w *Watcher, ok func() bool) {
	t.Helper()
	for told(t, w); !ok(); {
		told(t, w)
	}
}

func TestWatchSecret(t *testing.T) {
	a, b := newRoot(t, "a"), newRoot(t, "b")
	s := newSecret(t, map[string]string{"ca.crt": certPEM(a)})
	w, log := startWatcher(t, nil, s.dir)
	cfg := Config{Dirs: []string{s.dir}, Now: at(noon)}
	has := func(der []byte) func() bool {
		return func() bool { return cmp.Equal(sorted(der), fingerprints(Read(cfg, nil).Anchors)) }
	}
	toldUntil(t, w, has(a))
	for _, next := range [][]byte{b, a, b} {
		start := time.Now()
		s.update(map[string]string{"ca.crt": certPEM(next)})
		toldUntil(t, w, has(next))
		t.Logf("noticed and read after %v", time.Since(start))
	}
	if log.String() != "" {
		t.Error(log)
	}
}

// Each change of a source is told, wherever it begins.
func TestWatch(t *testing.T) {
	check := func(t *testing.T, errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	content := []byte("content")
	for _, c := range []struct {
		name   string
		before func(t *testing.T, dir string)
		// steps are told one by one.
		steps []func(t *testing.T, dir string)
	}{
		{"a file is written, replaced, and removed", func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o700)) }, []func(*testing.T, string){
			func(t *testing.T, dir string) { check(t, os.WriteFile(dir+"/ca.crt", content, 0o600)) },
			func(t *testing.T, dir string) {
				check(t, os.WriteFile(dir+"/../new", content, 0o600), os.Rename(dir+"/../new", dir+"/ca.crt"))
			},
			func(t *testing.T, dir string) { check(t, os.Remove(dir+"/ca.crt")) },
		}},
		{"the directory comes later", nil, []func(*testing.T, string){
			func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o700)) },
			func(t *testing.T, dir string) { check(t, os.WriteFile(dir+"/ca.crt", content, 0o600)) },
		}},
		{"the directory goes and comes", func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o700)) }, []func(*testing.T, string){
			func(t *testing.T, dir string) { check(t, os.Remove(dir)) },
			func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o700)) },
			func(t *testing.T, dir string) { check(t, os.WriteFile(dir+"/ca.crt", content, 0o600)) },
		}},
		{"the directory is exchanged", func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o700), os.Mkdir(dir+".new", 0o700)) }, []func(*testing.T, string){
			func(t *testing.T, dir string) { check(t, os.Rename(dir, dir+".old"), os.Rename(dir+".new", dir)) },
			func(t *testing.T, dir string) { check(t, os.WriteFile(dir+"/ca.crt", content, 0o600)) },
		}},
		{"the directory is a link that is exchanged", func(t *testing.T, dir string) {
			check(t, os.Mkdir(dir+".1", 0o700), os.Mkdir(dir+".2", 0o700), os.Symlink(dir+".1", dir))
		}, []func(*testing.T, string){
			func(t *testing.T, dir string) { check(t, os.WriteFile(dir+".1/ca.crt", content, 0o600)) },
			func(t *testing.T, dir string) {
				check(t, os.Symlink(dir+".2", dir+".tmp"), os.Rename(dir+".tmp", dir))
			},
			func(t *testing.T, dir string) { check(t, os.WriteFile(dir+".2/ca.crt", content, 0o600)) },
		}},
		{"its parent comes later, too", nil, []func(*testing.T, string){
			func(t *testing.T, dir string) { check(t, os.MkdirAll(dir+"/deep", 0o700)) },
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "source")
			if c.before != nil {
				c.before(t, dir)
			}
			w, log := startWatcher(t, nil, t.TempDir(), dir)
			told(t, w) // it watches
			for _, step := range c.steps {
				step(t, dir)
				told(t, w)
			}
			if log.String() != "" {
				t.Error(log)
			}
		})
	}
}

// What came without a sign is watched after the next renewal.
func TestWatchLateParent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	w, log := startWatcher(t, func(w *Watcher) { w.renew = 5 * time.Millisecond }, dir)
	told(t, w)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	deadline, again := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer again.Stop()
	for noticed := false; !noticed; {
		select {
		case <-w.Changed():
			noticed = true
		case <-again.C:
			write(t, dir, "ca.crt", "content")
		case <-deadline:
			t.Fatal("nobody told")
		}
	}
	if log.String() != "" {
		t.Error(log)
	}
}

// Reading, and what only looks like a change, wakes nobody: on the kernel's own
// word, in the order of its events.
func TestWatchNotWoken(t *testing.T) {
	s := newSecret(t, map[string]string{"ca.crt": certPEM(newRoot(t, "a"))})
	w := NewWatcher([]string{s.dir}, slog.New(slog.DiscardHandler))
	events := must(fsnotify.NewWatcher())(t)
	defer events.Close()
	w.arm(events)
	Read(Config{Dirs: []string{s.dir}, Now: at(noon)}, nil)
	path := filepath.Join(s.dir, "ca.crt")
	if err := errors.Join(
		os.Chtimes(path, noon, time.Time{}), os.Chtimes(s.dir, noon, noon), os.Chmod(s.dir, 0o755),
		os.WriteFile(s.dir+"-neighbour", nil, 0o600), os.Remove(s.dir+"-neighbour"),
		os.WriteFile(filepath.Join(s.dir, "end"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for seen := 0; ; seen++ {
		select {
		case event := <-events.Events:
			if w.relevant(event) {
				if filepath.Base(event.Name) != "end" {
					t.Errorf("woken by %v", event)
				}
				if seen < 3 {
					t.Errorf("only %d events before: the test shows nothing", seen)
				}
				return
			}
		case <-time.After(patience):
			t.Fatal("the end was not seen")
		}
	}
}

// However many events there are, a change is told once in 50 ms at most, and an
// endless stream of them does not keep it back.
func TestWatchCoalesces(t *testing.T) {
	dir := t.TempDir()
	w, _ := startWatcher(t, nil, dir)
	told(t, w)
	start := time.Now()
	for count := 0; count < 3; {
		write(t, dir, "ca.crt", "content")
		select {
		case <-w.Changed():
			count++
		default:
		}
		if time.Since(start) > patience {
			t.Fatalf("told %d times in %v", count, patience)
		}
	}
	if took := time.Since(start); took < 3*settle {
		t.Errorf("told three times in %v", took)
	}
}

// No inotify: it is said once, and Run goes on and gets it in the end.
func TestWatchWithoutInotify(t *testing.T) {
	dir := t.TempDir()
	tries := 0
	w, log := startWatcher(t, func(w *Watcher) {
		w.renew = time.Millisecond
		w.open = func() (*fsnotify.Watcher, error) {
			if tries++; tries <= 5 {
				return nil, unix.EMFILE
			}
			return fsnotify.NewWatcher()
		}
	}, dir)
	told(t, w)
	write(t, dir, "ca.crt", "content")
	told(t, w)
	if got := strings.Count(log.String(), "not watched"); got != 1 || !strings.Contains(log.String(), unix.EMFILE.Error()) {
		t.Errorf("%d warnings: %s", got, log)
	}
}

// A source that cannot be watched is said once, and does not keep others from
// being watched.
func TestWatchRefused(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	w, log := startWatcher(t, func(w *Watcher) { w.renew = time.Millisecond }, loop, dir)
	for i := range 3 {
		told(t, w)
		write(t, dir, "ca.crt", strings.Repeat("x", i))
	}
	told(t, w)
	if got := strings.Count(log.String(), "not watched"); got != 1 || !strings.Contains(log.String(), loop) {
		t.Errorf("%d warnings: %s", got, log)
	}
}

// Run ends with its context, also while it waits for inotify.
func TestWatchEnds(t *testing.T) {
	for name, open := range map[string]func() (*fsnotify.Watcher, error){
		"watching": fsnotify.NewWatcher, "waiting": func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			w := NewWatcher([]string{t.TempDir()}, slog.New(slog.DiscardHandler))
			opened := make(chan struct{})
			w.open = func() (*fsnotify.Watcher, error) { defer close(opened); return open() }
			done := make(chan error)
			go func() { done <- w.Run(ctx) }()
			<-opened
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
