package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// FileState is all that a change of a file would change, its times apart.
type FileState struct {
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64  // of regular files
	SHA256   string // of regular files, in hex
	Target   string // of symbolic links
}

// Snapshot is the state of these files and directories of the box, and of all in
// them, by their paths. Those that do not exist are left out. Links are not
// followed, but for relative ones on the way to the paths.
func (b *Box) Snapshot(paths ...string) (map[string]FileState, error) {
	root, err := os.OpenRoot(b.Root())
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	defer root.Close()
	states := make(map[string]FileState)
	for _, p := range paths {
		// In a root, "/" is ".".
		start := strings.TrimPrefix(path.Clean("/"+p), "/")
		if start == "" {
			start = "."
		}
		if _, err := root.Lstat(start); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := fs.WalkDir(root.FS(), start, func(name string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			states["/"+name], err = stateOf(root, name)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("snapshot of %s: %w", p, err)
		}
	}
	return states, nil
}

func stateOf(root *os.Root, name string) (FileState, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return FileState{}, err
	}
	owner := info.Sys().(*syscall.Stat_t)
	s := FileState{Mode: info.Mode(), UID: owner.Uid, GID: owner.Gid}
	switch {
	case s.Mode&fs.ModeSymlink != 0:
		s.Target, err = root.Readlink(name)
	case s.Mode.IsRegular():
		s.Size = info.Size()
		s.SHA256, err = hashOf(root, name)
	}
	return s, err
}

func hashOf(root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
