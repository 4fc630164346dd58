package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// observer is a program that watches.
type observer struct {
	name string
	args []string
	// ready returns an error as long as the process does not watch yet.
	ready func(pid int) error
	// lost is how many messages or packets the process missed: while it runs,
	// or, when dying is set, from what it said at its end.
	lost  func(pid int, said string) (float64, error)
	dying bool
}

// result is what one observer spent on one load.
type result struct {
	perUnit  float64 // µs of CPU for each lookup or flow, above idle
	idle     float64 // µs of CPU a second without any traffic
	lost     float64 // messages or packets that the kernel had no room for
	resident float64 // MiB
}

// measure runs an observer in the node's namespace: first idle, then under the
// load.
func measure(ctx context.Context, l *lab.Lab, o observer, load load, window time.Duration) (r result, err error) {
	// Entries of the run before would end, with a message each, in this one.
	if err := l.Node().Do(flush); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, o.args[0], o.args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr // standard output goes to /dev/null
	if err := l.Node().Start(cmd); err != nil {
		return r, err
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Signal(unix.SIGTERM)
			_ = cmd.Wait() // the exit code tells nothing
		}
	}
	defer func() {
		stop()
		if err != nil {
			err = fmt.Errorf("%w; it said: %s", err, stderr.String())
		}
	}()
	pid := cmd.Process.Pid
	if err := lab.Until(ctx, 10*time.Second, func() error { return o.ready(pid) }); err != nil {
		return r, err
	}
	rest(ctx, lag) // what it does once, at its start, is not idle
	begin, err := cpu(pid)
	if err != nil {
		return r, err
	}
	rest(ctx, window)
	idle, err := cpu(pid)
	if err != nil {
		return r, err
	}
	n, err := load.run(ctx, window)
	if err != nil {
		return r, err
	}
	rest(ctx, lag)
	busy, err := cpu(pid)
	if err != nil {
		return r, err
	}
	if r.resident, err = resident(pid); err != nil {
		return r, err
	}
	if o.dying {
		stop()
	}
	if r.lost, err = o.lost(pid, stderr.String()); err != nil {
		return r, err
	}
	perSecond := float64((idle - begin).Microseconds()) / window.Seconds()
	r.perUnit = (float64((busy - idle).Microseconds()) - perSecond*(window+lag).Seconds()) / float64(n)
	r.idle = perSecond
	return r, nil
}

// lag is the time that observers may take for their start, and for the last of a
// load.
const lag = 300 * time.Millisecond

func rest(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// flush empties the table of the namespace.
func flush() error {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return err
	}
	return errors.Join(conn.Flush(), conn.Close())
}

// cpu is the time that a process has run on a CPU so far (all threads).
func cpu(pid int) (total time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("process %d has ended: %w", pid, err)
	}
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// resident is the process's resident memory in MiB.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
