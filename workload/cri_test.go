package workload

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const containerdSocket = "run/containerd/containerd.sock"

// Pods come and go, and the runtime tells.
func TestCRI(t *testing.T) {
	h := newHost(t)
	var gone farewells
	start := time.Now().Add(-time.Minute)
	one := fakePod{id: "a", name: "one", addrs: []string{"10.9.0.2", "fd09::2"}, containers: []string{"app"}, created: start}
	two := fakePod{id: "b", name: "two", addrs: []string{"10.9.0.3"}, containers: []string{"app", "sidecar"}, created: start}
	node := fakePod{id: "c", name: "node", addrs: []string{"10.9.0.9"}, host: true, created: start}
	c := h.cri(containerdSocket, one, node)
	f := h.finder(Config{Gone: gone.add})
	// Nothing is asked for that is not known: a miss would have the finder look again.
	if got, want := pods(f, "10.9.0.2", "fd09::2"), "one/app one/app"; got != want {
		t.Errorf("at the start: %q, want %q", got, want)
	}
	w, _ := f.At(0, socket("10.9.0.2"), time.Now())
	if diff := cmp.Diff(Workload{Namespace: "ci", Pod: "one", UID: "uid-a", Container: "app"}, w, equateAddr); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	until(t, "watch", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.events) == 1 })
	began := time.Now()
	c.set(one, two, node)
	// The event alone brings it so soon.
	until(t, "a second pod", func() bool { return f.Alive(Workload{Namespace: "ci", Pod: "two"}) })
	if got := pods(f, "10.9.0.3"); got != "two/" {
		t.Errorf("the second pod: %q", got)
	}
	one.notReady = true
	c.set(one, two, node)
	until(t, "the end of the first", func() bool { return !f.Alive(Workload{Namespace: "ci", Pod: "one"}) })
	if got, want := pods(f, "10.9.0.2", "10.9.0.3", "10.9.0.9"), "/ two/ /"; got != want {
		t.Errorf("at the end: %q, want %q", got, want)
	}
	if w, ok := f.At(0, socket("10.9.0.2"), began); !ok || w.Pod != "one" {
		t.Errorf("the ended pod's past: %+v, %v", w, ok)
	}
	if _, ok := f.At(0, socket("10.9.0.2"), start.Add(-time.Second)); ok {
		t.Error("the pod is known before it was made")
	}
	until(t, "word of the first's end", func() bool { return gone.has("one") })
	if gone.has("two") || gone.has("node") {
		t.Error("a pod that lives is gone")
	}
	// The status of a pod is asked for once.
	if c.mu.Lock(); c.status != 3 {
		t.Errorf("%d times asked for a status, want 3", c.status)
	}
	c.mu.Unlock()
}

// containerd before 1.7 has no events: who misses asks.
func TestCRIWithoutEvents(t *testing.T) {
	h := newHost(t)
	c := h.cri(containerdSocket)
	c.eventless = true
	f := h.finder(Config{})
	c.set(fakePod{id: "a", name: "new", addrs: []string{"10.9.0.2"}, containers: []string{"app"}, created: time.Now().Add(-time.Second)})
	until(t, "a miss", func() bool { return pods(f, "10.9.0.2") == "new/app" })
}

// A runtime may come later, restart, and be another one then.
func TestCRIComesAndGoes(t *testing.T) {
	h := newHost(t)
	f := h.finder(Config{})
	if got := pods(f, "10.9.0.2"); got != "/" {
		t.Errorf("without a runtime: %q", got)
	}
	pod := fakePod{id: "a", name: "one", addrs: []string{"10.9.0.2"}, containers: []string{"app"}, created: time.Now().Add(-time.Minute)}
	c := h.cri("run/crio/crio.sock", pod)
	until(t, "the runtime", func() bool { return pods(f, "10.9.0.2") == "one/app" })
	c.stop()
	until(t, "its end", func() bool { return f.Sources() == Sources{Processes: true} })
	if got := pods(f, "10.9.0.2"); got != "one/app" {
		t.Errorf("without the runtime: %q, want what was known", got)
	}
	if f.Counters().Failures == 0 {
		t.Error("no failure was counted")
	}
	other := pod
	other.id, other.name, other.created = "b", "two", time.Now()
	h.cri(containerdSocket, other)
	until(t, "the other", func() bool { return pods(f, "10.9.0.2") == "two/app" })
	if f.Alive(Workload{Namespace: "ci", Pod: "one"}) {
		t.Error("the pod of the runtime that ended is alive")
	}
}

