package place

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/nodestead/nodestead/certsync/host"
)

// Limits of what is read on a node. A bundle has some 250 KB, a store some 150
// certificates; a larger file among the anchors is none.
const (
	maxBundle = 16 << 20
	maxFile   = 1 << 20
	maxDepth  = 8
)

// ownFile matches the names of our files in a store. The name tells what is in
// it: the tools do not notice new content under an old name.
var ownFile = regexp.MustCompile(`^nodestead-([0-9a-f]{64})\.(?:crt|pem)$`)

// tempPrefix begins the names of the files that host.Host.WriteFile has not renamed
// yet, or never will.
const tempPrefix = ".nodestead-"

// ownLink matches the links to our files that the tools make, on Debian and on
// Alpine.
var ownLink = regexp.MustCompile(`^(?:ca-cert-)?nodestead-[0-9a-f]{64}\.pem$`)

// hashLink matches OpenSSL's hash links.
var hashLink = regexp.MustCompile(`^[0-9a-f]{8}\.[0-9]+$`)

// state is all of a store that a plan rests on.
type state struct {
	// own are our files, by the fingerprint in their names.
	own map[string]file
	// foreign are the files of others from which the tool makes the bundle.
	foreign []file
	// besides are those in layout.besides.
	besides []file
	// unsafe is why others than root can change the directory of anchors.
	unsafe string

	bundlePath string
	bundle     found
	// older: the bundle is older than the last change in the directory of
	// anchors.
	older bool
	// unfinished: a run was killed, and its half of a bundle is still there;
	// running: the run goes on.
	unfinished, running bool

	// hashed: the tool makes hash links. linked are those of the anchors in own
	// that have one, by fingerprint.
	hashed bool
	linked map[string]bool
	// dangling are links to files of ours that are gone; danglingHashes are
	// hash links to nothing.
	dangling, danglingHashes []string
}

// look reads the state of the store.
func (s *Store) look() (state, error) {
	st := state{own: map[string]file{}, linked: map[string]bool{}}
	tree, err := walk(s.h, s.layout.anchors, s.layout)
	if err != nil {
		return st, err
	}
	for _, e := range tree.files {
		f := readAnchors(s.h, e, s.layout.der)
		if m := ownFile.FindStringSubmatch(path.Base(e.path)); m != nil && path.Dir(e.path) == s.layout.anchors {
			if err := f.stat(s.h); err != nil {
				return st, err
			}
			st.own[m[1]] = f
			continue
		}
		f.content = nil
		st.foreign = append(st.foreign, f)
	}
	shared, err := s.shared()
	if err != nil {
		return st, err
	}
	st.foreign = append(st.foreign, shared...)
	if s.layout.besides != "" {
		tree, err := walk(s.h, s.layout.besides, s.layout)
		if err != nil {
			return st, err
		}
		for _, e := range tree.files {
			st.besides = append(st.besides, readAnchors(s.h, e, false))
		}
	}
	if err := s.lookAtBundle(&st); err != nil {
		return st, err
	}
	return st, s.lookAtLinks(&st)
}

// lookAtBundle reads the bundle and what is known of its making.
func (s *Store) lookAtBundle(st *state) error {
	st.bundlePath = bundlePath(s.h, s.layout)
	content, err := s.h.ReadFile(st.bundlePath, maxBundle)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the bundle: %w", err)
	}
	st.bundle = scan(content, false)
	dir, err := s.h.Stat(s.layout.anchors)
	if err != nil {
		return ignoreMissing(err)
	}
	st.unsafe = unsafeBy(dir)
	if fi, err := s.h.Stat(st.bundlePath); err == nil {
		st.older = fi.ModTime().Before(dir.ModTime())
	}
	if s.layout.unfinished == "" {
		return nil
	}
	if _, err := s.h.Lstat(s.layout.unfinished); err != nil {
		return ignoreMissing(err)
	}
	pids, err := runs(s.h)
	st.unfinished, st.running = len(pids) == 0, len(pids) > 0
	return err
}

// lookAtLinks finds out which anchors have a hash link.
func (s *Store) lookAtLinks(st *state) error {
	if s.layout.links == "" {
		return nil
	}
	entries, err := s.h.ReadDir(s.layout.links)
	if err != nil {
		return ignoreMissing(err)
	}
	type inode struct{ dev, ino uint64 }
	id := func(fi fs.FileInfo) inode {
		sys := fi.Sys().(*syscall.Stat_t)
		return inode{sys.Dev, sys.Ino}
	}
	anchors := map[inode]string{}
	for _, f := range slices.Concat(slices.Collect(maps.Values(st.own)), st.foreign) {
		for fp := range f.certs {
			if _, ours := st.own[fp]; !ours || !f.only(fp) {
				continue // links to theirs are theirs to care for
			}
			fi, err := s.h.Stat(f.path)
			if err := ignoreMissing(err); err != nil {
				return err
			}
			if err == nil {
				anchors[id(fi)] = fp
			}
		}
	}
	for _, e := range entries {
		name := path.Join(s.layout.links, e.Name())
		hash := hashLink.MatchString(e.Name())
		if e.Type() != fs.ModeSymlink || !hash && !ownLink.MatchString(e.Name()) {
			continue
		}
		fi, err := s.h.Stat(name)
		switch {
		case err == nil && hash:
			st.hashed = true
			st.linked[anchors[id(fi)]] = true
		case errors.Is(err, fs.ErrNotExist) && hash:
			st.danglingHashes = append(st.danglingHashes, name)
		case errors.Is(err, fs.ErrNotExist):
			st.dangling = append(st.dangling, name)
		case err != nil:
			return err
		}
	}
	return nil
}

// shared reads the files that the configuration of Debian's tool names.
func (s *Store) shared() ([]file, error) {
	if s.layout.conf == "" {
		return nil, nil
	}
	content, err := s.h.ReadFile(s.layout.conf, maxFile)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var files []file
	for _, name := range confFiles(content) {
		f := file{path: path.Join(s.layout.shared, name)}
		content, err := s.h.ReadFile(f.path, maxFile)
		if err != nil {
			continue // the tool warns, and goes on
		}
		f.found = scan(content, false)
		files = append(files, f)
	}
	return files, nil
}

// confFiles are the files that /etc/ca-certificates.conf names: the lines that do
// not begin with # or !.
func confFiles(content []byte) []string {
	var names []string
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		names = append(names, line)
	}
	return names
}

// bundlePath is the bundle's path: the first that is there.
func bundlePath(h *host.Host, l layout) string {
	for _, name := range l.bundles {
		if _, err := h.Stat(name); err == nil {
			return name
		}
	}
	return l.bundles[0]
}
