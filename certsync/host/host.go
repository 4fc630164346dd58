// Package host is the node as certsync reaches it: the files below its root, its
// systemd, and the tools of its distribution. Nothing outside the root is ever
// written, whatever links are planted in it.
package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"
)

// Host is the node whose root file system is mounted at a path.
type Host struct {
	root *os.Root
	path string
}

// Open opens the node whose root is mounted at path ("/" on the bare host).
func Open(path string) (*Host, error) { panic("not yet") }

// Close closes it.
func (h *Host) Close() error { panic("not yet") }

// Socket is where this process finds the socket that the node has at name
// ("/run/docker.sock").
func (h *Host) Socket(name string) string { panic("not yet") }

// ReadFile reads a regular file of at most limit bytes. Symbolic links, absolute
// ones too, are followed as a process on the node would, inside the root.
func (h *Host) ReadFile(name string, limit int64) ([]byte, error) { panic("not yet") }

// Stat follows links as ReadFile does.
func (h *Host) Stat(name string) (fs.FileInfo, error) { panic("not yet") }

// Lstat does not follow the last link.
func (h *Host) Lstat(name string) (fs.FileInfo, error) { panic("not yet") }

// ReadDir lists a directory, sorted by name, following links as ReadFile does.
func (h *Host) ReadDir(name string) ([]fs.DirEntry, error) { panic("not yet") }

// ErrUnsafe: a directory or file on the way is not root's alone, or is a link
// where a directory of our own must be. Nothing was written.
var ErrUnsafe = errors.New("not safe to write")

// MkdirOwn makes a directory of our own with its parents (mode 0755), or checks
// that what is there is a directory and no link, owned by this process's user,
// and writable by nobody else (else ErrUnsafe). It reports whether it made it.
func (h *Host) MkdirOwn(name string) (made bool, err error) { panic("not yet") }

// WriteFile writes a file atomically and durably (a temporary file in the same
// directory under a hidden name that readers skip, fsync, rename, fsync of the
// directory). It writes nothing when the content and mode are there already.
// Directory and file must not be writable by others (ErrUnsafe); a link at name
// itself is replaced, never followed. Directories on the way may be links inside
// the root (relative or absolute), as distributions have them.
func (h *Host) WriteFile(name string, content []byte, mode fs.FileMode) (changed bool, err error) {
	panic("not yet")
}

// Remove removes a file, or a link itself, durably. It is no error when there is
// none.
func (h *Host) Remove(name string) error { panic("not yet") }

// RemoveDir removes a directory if it is empty; it is no error when it is not,
// or is not there.
func (h *Host) RemoveDir(name string) error { panic("not yet") }

// Lock takes the lock file name (flock), waiting as long as ctx lasts.
func (h *Host) Lock(ctx context.Context, name string) (unlock func() error, err error) {
	panic("not yet")
}

// Tool runs a program of the node in the node's own root, and waits for it: as a
// systemd transient unit with the name unit where systemd runs, else by chroot.
// A run of that unit by another agent is waited for first. The error of a failed
// run has what is known of its output.
func (h *Host) Tool(ctx context.Context, unit string, argv []string) error { panic("not yet") }

// ErrNoSystemd: the node is not run by systemd, or its bus cannot be reached.
var ErrNoSystemd = errors.New("no systemd")

// ErrNoUnit: systemd does not know the unit.
var ErrNoUnit = errors.New("no such unit")

// Systemd is a connection to the node's systemd over the system bus.
type Systemd struct{}

// Systemd connects (ErrNoSystemd). The caller closes it.
func (h *Host) Systemd(ctx context.Context) (*Systemd, error) { panic("not yet") }

// Close closes the connection.
func (s *Systemd) Close() { panic("not yet") }

// Unit is what systemd says of a service.
type Unit struct {
	Name         string
	ActiveState  string    // active, inactive, failed, activating, deactivating, reloading
	Result       string    // success, start-limit-hit, exit-code, …
	InvocationID string    // lower-case hex, another one after each start
	Started      time.Time // ActiveEnterTimestamp; zero if never
	MainPID      int
	Restarts     int // NRestarts: automatic restarts
	// RequiredBy are the units that stop when this one does.
	RequiredBy []string
	// TriggeredBy are the sockets that start it.
	TriggeredBy []string
}

// Active tells whether it runs.
func (u Unit) Active() bool { return u.ActiveState == "active" }

// Unit asks for a service (ErrNoUnit).
func (s *Systemd) Unit(ctx context.Context, name string) (Unit, error) { panic("not yet") }

// Restart restarts a unit (RestartUnit, mode replace, never ReloadOrRestart) and
// waits for the job; an error names the job's result and the unit's.
func (s *Systemd) Restart(ctx context.Context, name string) error { panic("not yet") }

// Start starts a unit and waits for the job.
func (s *Systemd) Start(ctx context.Context, name string) error { panic("not yet") }

// ResetFailed forgets failures and past starts of a unit (its start limit).
func (s *Systemd) ResetFailed(ctx context.Context, name string) error { panic("not yet") }
