package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// ErrUnsafe means that a directory or file on the way is not root's alone, or is
// a link where a directory of our own must be. Nothing was written.
var ErrUnsafe = errors.New("not safe to write")

// othersWrite are the bits that let somebody else than the owner write. A sticky
// bit does not help: what is not there yet may be planted by anybody.
const othersWrite = 0o022

// ownedSafely tells whether only root, or who we are, may write to a file or
// directory.
func ownedSafely(name string, fi fs.FileInfo) error {
	if err := owned(name, fi); err != nil {
		return err
	}
	if fi.Mode().Perm()&othersWrite != 0 {
		return fmt.Errorf("%w: others may write to %s (%v)", ErrUnsafe, name, fi.Mode())
	}
	return nil
}

func owned(name string, fi fs.FileInfo) error {
	if uid := owner(fi); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%w: %s is owned by user %d", ErrUnsafe, name, uid)
	}
	return nil
}

func owner(fi fs.FileInfo) int {
	return int(fi.Sys().(*syscall.Stat_t).Uid) // os gives nothing else on Linux
}

// safeDir checks a resolved directory below the root.
func (h *Host) safeDir(dir string) error {
	fi, err := h.root.Lstat(dir)
	if err != nil {
		return err
	}
	return ownedSafely(path.Join("/", dir), fi)
}

// parent is an open directory in which something shall change.
type parent struct {
	*os.Root
	path string // on the node
}

// openParent opens the directory of name for a change in it. All directories
// on the way, those that links lead through too, are safe, so that nobody can
// swap them meanwhile. If shared, the last may be one that a group can write to
// (OpenRC's /run/lock), or all if it is sticky (Debian's).
func (h *Host) openParent(name string, shared bool, missing func(dir string) error) (parent, string, error) {
	name = path.Clean("/" + name)
	if name == "/" {
		return parent{}, "", errors.New("the root itself")
	}
	resolved, err := h.walk(path.Dir(name), true, h.safeDir, missing)
	if err != nil {
		return parent{}, "", err
	}
	root, err := h.root.OpenRoot(resolved)
	if err != nil {
		return parent{}, "", err
	}
	p := parent{Root: root, path: path.Join("/", resolved)}
	fi, err := root.Stat(".")
	switch {
	case err != nil:
	case shared && (fi.Mode()&fs.ModeSticky != 0 || fi.Mode()&0o002 == 0):
		err = owned(p.path, fi)
	default:
		err = ownedSafely(p.path, fi)
	}
	if err != nil {
		return parent{}, "", errors.Join(err, root.Close())
	}
	return p, path.Base(name), nil
}

// sync makes what changed in the directory durable.
func (p parent) sync() error {
	f, err := p.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
