package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxProcesses = 32768   // looked at in one pass, kernel.pid_max's default
	maxFiles     = 1 << 16 // of one process
	maxSmallFile = 64 << 10
)

// procfs reads a mounted /proc. Its own files are the kernel's; what it reads
// through a process's root is that container's, and hostile.
type procfs string

func (p procfs) path(pid int, name string) string {
	return filepath.Join(string(p), strconv.Itoa(pid), name)
}

// readable tells whether the processes of others can be looked into. One of them
// may be this process, and some refuse: two are enough.
func (p procfs) readable() error {
	n := 0
	refused := errors.New("it has no processes")
	err := p.each(context.Background(), func(pid int) bool {
		_, err := p.netns(pid)
		if err == nil {
			n++
		} else {
			refused = err
		}
		return n < 2
	})
	if err == nil && n < 2 {
		err = refused
	}
	return err
}

// netns names the network namespace of a process.
func (p procfs) netns(pid int) (string, error) {
	return os.Readlink(p.path(pid, "ns/net"))
}

// each calls fn with the pid of every process until fn returns false.
func (p procfs) each(ctx context.Context, fn func(pid int) bool) error {
	n := 0
	err := eachName(string(p), func(name string) bool {
		pid, err := strconv.Atoi(name)
		if err != nil {
			return true
		}
		n++
		return n <= maxProcesses && ctx.Err() == nil && fn(pid)
	})
	return errors.Join(err, ctx.Err())
}

// eachName calls fn with the names in a directory until fn returns false. It
// never holds more than a few of them.
func eachName(dir string, fn func(name string) bool) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if !fn(name) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// census lists all processes by their network namespace.
type census struct {
	at   time.Time // when it began
	pids map[string][]int
}

// census is the dear part of Locate: one readlink for each process.
func (p procfs) census(ctx context.Context) (*census, error) {
	c := &census{at: time.Now(), pids: make(map[string][]int)}
	err := p.each(ctx, func(pid int) bool {
		if ns, err := p.netns(pid); err == nil { // else it has ended
			c.pids[ns] = append(c.pids[ns], pid)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return c, nil
}

// byContainer returns one process for each container that has any.
func (p procfs) byContainer(ctx context.Context) (map[string]int, error) {
	pids := make(map[string]int)
	err := p.each(ctx, func(pid int) bool {
		for _, id := range p.containers(pid) {
			if _, ok := pids[id]; !ok {
				pids[id] = pid
			}
		}
		return true
	})
	return pids, err
}

// holders returns those of the processes that hold one of the sockets.
func (p procfs) holders(ctx context.Context, pids []int, inodes []uint64) []int {
	wanted := make(map[string]bool, len(inodes))
	for _, inode := range inodes {
		wanted[fmt.Sprintf("socket:[%d]", inode)] = true
	}
	const most = 8 // a socket that more share tells nothing
	var holders []int
	for _, pid := range pids {
		if ctx.Err() != nil || len(holders) == most {
			break
		}
		dir, n := p.path(pid, "fd"), 0
		// An error means that the process has ended.
		_ = eachName(dir, func(name string) bool {
			n++
			if target, err := os.Readlink(filepath.Join(dir, name)); err == nil && wanted[target] {
				holders = append(holders, pid)
				return false
			}
			return n < maxFiles && (n%256 != 0 || ctx.Err() == nil)
		})
	}
	return holders
}

// containers returns the ids of the containers that the process runs in.
func (p procfs) containers(pid int) []string {
	return containerIDs(p.small(pid, "cgroup"))
}

// comm is the name of the process.
func (p procfs) comm(pid int) string {
	return printable(strings.TrimSuffix(p.small(pid, "comm"), "\n"))
}

// small reads a file of procfs of which only the beginning matters; "" when the
// process has ended.
func (p procfs) small(pid int, name string) string {
	f, err := os.Open(p.path(pid, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	if err != nil {
		return ""
	}
	return string(b)
}

// libc is the libc of the process.
func (p procfs) libc(pid int) string {
	f, err := os.Open(p.path(pid, "maps"))
	if err != nil {
		return ""
	}
	defer f.Close()
	return libcOf(f)
}

// containerFile reads a file as the process sees it. Symbolic links cannot lead
// out of the process's root. Only a regular file with a size is read: what has
// none is a FIFO, a device or a file of procfs (kmsg), which may block.
func (p procfs) containerFile(pid int, name string) (string, error) {
	root, err := os.OpenRoot(p.path(pid, "root"))
	if err != nil {
		return "", err
	}
	defer root.Close()
	// Twice: to open a device may already do something, and between the two
	// looks the file may be replaced.
	if info, err := root.Stat(name); err != nil {
		return "", err
	} else if err := plain(info); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if err := plain(info); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, min(info.Size(), maxSmallFile)))
	return string(b), err
}

var errNotPlain = errors.New("not a regular file with a size")

func plain(info fs.FileInfo) error {
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return errNotPlain
	}
	return nil
}

// udp returns the inodes of the sockets in the process's network namespace that
// fit the client best.
func (p procfs) udp(pid int, client netip.AddrPort) ([]uint64, error) {
	var (
		inodes []uint64
		best   = noFit
		errs   []error
	)
	for _, name := range []string{"net/udp", "net/udp6"} { // udp6 is missing without IPv6
		f, err := os.Open(p.path(pid, name))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if found, fit := udpInodes(f, client); fit > best {
			inodes, best = found, fit
		}
		_ = f.Close()
	}
	if len(errs) == 2 {
		return nil, errors.Join(errs...)
	}
	return inodes, nil
}
