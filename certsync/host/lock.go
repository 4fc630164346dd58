package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that another holds is tried again. flock(2) that
// waits cannot be given up.
const lockPoll = 50 * time.Millisecond

// Lock takes the lock file name (flock), waiting as long as ctx lasts. It makes
// the file (mode 0600) and its directories where they are missing. The kernel
// releases it when the process dies. The file's own directory may be one that others
// can write to, as they can to /run/lock; a link or a file of somebody else there
// is ErrUnsafe.
func (h *Host) Lock(ctx context.Context, name string) (unlock func() error, err error) {
	f, err := h.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	return func() error {
		// Not by Close alone: a child that is just being started has it, too.
		return errors.Join(flock(f, unix.LOCK_UN), f.Close())
	}, nil
}

func (h *Host) lock(ctx context.Context, name string) (*os.File, error) {
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		f, err := h.tryLock(name)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s, which another holds: %w", name, ctx.Err())
		case <-ticker.C:
		}
	}
}

func (h *Host) tryLock(name string) (*os.File, error) {
	p, base, err := h.openParent(name, true, h.mkdir)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	f, err := p.openLock(base)
	if err != nil {
		return nil, err
	}
	err = p.takeLock(base, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openLock opens a lock file without ever following a link, which os.Root would.
func (p parent) openLock(base string) (*os.File, error) {
	dir, err := p.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	full := path.Join(p.path, base)
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	// Not at once with O_CREAT: where all can write, the kernel refuses that
	// for files of others (fs.protected_regular) and does not say why.
	fd, err := unix.Openat(int(dir.Fd()), base, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		fd, err = unix.Openat(int(dir.Fd()), base, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
		if errors.Is(err, unix.EEXIST) { // another agent's, made just now
			fd, err = unix.Openat(int(dir.Fd()), base, flags, 0)
		}
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a link", ErrUnsafe, full)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// takeLock locks a file, if it is one that only we can lock.
func (p parent) takeLock(base string, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no regular file (%v)", ErrUnsafe, f.Name(), fi.Mode())
	}
	if err := ownedSafely(f.Name(), fi); err != nil {
		return err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	// Somebody may have removed it since it was opened; then another could lock
	// a new one.
	now, err := p.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(fi, now) {
		return unix.EWOULDBLOCK
	}
	return err
}

// flock locks an open file.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
