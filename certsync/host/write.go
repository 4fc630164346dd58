package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

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
