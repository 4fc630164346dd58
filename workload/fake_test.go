package workload

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodestead/nodestead/internal/lab"
)

// host is a directory that looks like a node's root.
type host struct {
	t    *testing.T
	root string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir()}
	for pid := 1; pid <= 2; pid++ {
		h.process(fakeProcess{pid: pid, netns: "net:[1]"})
	}
	return h
}

func (h *host) socket(name string) net.Listener {
	h.t.Helper()
	path := filepath.Join(h.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

type fakeProcess struct {
	pid                      int
	netns, comm, cgroup, udp string
	maps, resolv             string
	inodes                   []int
}

// process makes the files of a process.
func (h *host) process(p fakeProcess) {
	h.t.Helper()
	dir := filepath.Join(h.root, "proc", strconv.Itoa(p.pid))
	for _, d := range []string{"ns", "net", "fd", "root/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"comm": p.comm + "\n", "cgroup": p.cgroup, "maps": p.maps, "net/udp": p.udp, "root/etc/resolv.conf": p.resolv,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.Symlink(p.netns, filepath.Join(dir, "ns/net")); err != nil {
		h.t.Fatal(err)
	}
	for i, inode := range p.inodes {
		if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), filepath.Join(dir, "fd", strconv.Itoa(i))); err != nil {
			h.t.Fatal(err)
		}
	}
}

// finder runs a Finder on the host until the test ends. It reads the links of
// the namespace that the tests run in, and changes nothing there.
func (h *host) finder(cfg Config) *Finder {
	h.t.Helper()
	cfg.HostRoot = h.root
	cfg.Log = slog.New(slog.NewTextHandler(h.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	f, err := New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	run(h.t, f)
	return f
}

// fakeCRI is a runtime of which tests say what it has.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	server *grpc.Server
	stop   func() // at the end of the test, or before

	mu         sync.Mutex
	pods       []fakePod
	status     int                    // how often one was asked for
	events     map[chan struct{}]bool // of those that watch
	eventless  bool                   // as containerd 1.6
	hung       chan struct{}          // non-nil: nothing is answered until it is closed
	hungSeen   chan struct{}          // gets one for each call that waits
	left       int                    // how many of them were given up
	sandboxPID map[string]int
}

type fakePod struct {
	id, name   string
	addrs      []string
	host       bool
	notReady   bool
	containers []string
	created    time.Time
}

func (h *host) cri(socket string, pods ...fakePod) *fakeCRI {
	h.t.Helper()
	c := &fakeCRI{
		pods: pods, events: make(map[chan struct{}]bool), server: grpc.NewServer(),
		hungSeen: make(chan struct{}, 100), sandboxPID: make(map[string]int),
	}
	cri.RegisterRuntimeServiceServer(c.server, c)
	l := h.socket(socket)
	done := make(chan error, 1)
	go func() { done <- c.server.Serve(l) }()
	c.stop = sync.OnceFunc(func() {
		c.server.Stop()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(c.stop)
	return c
}

// set replaces the pods and tells those who watch.
func (c *fakeCRI) set(pods ...fakePod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods = pods
	for e := range c.events {
		select {
		case e <- struct{}{}:
		default:
		}
	}
}

// wait blocks while the runtime hangs.
func (c *fakeCRI) wait(ctx context.Context) error {
	c.mu.Lock()
	hung := c.hung
	c.mu.Unlock()
	if hung == nil {
		return nil
	}
	c.hungSeen <- struct{}{}
	select {
	case <-hung:
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		c.left++
		return ctx.Err()
	}
}

func (c *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1"}, nil
}

func (c *fakeCRI) ListPodSandbox(ctx context.Context, _ *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var r cri.ListPodSandboxResponse
	for _, p := range c.pods {
		s := &cri.PodSandbox{
			Id: p.id, Metadata: &cri.PodSandboxMetadata{Namespace: "ci", Name: p.name, Uid: "uid-" + p.id}, CreatedAt: p.created.UnixNano(),
		}
		if p.notReady {
			s.State = cri.PodSandboxState_SANDBOX_NOTREADY
		}
		r.Items = append(r.Items, s)
	}
	return &r, nil
}

func (c *fakeCRI) PodSandboxStatus(_ context.Context, q *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status++
	i := slices.IndexFunc(c.pods, func(p fakePod) bool { return p.id == q.PodSandboxId })
	if i < 0 {
		return nil, status.Error(codes.NotFound, "not found")
	}
	p := c.pods[i]
	network := &cri.PodSandboxNetworkStatus{}
	for i, a := range p.addrs {
		if i == 0 {
			network.Ip = a
		} else {
			network.AdditionalIps = append(network.AdditionalIps, &cri.PodIP{Ip: a})
		}
	}
	mode := cri.NamespaceMode_POD
	if p.host {
		mode = cri.NamespaceMode_NODE
	}
	r := &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: p.id, Network: network, Linux: &cri.LinuxPodSandboxStatus{
		Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: mode}},
	}}}
	if q.Verbose {
		r.Info = map[string]string{"info": fmt.Sprintf(`{"pid":%d}`, c.sandboxPID[p.id])}
	}
	return r, nil
}

func (c *fakeCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var r cri.ListContainersResponse
	for _, p := range c.pods {
		for _, name := range p.containers {
			r.Containers = append(r.Containers, &cri.Container{Id: containerID(p.id, name), PodSandboxId: p.id, Metadata: &cri.ContainerMetadata{Name: name}})
		}
	}
	return &r, nil
}

func (c *fakeCRI) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	changed := make(chan struct{}, 1)
	c.mu.Lock()
	if c.eventless {
		c.mu.Unlock()
		return status.Error(codes.Unimplemented, "unknown method")
	}
	c.events[changed] = true
	c.mu.Unlock()
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
			if err := stream.Send(&cri.ContainerEventResponse{}); err != nil {
				return err
			}
		}
	}
}

// containerID is the id of a pod's container: 64 hexadecimal digits.
func containerID(pod, name string) string {
	return fmt.Sprintf("%064x", pod+"/"+name)[:idLength]
}

// until waits until the cache says what a test wants.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := lab.Until(t.Context(), 10*time.Second, func() error {
		if !ok() {
			return errNotYet
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// socket is a client's socket, of which only At's callers know the port.
func socket(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), 32769) }

// pods names the pods that the Finder knows at the addresses, now.
func pods(f *Finder, addrs ...string) string {
	var names []string
	for _, a := range addrs {
		w, _ := f.At(0, socket(a), time.Now())
		names = append(names, w.Pod+"/"+w.Container)
	}
	return strings.Join(names, " ")
}
