package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stateDir holds one directory for each lab of this machine.
const stateDir = "/run/nodestead-lab"

// childrenFile is the file in a lab's directory that lists its children, one
// process on each line.
const childrenFile = "children"

// process names a process for good: a pid is used again, a pid with the time at
// which it started (in clock ticks since boot) is not.
type process struct {
	pid   int
	start uint64
}

// processOf returns the process that has this pid now, and its state, 'Z' for
// one that has ended and whose parent has not asked for it yet.
func processOf(pid int) (p process, state byte, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, 0, err
	}
	// The second field is the command in parentheses, which may hold anything.
	// What follows it begins with the third, the state; the start time is the 22nd.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return process{}, 0, fmt.Errorf("stat of process %d has %d fields after the command", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	return process{pid, start}, fields[0][0], nil
}

// String is the form in which a process stands in files and directory names.
func (p process) String() string { return fmt.Sprintf("%d-%d", p.pid, p.start) }

// parseProcess reads what String wrote.
func parseProcess(s string) (process, error) {
	pid, start, ok := strings.Cut(s, "-")
	if !ok {
		return process{}, fmt.Errorf("no process: %q", s)
	}
	var p process
	var err1, err2 error
	p.pid, err1 = strconv.Atoi(pid)
	p.start, err2 = strconv.ParseUint(start, 10, 64)
	return p, errors.Join(err1, err2)
}

// alive reports whether the process still runs. A zombie does not, and may stay
// for ever where the first process is no init.
func (p process) alive() bool {
	now, state, err := processOf(p.pid)
	return err == nil && now == p && state != 'Z'
}

// kill kills the process if it still exists.
func (p process) kill() error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.pid, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // asked after the open: from here on fd is this process or none
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return nil
}

// clearStale removes what labs left whose owner is gone: children that still
// live, cgroups, and the directory. Namespaces and mounts have ended with the owner.
func clearStale(log *slog.Logger) error {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for stale labs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		owner, err := ownerOf(e.Name())
		if err != nil || owner.alive() {
			continue
		}
		dir := filepath.Join(stateDir, e.Name())
		log.Info("clearing what a lab left", "dir", dir)
		if err := clearDir(dir); err != nil {
			errs = append(errs, fmt.Errorf("clear stale lab %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// ownerOf reads the owner from the name of a lab's directory, PID-START-RANDOM.
func ownerOf(name string) (process, error) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return process{}, fmt.Errorf("no directory of a lab: %q", name)
	}
	return parseProcess(name[:i])
}

// clearDir kills the children that a lab's directory lists, removes the cgroups
// that it lists, and the directory.
func clearDir(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, childrenFile))
	if ignoreMissing(err) != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(b)) {
		// A last line that was cut short is no process that was ever started:
		// it is written in one piece.
		if child, err := parseProcess(strings.TrimSpace(line)); err == nil {
			errs = append(errs, child.kill())
		}
	}
	b, err = os.ReadFile(filepath.Join(dir, cgroupsFile))
	errs = append(errs, ignoreMissing(err), removeCgroups(strings.Fields(string(b))), os.RemoveAll(dir))
	return errors.Join(errs...)
}