// A runtime that hangs costs only what is new. Run ends all the same.
func TestCRIHangs(t *testing.T) {
	h := newHost(t)
	c := h.cri(containerdSocket, fakePod{id: "a", name: "one", addrs: []string{"10.9.0.2"}, containers: []string{"app"}, created: time.Now().Add(-time.Minute)})
	f := h.finder(Config{})
	c.mu.Lock()
	c.hung = make(chan struct{})
	c.mu.Unlock()
	f.poke()
	<-c.hungSeen
	// Who waits for the runtime waits until it is given up, five seconds later.
	unwaited := func(what string) {
		t.Helper()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.left > 0 {
			t.Errorf("%s waited for the runtime", what)
		}
	}
	if got := pods(f, "10.9.0.2", "10.9.0.3"); got != "one/app /" {
		t.Errorf("%q", got)
	}
	unwaited("At")
	if _, ok := f.Locate(t.Context(), 0, socket("10.9.0.3"), time.Now()); ok {
		t.Error("Locate knows a stranger")
	}
	unwaited("Locate")
}

// 200 pods leave nothing but what is bounded.
func TestChurn(t *testing.T) {
	h := newHost(t)
	c := h.cri(containerdSocket)
	f := h.finder(Config{})
	files := func() int {
		n := 0
		if err := eachName("/proc/self/fd", func(string) bool { n++; return true }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := 0
	for i := range 4 {
		var list []fakePod
		for j := range 50 {
			id := fmt.Sprintf("%d-%d", i, j)
			list = append(list, fakePod{id: id, name: id, addrs: []string{fmt.Sprintf("10.9.0.%d", 2+j)}, containers: []string{"job"}, created: time.Now()})
		}
		c.set(list...)
		f.poke()
		until(t, "the pods", func() bool {
			f.poke()
			return f.Alive(Workload{Namespace: "ci", Pod: fmt.Sprintf("%d-49", i)})
		})
		if i == 0 {
			before = files()
		}
	}
	c.set()
	until(t, "their end", func() bool { f.poke(); return f.Counters().Pods == 0 })
	if got := f.Counters().Remembered; got != 200 {
		t.Errorf("%d remembered", got)
	}
	if now := files(); now > before+2 {
		t.Errorf("%d descriptors, before %d", now, before)
	}
}

// A process is found by its pod's network namespace, its container by the
// process's cgroup.
func TestLocateContainer(t *testing.T) {
	h := newHost(t)
	const resolv = "nameserver 10.96.0.10\nsearch ci.svc\n"
	build, helper := containerID("a", "build"), containerID("a", "helper")
	h.process(fakeProcess{pid: 10, netns: "net:[9]", comm: "pause", udp: udpTable})
	h.process(fakeProcess{pid: 11, netns: "net:[9]", comm: "git", udp: udpTable, cgroup: "0::/x/" + build + "\n", maps: "0-1 r-xp 0 0:0 1 /lib/ld-musl-x.so.1\n", inodes: []int{99, 101}, resolv: resolv})
	h.process(fakeProcess{pid: 12, netns: "net:[9]", comm: "sh", udp: udpTable, cgroup: "0::/x/" + helper + "\n", inodes: []int{103}})
	h.process(fakeProcess{pid: 13, netns: "net:[9]", comm: "sh", udp: udpTable, cgroup: "0::/x/" + build + "\n", inodes: []int{104}})
	h.process(fakeProcess{pid: 14, netns: "net:[8]", comm: "other", cgroup: "0::/x/" + helper + "\n", inodes: []int{101}})
	h.process(fakeProcess{pid: 15, netns: "net:[7]", comm: "pause", udp: udpTable, cgroup: "0::/x/" + idA + "\n", inodes: []int{105}})
	h.process(fakeProcess{pid: 16, netns: "net:[7]", comm: "debug", udp: udpTable, cgroup: "0::/x/" + idB + "\n", inodes: []int{106}})
	start := time.Now().Add(-time.Minute)
	c := h.cri(containerdSocket,
		fakePod{id: "a", name: "runner", addrs: []string{"10.9.0.2"}, containers: []string{"build", "helper"}, created: start},
		fakePod{id: idA, name: "solo", addrs: []string{"10.9.0.3"}, containers: []string{"app"}, created: start})
	c.sandboxPID["a"], c.sandboxPID[idA] = 10, 15
	f := h.finder(Config{})
	got, ok := f.Locate(t.Context(), 0, socket("10.9.0.2"), time.Now())
	nameservers, search := parseResolvConf(resolv)
	want := Workload{Namespace: "ci", Pod: "runner", UID: "uid-a", Container: "build", Process: "git", Libc: "musl", Nameservers: nameservers, Search: search}
	if diff := cmp.Diff(want, got, equateAddr); !ok || diff != "" {
		t.Errorf("Locate: %v (-want +got)\n%s", ok, diff)
	}
	if again, ok := f.At(0, socket("10.9.0.2"), time.Now()); !ok || again.Process != "git" {
		t.Errorf("At: %+v, %v", again, ok)
	}
	// Two processes of two containers have sockets on one port: nobody can say.
	two := socket("10.9.0.2")
	got, ok = f.Locate(t.Context(), 0, netipPort(two, 32770), time.Now())
	want = Workload{Namespace: "ci", Pod: "runner", UID: "uid-a", Process: "sh"}
	if diff := cmp.Diff(want, got, equateAddr); !ok || diff != "" {
		t.Errorf("Locate of two: %v (-want +got)\n%s", ok, diff)
	}
	// Neither the sandbox's own process nor that of a container which the
	// runtime does not tell of is the pod's only container.
	for port, comm := range map[uint16]string{0x8005: "pause", 0x8006: "debug"} {
		got, ok = f.Locate(t.Context(), 0, netipPort(socket("10.9.0.3"), port), time.Now())
		if diff := cmp.Diff(Workload{Namespace: "ci", Pod: "solo", UID: "uid-" + idA, Process: comm}, got, equateAddr); !ok || diff != "" {
			t.Errorf("Locate of %s: %v (-want +got)\n%s", comm, ok, diff)
		}
	}
	// The pod's socket is gone: its name is all.
	got, ok = f.Locate(t.Context(), 0, netipPort(two, 1), time.Now())
	want.Process = ""
	if diff := cmp.Diff(want, got, equateAddr); !ok || diff != "" {
		t.Errorf("Locate of none: %v (-want +got)\n%s", ok, diff)
	}
}

// The questions of one socket stall at once; a flood of others is not looked
// into.
func TestLocateMany(t *testing.T) {
	h := newHost(t)
	h.process(fakeProcess{pid: 10, netns: "net:[9]", comm: "git", udp: udpTable, inodes: []int{101}})
	c := h.cri(containerdSocket, fakePod{id: "a", name: "runner", addrs: []string{"10.9.0.2"}, containers: []string{"build"}, created: time.Now().Add(-time.Minute)})
	c.sandboxPID["a"] = 10
	f := h.finder(Config{})
	now := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if w, ok := f.Locate(t.Context(), 0, socket("10.9.0.2"), now); !ok || w.Process != "git" {
				t.Errorf("%+v, %v", w, ok)
			}
		})
	}
	wg.Wait()
	// One at least was located: who comes when the others have their answer is located anew.
	first, began := f.Counters(), time.Now().Unix()
	if first.Located == 0 || first.Located+first.Unlocated+first.Skipped > 8 {
		t.Errorf("of one socket: %+v", first)
	}
	for i := range 3 * inspectRate {
		if w, ok := f.Locate(t.Context(), 0, netipPort(socket("10.9.0.2"), uint16(i+1)), now); !ok || w.Pod != "runner" {
			t.Errorf("%+v, %v", w, ok)
		}
	}
	// On a slow machine that may take more than the seconds in which all of them fit.
	seconds := uint64(time.Now().Unix() - began + 1)
	all := f.Counters()
	looked, skipped := all.Located+all.Unlocated-first.Located-first.Unlocated, all.Skipped-first.Skipped
	if looked > seconds*inspectRate || looked+skipped != 3*inspectRate {
		t.Errorf("in %d seconds %d were looked for and %d skipped", seconds, looked, skipped)
	}
}

