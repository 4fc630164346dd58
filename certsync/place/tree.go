package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/nodestead/nodestead/certsync/host"
)

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
			if strings.HasPrefix(e.Name(), tempPrefix) {
				continue
			}
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
