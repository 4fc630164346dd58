package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNamespace(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	n := l.Node()

	wrong := errors.New("wrong")
	if err := n.Do(func() error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("Do returned %v, not the closure's error", err)
	}

	const name = "net/ipv4/ip_default_ttl"
	before, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Sysctl(name, "33"); err != nil {
		t.Fatal(err)
	}
	if got, err := n.ReadSysctl(name); got != "33" || err != nil {
		t.Errorf("sysctl = %q, %v, want 33", got, err)
	}
	if got, err := l.Remote().ReadSysctl(name); got == "33" || err != nil {
		t.Errorf("the other namespace's sysctl = %q, %v", got, err)
	}
	if after, _ := os.ReadFile("/proc/sys/" + name); string(after) != string(before) {
		t.Errorf("the machine's sysctl changed from %q to %q", before, after)
	}
	if err := n.Sysctl("net/no/such", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown sysctl: %v", err)
	}

	// A child is where the thread is.
	var inside string
	err = n.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != inside {
		t.Errorf("the child is in %s, the thread in %s", got, inside)
	}
	if err := n.Start(exec.Command("/no/such/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown program: %v", err)
	}

	// A closure that ends its goroutine, as t.FailNow does, ends the namespace
	// but hangs nobody.
	for range 2 {
		if err := n.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("closure that ended its goroutine: %v", err)
		}
	}
}

// TestThreads proves that no other goroutine ever runs on a namespace's thread.
func TestThreads(t *testing.T) {
	t.Parallel()
	machine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		l := ForTest(t)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				runtime.LockOSThread() // so that they need a thread each
				defer runtime.UnlockOSThread()
				if got, err := os.Readlink("/proc/thread-self/ns/net"); got != machine {
					t.Errorf("a goroutine runs in %s (%v), the machine is %s", got, err, machine)
				}
			})
		}
		wg.Wait()
	}
}

// TestManyPods proves that labs have room for the pods of a node, each with its own link.
func TestManyPods(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	links := make(map[string]bool)
	for range 20 {
		links[addPod(t, l, PodConfig{Name: "pod", Addresses: 10}).Link] = true
	}
	if len(links) != 20 {
		t.Errorf("20 pods have %d links", len(links))
	}
	err := l.Node().Do(func() error {
		for link := range links {
			if _, err := net.InterfaceByName(link); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := l.AddPod(PodConfig{Name: "pod", Addresses: 60}); err == nil {
		t.Error("more addresses than the network has")
	}
}

// TestLinkList proves that links that come and go meanwhile hide none.
func TestLinkList(t *testing.T) {
	t.Parallel()
	const count = 50
	l := ForTest(t)
	n, err := l.addNamespace("links")
	if err != nil {
		t.Fatal(err)
	}
	add := func(h *netlink.Handle, name string) netlink.Link {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}}
		if err := h.LinkAdd(bridge); err != nil {
			t.Error(err)
		}
		return bridge
	}
	handle := func() (h *netlink.Handle) {
		err := n.Do(func() (err error) {
			h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		return h
	}
	h, other := handle(), handle()
	for i := range count {
		add(h, fmt.Sprintf("br%d", i))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := other.LinkDel(add(other, "coming")); err != nil {
				t.Error(err)
			}
		}
	})
	interrupted := 0 // of the lists that are asked for once, of which there are as many
	err = poll(func() (bool, error) {
		if _, err := h.LinkList(); errors.Is(err, netlink.ErrDumpInterrupted) {
			interrupted++
		}
		links, err := linkList(h)
		found := 0
		for _, link := range links {
			if strings.HasPrefix(link.Attrs().Name, "br") {
				found++
			}
		}
		if found != count {
			t.Errorf("%d links of %d: %v", found, count, err)
		}
		return interrupted == 5 || t.Failed(), err
	})
	close(stop)
	wg.Wait()
	if err != nil {
		t.Error(err)
	}
}