// A container whose files do not answer keeps neither its caller nor others.
func TestLocateHangs(t *testing.T) {
	h := newHost(t)
	h.process(fakeProcess{pid: 10, netns: "net:[9]", comm: "evil", udp: udpTable, inodes: []int{101}})
	h.process(fakeProcess{pid: 11, netns: "net:[8]", comm: "good", udp: udpTable, inodes: []int{101}, maps: "0-1 r-xp 0 0:0 1 /a\n"})
	// To open a FIFO that nobody writes waits: as a file of a FUSE does.
	maps := filepath.Join(h.root, "proc/10/maps")
	if err := os.Remove(maps); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(maps, 0o644); err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-time.Minute)
	c := h.cri(containerdSocket,
		fakePod{id: "a", name: "evil", addrs: []string{"10.9.0.2"}, containers: []string{"app"}, created: start},
		fakePod{id: "b", name: "good", addrs: []string{"10.9.0.3"}, containers: []string{"app"}, created: start})
	c.sandboxPID["a"], c.sandboxPID["b"] = 10, 11
	f := h.finder(Config{})
	t.Cleanup(func() { // before Close
		w, err := os.OpenFile(maps, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		_ = w.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // in which the first of them gets to the FIFO
	defer cancel()
	for range 3 {
		if w, ok := f.Locate(ctx, 0, socket("10.9.0.2"), time.Now()); !ok || w.Pod != "evil" || w.Process != "" {
			t.Errorf("of the one that hangs: %+v, %v", w, ok)
		}
	}
	if len(f.slots) != 1 {
		t.Errorf("%d inspections are under way, want 1", len(f.slots))
	}
	if w, ok := f.Locate(t.Context(), 0, socket("10.9.0.3"), time.Now()); !ok || w.Process != "good" || w.Libc != "static" {
		t.Errorf("of another: %+v, %v", w, ok)
	}
}

// A runtime that tells no pids (cri-dockerd): a container's process has one.
func TestLocateWithoutPid(t *testing.T) {
	h := newHost(t)
	h.process(fakeProcess{pid: 10, netns: "net:[9]", comm: "git", udp: udpTable, cgroup: "0::/x/docker-" + containerID("a", "build") + ".scope\n", inodes: []int{101}})
	h.cri("run/cri-dockerd.sock", fakePod{id: "a", name: "runner", addrs: []string{"10.9.0.2"}, containers: []string{"build"}, created: time.Now().Add(-time.Minute)})
	f := h.finder(Config{})
	got, ok := f.Locate(t.Context(), 0, socket("10.9.0.2"), time.Now())
	want := Workload{Namespace: "ci", Pod: "runner", UID: "uid-a", Container: "build", Process: "git"}
	if diff := cmp.Diff(want, got, equateAddr); !ok || diff != "" {
		t.Errorf("Locate: %v (-want +got)\n%s", ok, diff)
	}
}
