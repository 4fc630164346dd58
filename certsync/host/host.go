// Package host is the node as certsync reaches it: the files below its root, its
// systemd, and the tools of its distribution. Nothing outside the root is ever
// written, whatever links are planted in it.
package host

import (
	"fmt"
	"os"
	"path/filepath"
)

// Host is the node whose root file system is mounted at a path. Its methods may
// be called from several goroutines.
type Host struct {
	root   *os.Root
	path   string
	onStep func(step string)
}

// Open opens the node whose root is mounted at path ("/" on the bare host).
func Open(path string) (*Host, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the node's root: %w", err)
	}
	return &Host{root: root, path: path}, nil
}

// Close closes it.
func (h *Host) Close() error { return h.root.Close() }

// Socket is where this process finds the socket that the node has at name
// ("/run/docker.sock"). Links on the way are those of the node, as in ReadFile:
// the kernel would follow an absolute one out of the root.
func (h *Host) Socket(name string) string {
	resolved, err := h.resolve(name)
	if err != nil {
		resolved = name // to dial it says what is wrong
	}
	return filepath.Join(h.path, resolved)
}

// OnStep has fn called at each visible step of a change ("renamed"), for tests
// that end the process there. It is set before the first change.
func (h *Host) OnStep(fn func(step string)) { h.onStep = fn }

func (h *Host) step(name string) {
	if h.onStep != nil {
		h.onStep(name)
	}
}
