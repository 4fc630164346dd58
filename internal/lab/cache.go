package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cached returns the path of the file name that was built from what the inputs
// say. When there is none yet, build makes it, under this name, in the empty
// directory that it is given. Only one process builds a file at a time.
func cached(ctx context.Context, name string, inputs []string, build func(dir string) error) (string, error) {
	base, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.Join(inputs, "\x00")))
	dir := filepath.Join(base, hex.EncodeToString(sum[:8]))
	path := filepath.Join(dir, name)
	if ok, err := exists(path); ok || err != nil {
		return path, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	locked, err := lock(ctx, filepath.Join(dir, name+".lock"))
	if err != nil {
		return "", err
	}
	defer locked.Close()
	if ok, err := exists(path); ok || err != nil {
		return path, err
	}
	temp := path + ".build"
	if err := os.RemoveAll(temp); err != nil { // a crashed builder's: this one has the lock
		return "", err
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		return "", err
	}
	err = build(temp)
	if err == nil {
		err = os.Rename(filepath.Join(temp, name), path)
	}
	if err = errors.Join(err, os.RemoveAll(temp)); err != nil {
		return "", err
	}
	return path, nil
}

// cacheDir is where what is built is kept, outside any checkout.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory: %w", err)
	}
	dir := filepath.Join(base, "nodestead-lab")
	return dir, os.MkdirAll(dir, 0o755)
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// lock takes the lock file, waiting for other processes and goroutines as long
// as ctx lasts. Closing the file releases it.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
}
