package host

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Temporary files have names that update-ca-certificates and dockerd (*.crt),
// containerd (hosts.toml, *.crt) and p11-kit skip.
const (
	tempPrefix = ".nodestead-"
	tempSuffix = ".tmp"
)

// dirMode is the mode of directories that we make.
const dirMode = 0o755

// MkdirOwn makes a directory of our own with its parents (mode 0755), or checks
// that what is there is a directory and no link, owned by this process's user,
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
	if uid := owner(fi); uid != os.Geteuid() {
		return false, fmt.Errorf("%w: %s is owned by user %d", ErrUnsafe, full, uid)
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

// WriteFile writes a file atomically and durably (a temporary file in the same
// directory under a hidden name that readers skip, fsync, rename, fsync of the
// directory). It writes nothing when the content and mode are there already.
// Directory and file must not be writable by others (ErrUnsafe); a link at name
// itself is replaced, never followed; what is neither link nor regular file is
// ErrUnsafe. Directories on the way may be links inside the root (relative or
// absolute), as distributions have them. The directory must exist. What a writer
// that was killed left in it is removed.
func (h *Host) WriteFile(name string, content []byte, mode fs.FileMode) (changed bool, err error) {
	changed, err = h.writeFile(name, content, mode)
	if err != nil {
		return changed, fmt.Errorf("write %s: %w", name, err)
	}
	return changed, nil
}

func (h *Host) writeFile(name string, content []byte, mode fs.FileMode) (changed bool, err error) {
	p, base, err := h.openParent(name, false, nil)
	if err != nil {
		return false, err
	}
	defer p.Close()
	if same, err := p.has(base, content, mode); same || err != nil {
		return false, err
	}
	if err := p.removeTemps(); err != nil {
		return false, err
	}
	return h.replace(p, base, content, mode)
}

// has tells whether a file has the content and mode. It is an error if it may
// not be replaced.
func (p parent) has(base string, content []byte, mode fs.FileMode) (bool, error) {
	fi, err := p.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || fi.Mode().Type() == fs.ModeSymlink {
		return false, err
	}
	full := path.Join(p.path, base)
	if !fi.Mode().IsRegular() {
		return false, fmt.Errorf("%w: %s is no regular file (%v)", ErrUnsafe, full, fi.Mode())
	}
	if err := ownedSafely(full, fi); err != nil {
		return false, err
	}
	if fi.Mode() != mode || fi.Size() != int64(len(content)) {
		return false, nil
	}
	f, _, err := openRegular(p.Root, base)
	if err != nil {
		return false, err
	}
	defer f.Close()
	is, err := io.ReadAll(io.LimitReader(f, int64(len(content))+1))
	return bytes.Equal(is, content), err
}

// replace puts a new file in the place of whatever is at base.
func (h *Host) replace(p parent, base string, content []byte, mode fs.FileMode) (changed bool, err error) {
	temp, f, err := p.createTemp()
	if err != nil {
		return false, err
	}
	// It stays open, and so locked, until it has its name.
	defer func() {
		if !changed {
			err = errors.Join(err, p.Remove(temp))
		}
		err = errors.Join(err, f.Close())
	}()
	h.step("temporary file created")
	if _, err := f.Write(content); err != nil {
		return false, err
	}
	h.step("temporary file written")
	// In spite of the umask.
	if err := f.Chmod(mode); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	h.step("temporary file synced")
	if err := p.Rename(temp, base); err != nil {
		return false, err
	}
	h.step("renamed")
	if err := p.sync(); err != nil {
		return true, err
	}
	h.step("directory synced")
	return true, nil
}

// createTemp creates a temporary file and locks it, by which others see that its
// writer lives.
func (p parent) createTemp() (string, *os.File, error) {
	for {
		name := tempPrefix + rand.Text() + tempSuffix
		f, err := p.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", nil, err
		}
		err = flock(f, unix.LOCK_EX)
		var fi fs.FileInfo
		if err == nil {
			fi, err = f.Stat()
		}
		if err != nil {
			return "", nil, errors.Join(err, p.Remove(name), f.Close())
		}
		if fi.Sys().(*syscall.Stat_t).Nlink > 0 {
			return name, f, nil
		}
		// Another writer has removed it before it was locked.
		if err := f.Close(); err != nil {
			return "", nil, err
		}
	}
}

// removeTemps removes temporary files whose writers are dead.
func (p parent) removeTemps() error {
	entries, err := fs.ReadDir(p.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || !strings.HasSuffix(e.Name(), tempSuffix) || !e.Type().IsRegular() {
			continue
		}
		if err := p.removeTemp(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p parent) removeTemp(name string) error {
	f, _, err := openRegular(p.Root, name)
	if err != nil {
		return err
	}
	defer f.Close()
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // its writer lives
	}
	if err != nil {
		return err
	}
	return p.Remove(name)
}

// Remove removes a file, or a link itself, durably. It is no error when there is
// none. What a writer that was killed left in its directory is removed, too.
func (h *Host) Remove(name string) error {
	if err := h.remove(name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func (h *Host) remove(name string) error {
	p, base, err := h.openParent(name, false, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.removeTemps(); err != nil {
		return err
	}
	fi, err := p.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if t := fi.Mode().Type(); t != 0 && t != fs.ModeSymlink {
		return fmt.Errorf("%w: %s is no regular file (%v)", ErrUnsafe, path.Join(p.path, base), fi.Mode())
	}
	return h.unlink(p, base)
}

func (h *Host) unlink(p parent, base string) error {
	err := p.Root.Remove(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h.step("removed")
	if err := p.sync(); err != nil {
		return err
	}
	h.step("removal synced")
	return nil
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
