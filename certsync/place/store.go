package place

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
)

// anchorMode is the mode of our files: every program of the node reads them.
const anchorMode fs.FileMode = 0o644

// Store is the trust store of the node's distribution. It is used by one goroutine
// at a time.
type Store struct {
	h      *host.Host
	layout layout
	tool   string // its path
	// run runs the tool: host.Host.Tool.
	run func(ctx context.Context, unit string, argv []string) error

	// seen is the mark of the store when it was last found in order, and
	// problems are what was in the way even so.
	seen     string
	problems []Problem
	// had are the anchors that were in it then; nil: never.
	had map[string]bool
	// stuck is the mark of the store when the tool had not helped, at stuckAt,
	// and why is what was still wrong.
	stuck, why string
	stuckAt    time.Time
}

// FindStore finds the trust store of the node by what is there. The Store remembers
// what it saw: it shall be kept, or each Plan costs a look at all of it. An
// *UnsupportedError says that there is none that can be used, and what to do
// instead.
func FindStore(h *host.Host) (*Store, error) {
	content, err := h.ReadFile("/etc/os-release", maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		content, err = h.ReadFile("/usr/lib/os-release", maxFile)
	}
	if err := ignoreMissing(err); err != nil {
		return nil, fmt.Errorf("find the trust store: %w", err)
	}
	l, tool, err := choose(parseOSRelease(content), func(name string) bool {
		_, err := h.Stat(name)
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	return &Store{h: h, layout: l, tool: tool, run: h.Tool}, nil
}

// Name implements Target.
func (s *Store) Name() string { return storeName }

// Layout names the family of distributions, for people.
func (s *Store) Layout() string { return s.layout.name }

// Bundle is the path of the bundle on the node.
func (s *Store) Bundle() string { return bundlePath(s.h, s.layout) }

// Plan implements Target. When nothing has changed since the store was last found
// in order, it reads nothing but the directory of anchors, and no file in it.
func (s *Store) Plan(anchors []anchor.Anchor) (Plan, error) {
	p, _, err := s.compare(anchors)
	if err != nil {
		return p, fmt.Errorf("look at the trust store: %w", err)
	}
	if !p.Empty() {
		if why := s.readOnly(); why != "" {
			p.Problems = append(p.Problems, Problem{s.layout.anchors, "read_only", why})
			p.Changes, p.Tool = nil, nil
		}
	}
	if p.Empty() {
		err = p.blocked()
	}
	return p, err
}

// compare looks at the store and plans. It remembers what is in order.
func (s *Store) compare(anchors []anchor.Anchor) (Plan, state, error) {
	// Before anything is read: what changes meanwhile is seen the next time.
	mark, err := s.mark(anchors)
	if err != nil {
		return Plan{}, state{}, err
	}
	if mark == s.seen {
		return Plan{Target: storeName, Problems: s.problems}, state{}, nil
	}
	st, err := s.look()
	if err != nil {
		return Plan{}, st, err
	}
	p := s.layout.plan(st, s.tool, anchors, s.had)
	if mark == s.stuck && time.Since(s.stuckAt) < retry && len(p.Changes) == 0 && p.Tool != nil {
		p.Problems = append(p.Problems, Problem{st.bundlePath, "tool_did_not_help",
			s.tool + " has run, and even so: " + s.why + "; it is run again when something has changed, or in a while"})
		p.Tool = nil
	}
	if p.Empty() && p.blocked() == nil && !st.running {
		s.inOrder(mark, anchors, p.Problems)
	}
	return p, st, nil
}

func (s *Store) inOrder(mark string, anchors []anchor.Anchor, problems []Problem) {
	s.seen, s.problems, s.had, s.stuck = mark, problems, map[string]bool{}, ""
	for _, a := range anchors {
		if !a.Leaf {
			s.had[a.Fingerprint] = true
		}
	}
}

// mark is a text that is another one as soon as something has changed in what
// plans for the anchors rest on: files, their times and inodes.
func (s *Store) mark(anchors []anchor.Anchor) (string, error) {
	var b strings.Builder
	for _, a := range anchors {
		if !a.Leaf {
			fmt.Fprintln(&b, a.Fingerprint)
		}
	}
	names := []string{bundlePath(s.h, s.layout), s.layout.conf, s.layout.links}
	for _, dir := range []string{s.layout.anchors, s.layout.besides} {
		if dir == "" {
			continue
		}
		t, err := walk(s.h, dir, s.layout)
		if err != nil {
			return "", err
		}
		names = append(names, t.dirs...)
		for _, e := range t.files {
			// Flatcar's are links to files that do not change.
			if dir != s.layout.links || e.mode.IsRegular() {
				names = append(names, e.path)
			}
		}
	}
	for _, name := range names {
		if name == "" {
			continue
		}
		fi, err := s.h.Stat(name)
		if err != nil {
			if err := ignoreMissing(err); err != nil {
				return "", err
			}
			fmt.Fprintln(&b, name, "is missing")
			continue
		}
		sys := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, name, sys.Dev, sys.Ino, sys.Mode, sys.Uid, sys.Size, sys.Mtim, sys.Ctim)
	}
	return b.String(), nil
}

// readOnly says why the store cannot be written to, if its file systems say so.
func (s *Store) readOnly() string {
	for _, dir := range []string{s.layout.anchors, path.Dir(bundlePath(s.h, s.layout))} {
		for dir != "/" {
			if _, err := s.h.Stat(dir); err == nil {
				break
			}
			dir = path.Dir(dir) // it has to be made
		}
		var fsys unix.Statfs_t
		if err := unix.Statfs(s.h.Socket(dir), &fsys); err == nil && fsys.Flags&unix.ST_RDONLY != 0 {
			return "the file system of " + dir + " is read-only; list the registries, so that their certificates go into certs.d"
		}
	}
	return ""
}

// How long is waited for runs of the tool by others, and how often the tool is
// run. One run takes 0.6 to 3 s, and much longer on a node that is busy.
const (
	quietLimit = 30 * time.Second
	quietPoll  = 50 * time.Millisecond
	maxRuns    = 4
	// retry is when it is run again although it has not helped.
	retry = 15 * time.Minute
)

const (
	storeLock = "/run/lock/nodestead-store.lock"
	storeUnit = "nodestead-store.service"
)
