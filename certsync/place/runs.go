package place

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/host"
)

// maxCmdline is more than the part of a command line that matters.
const maxCmdline = 1 << 20

// runs are the pids of the processes that are rebuilding the node's bundle just
// now. Those of containers, which have a root of their own, do not count.
func runs(h *host.Host) ([]int, error) {
	entries, err := h.ReadDir("/proc")
	if err != nil {
		return nil, ignoreMissing(err)
	}
	root, err := os.Stat(h.Socket("/"))
	if err != nil {
		return nil, fmt.Errorf("stat the node's root: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := h.ReadFile(path.Join("/proc", e.Name(), "cmdline"), maxCmdline)
		if err != nil || !rebuilds(cmdline) {
			continue // it has ended, perhaps
		}
		// The kernel's link, not one of the node: it leads to the root itself,
		// whatever its text says.
		its, err := os.Stat(h.Socket("/proc/"+e.Name()) + "/root")
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH), err == nil && !os.SameFile(root, its):
		case err == nil, errors.Is(err, fs.ErrPermission): // then it may be the node's
			pids = append(pids, pid)
		default:
			return nil, fmt.Errorf("stat the root of process %d: %w", pid, err)
		}
	}
	return pids, nil
}

// rebuilds tells by a command line, as /proc has it, whether a process is one of
// the tools.
func rebuilds(cmdline []byte) bool {
	args := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
	if interpreter(path.Base(args[0])) {
		args = args[1:]
		for len(args) > 0 && strings.HasPrefix(args[0], "-") {
			args = args[1:]
		}
	}
	if len(args) == 0 {
		return false
	}
	switch path.Base(args[0]) {
	case "update-ca-certificates", "update-ca-trust", "trust-extract-compat":
		return true
	case "trust", "p11-kit":
		return len(args) > 1 && strings.HasPrefix(args[1], "extract")
	}
	return false
}

func interpreter(name string) bool {
	switch name {
	case "sh", "dash", "bash", "ash", "busybox":
		return true
	}
	return false
}
