package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"
)

// dirMode is the mode of directories that we make.
const dirMode = 0o755

// MkdirOwn makes a directory of our own with its parents (mode 0755), or checks
// that what is there is a directory and no link, owned by root or this process's user,
// and writable by nobody else (else ErrUnsafe). It reports whether it made it.
func (h *Host) MkdirOwn(name string) (made bool, err error) {
	made, err = h.mkdirOwn(name)
	if err != nil {
		return made, fmt.Errorf("make directory %s: %w", name, err)
	}
	return made, nil
}

func (h *Host) mkdirOwn(name string) (made bool, err error) {
	p, base, err := h.openParent(name, false, h.mkdir)
	if err != nil {
		return false, err
	}
	defer p.Close()
	fi, err := p.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		if made, err = h.mkdirIn(p, base); made || err != nil {
			return made, err
		}
		fi, err = p.Lstat(base)
	}
	if err != nil {
		return false, err
	}
	full := path.Join(p.path, base)
	if !fi.IsDir() {
		return false, fmt.Errorf("%w: %s is no directory (%v)", ErrUnsafe, full, fi.Mode())
	}
	return false, ownedSafely(full, fi)
}

// mkdir makes a directory on the way; all before it are there and resolved.
func (h *Host) mkdir(dir string) error {
	p, base, err := h.openParent(dir, false, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	_, err = h.mkdirIn(p, base)
	return err
}

// mkdirIn makes a directory, if another agent is not faster.
func (h *Host) mkdirIn(p parent, base string) (made bool, err error) {
	err = p.Mkdir(base, dirMode)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h.step("directory made")
	// In spite of the umask.
	if err := p.Chmod(base, dirMode); err != nil {
		return true, err
	}
	return true, p.sync()
}

// RemoveDir removes a directory if it is empty but for what a writer that was
// killed left in it; it is no error when it is not, or is not there.
func (h *Host) RemoveDir(name string) error {
	if err := h.removeDir(name); err != nil {
		return fmt.Errorf("remove directory %s: %w", name, err)
	}
	return nil
}

func (h *Host) removeDir(name string) error {
	p, base, err := h.openParent(name, false, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	fi, err := p.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%w: %s is no directory (%v)", ErrUnsafe, path.Join(p.path, base), fi.Mode())
	}
	inside, err := p.OpenRoot(base)
	if err != nil {
		return err
	}
	if err := errors.Join(parent{Root: inside}.removeTemps(), inside.Close()); err != nil {
		return err
	}
	err = h.unlink(p, base)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
