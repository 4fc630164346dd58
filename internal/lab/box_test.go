package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func boot(t *testing.T, l *Lab, cfg BoxConfig) *Box {
	t.Helper()
	b, err := l.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func runInBox(t *testing.T, b *Box, args ...string) string {
	t.Helper()
	out, err := b.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBox proves that a box is a node of its own: systemd and all that pods
// need runs in it, none of the machine's processes is seen, and its network is
// that of the lab's node.
func TestBox(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	b := boot(t, l, BoxConfig{})

	if got := strings.TrimSpace(runInBox(t, b, "systemctl", "is-system-running", "--wait")); got != "running" {
		t.Errorf("the system is %s:\n%s", got, runInBox(t, b, "systemctl", "--failed", "--no-pager"))
	}
	if got := runInBox(t, b, "cat", "/proc/1/comm"); got != "systemd\n" {
		t.Errorf("the first process is %q", got)
	}
	if got := runInBox(t, b, "hostname"); got != "node\n" {
		t.Errorf("its host name is %q", got)
	}
	var node string
	err := l.Node().Do(func() (err error) {
		node, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(runInBox(t, b, "readlink", "/proc/self/ns/net")); got != node {
		t.Errorf("its network is %s, that of the node is %s", got, node)
	}
	if _, err := os.Stat(filepath.Join(b.Root(), "run/dbus/system_bus_socket")); err != nil {
		t.Errorf("from outside: %v", err)
	}
	if _, err := b.Run(t.Context(), "sh", "-c", "echo so it is >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: so it is") {
		t.Errorf("a command that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := b.Run(ctx, "sleep", "1000")
		done <- err
	}()
	sleeps := func() bool { return strings.Contains(runInBox(t, b, "ps", "-e"), "sleep") }
	waitFor(t, "sleep to run", sleeps)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a command that takes too long: %v", err)
	}
	waitFor(t, "sleep to be killed", func() bool { return !sleeps() })

	if _, err := l.Boot(t.Context(), BoxConfig{}); err == nil {
		t.Error("a second box was booted beside the first")
	}
}

// TestBoxDocker proves that dockerd runs, and that what it does to the node's
// network does not cut pods off.
func TestBoxDocker(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	_, backends := addServers(t, l, 1, service4, Rule{Addrs: answers})
	addService(t, l, service4, Random, backends...)
	b := boot(t, l, BoxConfig{})
	if err := b.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := runInBox(t, b, "docker", "info", "--format", "{{.CgroupDriver}} {{.Driver}}"); !strings.Contains(got, "overlay2") {
		t.Errorf("docker says %q", got)
	}
	p := runPod(t, b, CRIPodConfig{Name: "pod", Nameservers: []netip.Addr{service4}, Options: patient()})
	got, err := p.Resolve(t.Context(), "", Glibc, 1, "ok.test")
	if err != nil {
		t.Fatal(err)
	}
	allOK(t, got)
}

// TestBoxFails proves that a box that does not get ready says what it was doing.
func TestBoxFails(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	for _, cfg := range []BoxConfig{
		{CNI: "none"},
		{PodRange: -1},
		{PodRange: 201},
		{Files: map[string]string{"../x": ""}},
	} {
		if _, err := l.Boot(t.Context(), cfg); err == nil {
			t.Errorf("a box with %+v was booted", cfg)
		}
	}
	if dirs, err := filepath.Glob(filepath.Join(l.dir, "box-*")); err != nil || len(dirs) > 0 {
		t.Errorf("directories: %v, %v", dirs, err)
	}

	b := boot(t, l, BoxConfig{Files: map[string]string{"etc/motd": "hello"}})
	if got := runInBox(t, b, "cat", "/etc/motd"); got != "hello" {
		t.Errorf("a file of its own: %q", got)
	}
	runInBox(t, b, "sh", "-c", "echo nonsense >/etc/cni/net.d/10-lab.conflist; systemctl restart containerd.service")
	waitFor(t, "containerd to say that it has no network", func() bool {
		err := b.podsReady(t.Context())
		return err != nil && strings.Contains(err.Error(), "NetworkReady: ")
	})
	var err error
	waitFor(t, "that to be said", func() bool { // a second may be over before containerd has been asked
		if err := b.conn.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = b.ready(ctx)
		return err == nil || strings.Contains(err.Error(), "NetworkReady: ")
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for containerd: ") {
		t.Errorf("without a network: %v", err)
	}
	says := func(want string) func() bool { return func() bool { return strings.Contains(b.journal(), want) } }
	waitFor(t, "the journal to say it", says("failed to load cni during init"))
	waitFor(t, "the journal to have something of systemd's own", func() bool {
		// It does not wait for a journal that is busy: what it says then is lost.
		runInBox(t, b, "systemd-run", "--quiet", "true")
		return says("systemd[1]: ")()
	})

	// An init that ends is not waited for.
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	err = b.ready(t.Context())
	if err == nil || !strings.Contains(err.Error(), "its init ended: signal: killed") {
		t.Errorf("after its end: %v", err)
	}
}

// TestBoxNothingLeft proves that nothing is left of a box after Close, and that
// the next one in the same lab gets the same addresses.
func TestBoxNothingLeft(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	for _, cni := range []CNI{PTP, Bridge, PTP} {
		b := boot(t, l, BoxConfig{CNI: cni})
		inside := processesOf(t, b)
		// Started by the lab in the box, not by the box's init.
		done := make(chan error)
		go func() {
			_, err := b.Run(t.Context(), "sleep", "1000")
			done <- err
		}()
		p := runPod(t, b, CRIPodConfig{Name: "pod"})
		if want := hostOf(boxNet4, 2); p.Addr4 != want {
			t.Errorf("the first pod's address is %v, want %v", p.Addr4, want)
		}
		waitFor(t, "sleep to run", func() bool { return strings.Contains(runInBox(t, b, "ps", "-e"), "sleep") })
		for range 2 {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err == nil {
			t.Error("the command ended by itself")
		}
		left(t, l, inside)
		if _, err := b.Run(t.Context(), "true"); err == nil {
			t.Error("a command ran in a closed box")
		}
	}
	// A lab closes its box.
	b := boot(t, l, BoxConfig{})
	inside := processesOf(t, b)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	left(t, nil, inside)
	if _, err := l.Boot(t.Context(), BoxConfig{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("boot in a closed lab: %v", err)
	}
}

// processesOf opens the pid namespace of a box. As long as it is open, no other
// namespace has its number.
func processesOf(t *testing.T, b *Box) *os.File {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", b.Init()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// left fails the test if there is a process in the pid namespace, or a cgroup, a
// directory or a link of a lab's box.
func left(t *testing.T, l *Lab, pids *os.File) {
	t.Helper()
	inode, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", pids.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if got, err := os.Readlink(link); err == nil && got == inode {
			t.Errorf("%s is in the box", link)
		}
	}
	if l == nil {
		return
	}
	b, err := os.ReadFile(filepath.Join(l.dir, cgroupsFile))
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.Lines(string(b)) {
		if _, err := os.Stat(strings.TrimSpace(path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("cgroup %s: %v", path, err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(l.dir, "box-*"))
	if err != nil || len(dirs) > 0 {
		t.Errorf("directories: %v, %v", dirs, err)
	}
	err = l.Node().netlink(func(h *netlink.Handle) error {
		links, err := linkList(h)
		for _, link := range links {
			if name := link.Attrs().Name; name != "lo" && name != Uplink {
				t.Errorf("link %s", name)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHierarchies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, self string
		want       []hierarchy
		cgroup     string // of "x" in the first one
	}{
		{
			name: "hybrid",
			self: "4:cpu,cpuacct:/a/b\n2:name=systemd:/\n0::/\n",
			want: []hierarchy{
				{name: "cpu,cpuacct", options: "cpu,cpuacct", path: "/a/b"},
				{name: "systemd", options: "none,name=systemd", path: "/"},
				{name: "unified", path: "/"},
			},
			cgroup: "/sys/fs/cgroup/cpu,cpuacct/a/b/x",
		},
		{
			name:   "version 2",
			self:   "0::/user.slice/session-1.scope\n",
			want:   []hierarchy{{name: ".", path: "/"}},
			cgroup: "/sys/fs/cgroup/x",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := hierarchies(test.self)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got := got[0].cgroup("x"); got != test.cgroup {
				t.Errorf("cgroup %s, want %s", got, test.cgroup)
			}
		})
	}
	if got, err := hierarchies("garbage\n"); err == nil {
		t.Errorf("garbage: %v", got)
	}
}

// inParallel calls fn n times at once.
func inParallel(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}
