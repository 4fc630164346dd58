package place

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
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

// ownLink matches the links to our files that the tools make, on Debian and on
// Alpine.
var ownLink = regexp.MustCompile(`^(?:ca-cert-)?nodestead-[0-9a-f]{64}\.pem$`)

// hashLink matches OpenSSL's hash links.
var hashLink = regexp.MustCompile(`^[0-9a-f]{8}\.[0-9]+$`)

// file is a file of anchors on the node.
type file struct {
	path string
	found
	// content is kept of our own files only.
	content []byte
	// irregular: what has our name is a link, a directory or worse.
	irregular bool
	mode      fs.FileMode
	// err is why it could not be read.
	err error
	// unsafe is why it can be changed by others than root.
	unsafe string
}

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
	// unfinished: a run was killed, and its half of a bundle is still there.
	unfinished bool

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
	running, err := runs(s.h)
	st.unfinished = len(running) == 0
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

// entry is a file in a directory of anchors; mode has its type, not that of what
// a link leads to.
type entry struct {
	path string
	mode fs.FileMode
}

// tree is a directory of anchors as its tool walks it.
type tree struct {
	dirs  []string
	files []entry
}

// walk lists the files that the layout's tool would read in a directory, and what
// has one of our names there. A missing directory is empty.
func walk(h *host.Host, dir string, l layout) (tree, error) {
	var t tree
	var visit func(dir string, depth int) error
	visit = func(dir string, depth int) error {
		entries, err := h.ReadDir(dir)
		if err != nil {
			return ignoreMissing(err)
		}
		t.dirs = append(t.dirs, dir)
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			if depth == 0 && ownFile.MatchString(e.Name()) {
				t.files = append(t.files, entry{name, e.Type()})
				continue
			}
			mode := e.Type()
			if mode == fs.ModeSymlink {
				fi, err := h.Stat(name)
				if err != nil {
					continue // dangling: the tools skip it
				}
				mode = fi.Mode()
			}
			switch {
			case mode.IsDir() && l.deep && depth < maxDepth:
				if err := visit(name, depth+1); err != nil {
					return err
				}
			case mode.IsRegular() && l.reads(e.Name()):
				t.files = append(t.files, entry{name, e.Type()})
			}
		}
		return nil
	}
	return t, visit(dir, 0)
}

// readAnchors reads one file.
func readAnchors(h *host.Host, e entry, der bool) file {
	f := file{path: e.path}
	if f.irregular = e.mode.Type() != 0; f.irregular && ownFile.MatchString(path.Base(e.path)) {
		return f // what a link of our name leads to is nothing of ours
	}
	if f.content, f.err = h.ReadFile(e.path, maxFile); f.err != nil {
		return f
	}
	f.found = scan(f.content, der)
	return f
}

// stat finds out who can change a file of ours.
func (f *file) stat(h *host.Host) error {
	if f.irregular {
		return nil
	}
	fi, err := h.Stat(f.path)
	if err != nil {
		return ignoreMissing(err) // it has just been removed
	}
	f.mode, f.unsafe = fi.Mode(), unsafeBy(fi)
	return nil
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

// unsafeBy says why others than root, or than who we are, can change a file or
// directory.
func unsafeBy(fi fs.FileInfo) string {
	uid := int(fi.Sys().(*syscall.Stat_t).Uid)
	switch {
	case uid != 0 && uid != os.Geteuid():
		return fmt.Sprintf("it is owned by user %d", uid)
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Sprintf("others than its owner may write to it (%v)", fi.Mode())
	}
	return ""
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
