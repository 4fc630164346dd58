package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is how long a box may take until it runs pods.
const bootTime = time.Minute

// Boot boots a box and waits until it can run pods, which takes a second or two. The
// first time on a machine it makes a Debian, which takes a minute or two. A lab
// has one box at a time, which ends with it.
func (l *Lab) Boot(ctx context.Context, cfg BoxConfig) (*Box, error) {
	b, err := l.boot(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("boot a box: %w", err)
	}
	return b, nil
}

func (l *Lab) boot(ctx context.Context, cfg BoxConfig) (*Box, error) {
	switch cfg.CNI {
	case "":
		cfg.CNI = PTP
	case PTP, Bridge:
	default:
		return nil, fmt.Errorf("unknown CNI %q", cfg.CNI)
	}
	base, err := l.boxBase()
	if err != nil {
		return nil, fmt.Errorf("make its root file system: %w", err)
	}
	images, err := l.boxImages()
	if err != nil {
		return nil, err
	}
	if err := l.takeBox(); err != nil {
		return nil, err
	}
	b := &Box{lab: l, images: images, exited: make(chan struct{})}
	if err := b.start(cfg, base); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := l.atClose(b.Close); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if err := b.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, b.journal()), b.Close())
	}
	return b, nil
}

// takeBox makes sure that a lab has one box at a time.
func (l *Lab) takeBox() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("lab: %w", os.ErrClosed)
	}
	if l.booted {
		return errors.New("the lab has one already")
	}
	l.booted = true
	return nil
}

// start starts the first process of the box.
func (b *Box) start(cfg BoxConfig, base string) error {
	var err error
	if b.dir, err = os.MkdirTemp(b.lab.dir, "box-*"); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(b.dir, "scratch"), 0o755); err != nil {
		return err
	}
	b.lab.mu.Lock()
	names := slices.Clone(b.lab.names)
	b.lab.mu.Unlock()
	if b.id, err = writeBoxFiles(filepath.Join(b.dir, "files"), cfg, names); err != nil {
		return fmt.Errorf("write its files: %w", err)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	all, err := hierarchies(string(self))
	if err != nil {
		return err
	}
	name := "nodestead-lab-" + filepath.Base(b.lab.dir) + "-" + filepath.Base(b.dir)
	if b.cgroups, err = b.lab.addCgroups(name, all); err != nil {
		return fmt.Errorf("make its cgroups: %w", err)
	}
	var mounts []string
	for _, h := range all {
		if h.options != "" {
			h.name += "=" + h.options
		}
		mounts = append(mounts, h.name)
	}
	script, err := boxSources.ReadFile("box/init.sh")
	if err != nil {
		return err
	}
	if b.log, err = os.Create(filepath.Join(b.dir, "log")); err != nil {
		return err
	}
	// The roots of a new cgroup namespace are the cgroups that it is made in.
	const join = `for dir; do echo 0 >"$dir/cgroup.procs"; done; exec unshare --cgroup sh -c "$INIT"`
	cmd := exec.Command("/bin/sh", append([]string{"-euc", join, "sh"}, b.cgroups...)...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"INIT=" + string(script),
		"BASE=" + base,
		"DIR=" + b.dir,
		"HIERARCHIES=" + strings.Join(mounts, " "),
		"SETUP=" + cfg.Setup,
	}
	cmd.Stdout, cmd.Stderr = b.log, b.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := b.lab.node.Start(cmd); err != nil {
		return err
	}
	b.init = cmd
	go func() {
		defer close(b.exited)
		_ = cmd.Wait() // it was killed, or ready says that it ended
	}()
	return nil
}

// ready waits until the box can run pods.
func (b *Box) ready(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	until := func(what string, ok func() error) error {
		var last error
		err := Until(ctx, bootTime, func() error {
			select {
			case <-b.exited:
				stop() // no use to wait
				return fmt.Errorf("its init ended: %v", b.init.ProcessState)
			default:
			}
			if err := ok(); err == nil || last == nil || ctx.Err() == nil {
				last = err
			} // else it only says that ctx has ended
			return last
		})
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		return nil
	}
	socket := filepath.Join(b.Root(), "run/containerd/containerd.sock")
	err := until("containerd's socket", func() error {
		if err := b.rooted(); err != nil {
			return err
		}
		_, err := os.Stat(socket)
		return err
	})
	if err != nil {
		return err
	}
	if err := b.dial(socket); err != nil {
		return err
	}
	if err := until("containerd", func() error { return b.podsReady(ctx) }); err != nil {
		return err
	}
	return b.load(ctx, b.images, []string{pauseImage, ResolversImage})
}

// rooted returns an error until the box has its own root. Before, Root is that
// of the machine, which is not to be touched.
func (b *Box) rooted() error {
	id, err := os.ReadFile(filepath.Join(b.Root(), "etc/machine-id"))
	if err == nil && strings.TrimSpace(string(id)) != b.id {
		err = errors.New("it has no root of its own")
	}
	return err
}
