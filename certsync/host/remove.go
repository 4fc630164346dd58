package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
)

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
	err := p.Remove(base)
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
