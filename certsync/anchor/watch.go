package anchor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of a Watcher.
const (
	// settle is how long more events are waited for: an exchanged Secret is
	// four or more.
	settle = 50 * time.Millisecond
	// renew is how often watches are set anew, for what was mounted over, was
	// unmounted, or could not be watched.
	renew = time.Minute
)

// Watcher tells when a source may have changed. It watches the directories by
// inotify, and their parents, so that one that is made or replaced later is
// noticed too. A change is told 50 ms after its first event; within a minute if
// the directory's parent came later as well, or something was mounted over it.
// Not seen are a change of mode or owner, and a change to the target of a link
// in a plain directory. Reading wakes nobody. It is a hint, and no more: whoever
// uses it reads the sources at an interval as well.
type Watcher struct {
	dirs    []string
	log     *slog.Logger
	changed chan struct{}

	open   func() (*fsnotify.Watcher, error)
	renew  time.Duration
	failed map[string]string // path → the error that was logged
}

// NewWatcher watches nothing yet: Run does.
func NewWatcher(dirs []string, log *slog.Logger) *Watcher {
	w := &Watcher{
		log: log, changed: make(chan struct{}, 1), open: fsnotify.NewWatcher, renew: renew, failed: make(map[string]string),
	}
	for _, dir := range dirs {
		w.dirs = append(w.dirs, filepath.Clean(dir))
	}
	return w
}

// Changed has a value when a source may have changed since the last one was
// taken out. The first comes as soon as the sources are watched, so that no
// change between a reading and that is missed. It is never closed.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Run watches until ctx ends, and returns nil then. What the kernel refuses (its
// limits of inotify) is logged once, and tried again each minute.
func (w *Watcher) Run(ctx context.Context) error {
	for {
		err := w.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.failure("inotify", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(w.renew):
		}
	}
}

// watch returns when ctx ends, or when there is no inotify.
func (w *Watcher) watch(ctx context.Context) (err error) {
	events, err := w.open()
	if err != nil {
		return fmt.Errorf("open inotify: %w", err)
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	w.failure("inotify", nil)
	w.arm(events)
	w.tell()
	ticker := time.NewTicker(w.renew)
	defer ticker.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-events.Events:
			if !ok {
				return errors.New("inotify was closed")
			}
			if settled == nil && w.relevant(event) {
				settled = time.After(settle)
			}
		case err, ok := <-events.Errors:
			if !ok {
				return errors.New("inotify was closed")
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("read inotify: %w", err)
			}
			if settled == nil {
				settled = time.After(settle)
			}
		case <-ticker.C:
			w.arm(events)
		case <-settled:
			settled = nil
			w.arm(events) // a directory may be another one now
			w.tell()
		}
	}
}

func (w *Watcher) tell() {
	select {
	case w.changed <- struct{}{}:
	default: // told already, not taken out yet
	}
}

// arm watches all directories and their parents. To do it again changes nothing
// for those that are watched already.
func (w *Watcher) arm(events *fsnotify.Watcher) {
	for _, dir := range w.dirs {
		for _, path := range []string{filepath.Dir(dir), dir} {
			err := events.Add(path)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil // its parent tells when it comes
			}
			w.failure(path, err)
		}
	}
}

// failure logs an error once, until it is another one or over.
func (w *Watcher) failure(path string, err error) {
	switch {
	case err == nil:
		delete(w.failed, path)
	case w.failed[path] != err.Error():
		w.failed[path] = err.Error()
		w.log.Warn("source is not watched, changes are seen at the interval only", "path", path, "err", err)
	}
}

// relevant tells whether an event is about a source: something in it, or the
// directory itself. Access and open are not even asked for.
func (w *Watcher) relevant(event fsnotify.Event) bool {
	if event.Op&^fsnotify.Chmod == 0 {
		return false
	}
	name := filepath.Clean(event.Name)
	for _, dir := range w.dirs {
		if name == dir || filepath.Dir(name) == dir {
			return true
		}
	}
	return false
}
