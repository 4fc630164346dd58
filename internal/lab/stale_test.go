package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// crashEnv makes the test binary make a lab and wait to be killed.
const crashEnv = "NODESTEAD_LAB_CRASH"

// crash makes a lab with a pod, a child and a box, prints the lab's directory,
// the child's pid and that of the box's init, and waits.
func crash() int {
	err := func() error {
		l, err := New(context.Background(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		p, err := l.AddPod(PodConfig{Name: "pod", Nameservers: []netip.Addr{service4}})
		if err != nil {
			return err
		}
		child := exec.Command("sleep", "1000")
		if err := p.Start(child); err != nil {
			return err
		}
		b, err := l.Boot(context.Background(), BoxConfig{})
		if err != nil {
			return err
		}
		fmt.Println(l.Dir(), child.Process.Pid, b.Init())
		return child.Wait()
	}()
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// TestCrash proves that nothing is left of a lab whose process was killed once
// the next lab was made.
func TestCrash(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	keepThread(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(line)
	if len(fields) != 3 {
		t.Fatalf("it printed %q", line)
	}
	dir := fields[0]
	var children []process
	for _, text := range fields[1:] {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		child, _, err := processOf(pid)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	list, err := os.ReadFile(filepath.Join(dir, cgroupsFile))
	if err != nil {
		t.Fatal(err)
	}
	cgroups := strings.Fields(string(list))
	if len(cgroups) == 0 {
		t.Error("the box has no cgroups")
	}

	// A living owner's lab stays.
	if err := clearStale(slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err != nil || !children[0].alive() || !children[1].alive() {
		t.Errorf("a living lab was cleared: %v, children alive: %v, %v", err, children[0].alive(), children[1].alive())
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := ignoreExit(cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	ForTest(t)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of the killed lab: %v", err)
	}
	for _, path := range cgroups {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("cgroup %s of the killed lab: %v", path, err)
		}
	}
	waitFor(t, "the killed lab's children to be gone", func() bool { return !slices.ContainsFunc(children, process.alive) })
}

// keepThread keeps the test on its thread, which lives as long. A child with
// Pdeathsig is killed when the thread that started it ends, and one that served
// the test for a moment may serve a namespace next, and end with it.
func keepThread(t *testing.T) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
}

// TestClearDir proves that a child that outlived its lab is killed, and that a
// process that only has its pid is not.
func TestClearDir(t *testing.T) {
	t.Parallel()
	keepThread(t)
	var children []*exec.Cmd
	var list strings.Builder
	for i := range 2 {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, cmd)
		p, _, err := processOf(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		p.start += uint64(i) // the second is another process, with the same pid
		list.WriteString(p.String() + "\n")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, childrenFile), []byte(list.String()+"garbage\n12"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := clearDir(dir); err != nil {
		t.Fatal(err)
	}
	killed, _, err := processOf(children[0].Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the child to be a zombie", func() bool { return !killed.alive() })
	err = children[0].Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("the child ended with %v, not killed", err)
	}
	if err := children[1].Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("a process that was not the lab's: %v", err)
	}
	if err := errors.Join(children[1].Process.Kill(), ignoreExit(children[1].Wait())); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}

func TestOwnerOf(t *testing.T) {
	t.Parallel()
	p := process{pid: 12, start: 3456}
	got, err := ownerOf(p.String() + "-789")
	if err != nil || got != p {
		t.Errorf("ownerOf = %v, %v, want %v", got, err, p)
	}
	for _, bad := range []string{"", "12", "12-34", "a-b-c", "--"} {
		if got, err := ownerOf(bad); err == nil {
			t.Errorf("ownerOf(%q) = %v", bad, got)
		}
	}
}

// TestNothingLeft proves that Close leaves no process, mount, namespace or file.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	servers, backends := addServers(t, l, 1, service4, Rule{Addrs: answers})
	addService(t, l, service4, Random, backends...)
	pod := addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{service4}})
	hold(t, l, 2, 0)
	waited := exec.Command("sleep", "1000")
	forgotten := exec.Command("sleep", "1000")
	for _, cmd := range []*exec.Cmd{waited, forgotten} {
		if err := pod.Start(cmd); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() { done <- waited.Wait() }()

	var inodes []string
	for _, n := range []*Namespace{l.Node(), l.Remote(), pod.Namespace, servers[0].Namespace} {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n.FD()))
		if err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, link)
	}
	if got := holders(t, inodes); got == 0 {
		t.Fatal("nothing holds the namespaces: the test cannot see them")
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err == nil {
		t.Error("the child ended by itself")
	}
	if err := ignoreExit(forgotten.Wait()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab's directory: %v", err)
	}
	waitFor(t, "the namespaces to end", func() bool { return holders(t, inodes) == 0 })
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), l.Dir()) {
		t.Errorf("a mount of the lab is left:\n%s", mounts)
	}

	// A closed lab says so.
	if _, err := l.AddPod(PodConfig{Name: "late"}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("add a pod to a closed lab: %v", err)
	}
	if _, err := l.AddServer(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("add a server to a closed lab: %v", err)
	}
	if err := l.AddService(service4, Random, backends...); err == nil {
		t.Error("a service was added to a closed lab")
	}
	if err := pod.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("call in a closed namespace: %v", err)
	}
	if err := pod.Start(exec.Command("true")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("start in a closed namespace: %v", err)
	}
}

// holders counts the threads that are in one of the network namespaces and the
// descriptors of this process that hold one.
func holders(t *testing.T, inodes []string) int {
	t.Helper()
	var links []string
	for _, pattern := range []string{"/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/self/fd/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, found...)
	}
	n := 0
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue // gone in the meantime
		}
		for _, inode := range inodes {
			if target == inode {
				n++
			}
		}
	}
	return n
}
