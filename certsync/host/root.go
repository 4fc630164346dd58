package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links are followed on the way to a file: as many as the
// kernel does (MAXSYMLINKS).
const maxLinks = 40

// walk resolves name as a process on the node would. The result is relative to
// the root and has no link in it, but for the last part where last is false.
// os.Root alone would not do: it refuses absolute links, which distributions
// have. It still guards the use of the result, in case something is swapped
// meanwhile.
//
// enter, if there is one, is called for each directory before anything is looked
// up in it; missing for each part that is not there, and makes it.
func (h *Host) walk(name string, last bool, enter, missing func(dir string) error) (string, error) {
	todo := parts(path.Clean("/" + name))
	at, links := ".", 0
	for len(todo) > 0 {
		if enter != nil {
			if err := enter(at); err != nil {
				return "", err
			}
		}
		part := todo[0]
		todo = todo[1:]
		switch part {
		case ".":
			continue
		case "..":
			at = path.Dir(at) // the root is its own parent
			continue
		}
		next := path.Join(at, part)
		if len(todo) == 0 && !last {
			return next, nil
		}
		fi, err := h.root.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) && missing != nil {
			if err := missing(next); err != nil {
				return "", err
			}
			fi, err = h.root.Lstat(next)
		}
		if err != nil {
			return "", err
		}
		if fi.Mode().Type() != fs.ModeSymlink {
			at = next
			if len(todo) > 0 && !fi.IsDir() {
				return "", &fs.PathError{Op: "open", Path: next, Err: unix.ENOTDIR}
			}
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "open", Path: next, Err: unix.ELOOP}
		}
		target, err := h.root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "."
		}
		todo = slices.Concat(parts(target), todo)
	}
	return at, nil
}

// parts are the parts of a path. A slash at its end asks for a directory, as "."
// does.
func parts(name string) []string {
	if strings.HasSuffix(name, "/") {
		name += "."
	}
	return slices.DeleteFunc(strings.Split(name, "/"), func(part string) bool { return part == "" })
}

// resolve follows all links.
func (h *Host) resolve(name string) (string, error) { return h.walk(name, true, nil, nil) }

// ReadFile reads a regular file of at most limit bytes. Symbolic links, absolute
// ones too, are followed as a process on the node would, inside the root.
func (h *Host) ReadFile(name string, limit int64) ([]byte, error) {
	content, err := h.read(name, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return content, nil
}

func (h *Host) read(name string, limit int64) ([]byte, error) {
	resolved, err := h.resolve(name)
	if err != nil {
		return nil, err
	}
	f, _, err := openRegular(h.root, resolved)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Not its size: files in /proc have none.
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return content, nil
}

// openRegular opens a regular file for reading, and nothing else: to open a
// device may do something, and to open a FIFO may take forever.
func openRegular(dir *os.Root, name string) (*os.File, fs.FileInfo, error) {
	fi, err := dir.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("not a regular file but %v", fi.Mode())
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	if fi, err = f.Stat(); err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("not a regular file but %v", fi.Mode())
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, fi, nil
}

// Stat follows links as ReadFile does.
func (h *Host) Stat(name string) (fs.FileInfo, error) {
	resolved, err := h.resolve(name)
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", name, err)
	}
	return h.root.Lstat(resolved)
}

// Lstat does not follow the last link.
func (h *Host) Lstat(name string) (fs.FileInfo, error) {
	resolved, err := h.walk(name, false, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("lstat %s: %w", name, err)
	}
	return h.root.Lstat(resolved)
}

// ReadDir lists a directory, sorted by name, following links as ReadFile does.
func (h *Host) ReadDir(name string) ([]fs.DirEntry, error) {
	resolved, err := h.resolve(name)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", name, err)
	}
	entries, err := fs.ReadDir(h.root.FS(), resolved)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", name, err)
	}
	return entries, nil
}
