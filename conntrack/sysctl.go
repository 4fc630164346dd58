package conntrack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// sysctl is an open file below /proc/sys/net: it keeps to the network namespace
// that it was opened in, whatever thread reads it.
type sysctl struct {
	name string
	file *os.File // nil when the kernel has no such setting
}

func openSysctl(name string) (sysctl, error) {
	f, err := os.Open("/proc/sys/net/netfilter/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return sysctl{name: name}, nil
	}
	if err != nil {
		return sysctl{}, fmt.Errorf("open sysctl: %w", err)
	}
	return sysctl{name: name, file: f}, nil
}

// read gives the setting's value, "" when the kernel has no such setting.
func (s sysctl) read() (string, error) {
	if s.file == nil {
		return "", nil
	}
	var b [64]byte
	n, err := s.file.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read sysctl net.netfilter.%s: %w", s.name, err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

func (s sysctl) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
