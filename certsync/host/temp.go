package host

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
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
