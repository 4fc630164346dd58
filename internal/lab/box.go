package lab

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
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CNI is how a box connects its pods.
type CNI string

const (
	// PTP gives each pod a link and a host route on the node, much as Calico does.
	PTP CNI = "ptp"
	// Bridge connects the pods' links by a bridge.
	Bridge CNI = "bridge"
)

// bridgeLink is the name of the bridge.
const bridgeLink = "cni0"

// BoxConfig says what a box looks like. The zero value will do.
type BoxConfig struct {
	// CNI is PTP when it is empty.
	CNI CNI
	// PodRange is the number of addresses that pods have, of each family, 200
	// when it is 0. With 1, the next pod gets the address that was freed.
	PodRange int
	// Files are put into its root before it boots: the path without the first
	// slash, and the content.
	Files map[string]string
	// Setup is a shell script that runs in its root after that, before it boots.
	Setup string
	// LiveRestore has docker's containers go on while dockerd is restarted.
	LiveRestore bool
}

// Box is a booted Debian with systemd, containerd and dockerd, whose network
// namespace is the node of its lab: services, holders and servers of the lab
// apply to its pods. Its methods may be called from several goroutines.
type Box struct {
	lab     *Lab
	dir     string
	id      string // its machine id
	images  string // the archive of those that it has from the start
	cgroups []string
	log     *os.File // of its first process until the journal runs
	init    *exec.Cmd
	exited  chan struct{} // closed when init.Wait has returned
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient

	closing sync.Once
	err     error
}

// Init is the pid of the box's first process as the machine sees it.
func (b *Box) Init() int { return b.init.Process.Pid }

// Root is the path of the box's root as the machine sees it. An agent in the
// node's network namespace gets it as its host_root.
func (b *Box) Root() string { return filepath.Join("/proc", strconv.Itoa(b.Init()), "root") }

// Run runs a command in all namespaces of the box and returns what it prints to
// standard output.
func (b *Box) Run(ctx context.Context, args ...string) (string, error) {
	return b.run(ctx, nil, args...)
}

func (b *Box) run(ctx context.Context, stdin *os.File, args ...string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("run in the box: no command")
	}
	enter := []string{
		"--target", strconv.Itoa(b.Init()), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
		"env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		// It is nsenter's child, which is all that the context's end kills.
		"setpriv", "--pdeathsig", "KILL",
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = stdin
	}
	// What the command leaves running must not keep Wait from returning; but Wait fails
	// when this is over before all is read.
	cmd.WaitDelay = 30 * time.Second
	err := b.lab.node.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), errors.Join(ctx.Err(), fmt.Errorf("run %s in the box: %w: %s", args[0], err, tail(stderr.Bytes())))
	}
	return stdout.String(), nil
}

// StartDocker starts dockerd, whose socket is run/docker.sock under Root, waits
// until it answers and gives it the images of the box.
func (b *Box) StartDocker(ctx context.Context) error {
	if _, err := b.Run(ctx, "systemctl", "start", "docker.service"); err != nil {
		return fmt.Errorf("start dockerd: %w\n%s", err, b.journal())
	}
	if err := b.dockerLoad(ctx, b.images); err != nil {
		return fmt.Errorf("give dockerd its images: %w", err)
	}
	return nil
}

// journal is the end of what the box has to say.
func (b *Box) journal() string {
	// Not the caller's context, which may have ended; that is why it is asked.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.lab.ctx), 5*time.Second)
	defer cancel()
	var out strings.Builder
	first, err := os.ReadFile(b.log.Name())
	fmt.Fprintf(&out, "its first process: %s\n", tail(first))
	if err != nil {
		fmt.Fprintln(&out, err)
	}
	var entries string
	if err = b.rooted(); err == nil {
		entries, err = b.Run(ctx, "journalctl", "--no-pager", "--lines=40", "--output=short-monotonic")
	}
	fmt.Fprintf(&out, "its journal: %s\n", entries)
	if err != nil {
		fmt.Fprintln(&out, err)
	}
	return out.String()
}

// Close kills the box with all its pods and waits until nothing of it is left.
// Calls after the first return what the first did.
func (b *Box) Close() error {
	b.closing.Do(func() {
		if err := b.close(); err != nil {
			b.err = fmt.Errorf("close box: %w", err)
		}
	})
	return b.err
}

func (b *Box) close() error {
	var errs []error
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
	}
	if b.init != nil {
		// With the first process of a pid namespace all others of it end.
		if err := b.init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill its init: %w", err)
		}
		<-b.exited
		errs = append(errs, b.removeLinks())
	}
	if b.log != nil {
		errs = append(errs, b.log.Close())
	}
	errs = append(errs, removeCgroups(b.cgroups))
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	b.lab.mu.Lock()
	b.lab.booted = false
	b.lab.mu.Unlock()
	return errors.Join(errs...)
}

// removeLinks removes the box's bridges from the node and waits until the links
// of its pods are gone, which the kernel removes some time after the last process.
func (b *Box) removeLinks() error {
	return b.lab.node.netlink(func(h *netlink.Handle) error {
		links, err := linkList(h)
		if err != nil {
			return err
		}
		for _, link := range links {
			if link.Type() != "bridge" {
				continue
			}
			if err := h.LinkDel(link); err != nil {
				return fmt.Errorf("remove link %s: %w", link.Attrs().Name, err)
			}
		}
		err = poll(func() (bool, error) {
			links, err := linkList(h)
			for _, link := range links {
				if strings.HasPrefix(link.Attrs().Name, podLinks) {
					return false, nil
				}
			}
			return true, err
		})
		if err != nil {
			return fmt.Errorf("wait for the links of its pods to end: %w", err)
		}
		return nil
	})
}
