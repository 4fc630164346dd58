package workload

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	rtnl "github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// silent is a lab with a server that records questions and answers none.
func silent(t *testing.T) (*lab.Lab, *lab.Server) {
	t.Helper()
	l := lab.ForTest(t)
	s, err := l.AddServer(lab.Rule{Drop: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Record(true)
	return l, s
}

// runFinder runs a Finder in the node's namespace until the test ends.
func runFinder(t *testing.T, l *lab.Lab, cfg Config) *Finder {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	var f *Finder
	if err := l.Node().Do(func() (err error) {
		f, err = New(cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	run(t, f)
	return f
}

// run runs a Finder until the test ends, and waits for its first refresh.
func run(t *testing.T, f *Finder) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	first := f.refreshed
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	<-first
}

// ask starts a resolver in a namespace and returns the socket that it asks from,
// once its first question is at the server.
func ask(t *testing.T, l *lab.Lab, n *lab.Namespace, s *lab.Server, r lab.Resolver) (client netip.AddrPort, asked time.Time) {
	t.Helper()
	path, err := l.Client(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, path, "-f", "4", "wait."+string(r)+".test.")
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	err = lab.Until(t.Context(), 5*time.Second, func() error {
		for _, q := range s.Recorded() {
			if q.Name == dns.Fqdn("wait."+string(r)+".test") {
				client, asked = q.Client, q.Arrived
				return nil
			}
		}
		return errNotYet
	})
	if err != nil {
		t.Fatal(err)
	}
	return client, asked
}

var resolvers = []struct {
	resolver lab.Resolver
	libc     string
	comm     string
}{
	{lab.MuslStatic, "static", "resolve-musl-st"},
	{lab.MuslDynamic, "musl", "resolve-musl-dy"},
	{lab.Glibc, "glibc", "resolve-glibc"},
	{lab.Go, "static", "resolve-go"},
}

// Locate finds the process that waits for an answer in a pod's network, where no
// runtime tells of pods, by the pod's link.
func TestLocateInPod(t *testing.T) {
	l, s := silent(t)
	pod, err := l.AddPod(lab.PodConfig{Name: "client", Nameservers: []netip.Addr{s.Addr4}, Search: []string{"a.test", "b.test"}})
	if err != nil {
		t.Fatal(err)
	}
	f := runFinder(t, l, Config{CRI: "off"})
	link := linkIndex(t, l, pod.Link)
	for _, tc := range resolvers {
		t.Run(string(tc.resolver), func(t *testing.T) {
			client, asked := ask(t, l, pod.Namespace, s, tc.resolver)
			if w, ok := f.At(link, client, asked); ok {
				t.Errorf("before Locate, At knows %+v", w)
			}
			began := time.Now()
			got, ok := f.Locate(t.Context(), link, client, asked)
			t.Logf("located in %v", time.Since(began))
			want := Workload{Process: tc.comm, Libc: tc.libc, Nameservers: []netip.Addr{s.Addr4}, Search: []string{"a.test", "b.test"}}
			if diff := cmp.Diff(want, got, equateAddr); !ok || diff != "" {
				t.Errorf("Locate: %v (-want +got)\n%s", ok, diff)
			}
			if again, ok := f.At(link, client, asked); !ok || cmp.Diff(got, again, equateAddr) != "" {
				t.Errorf("after Locate, At knows %+v, %v", again, ok)
			}
			if w, ok := f.At(link, client, asked.Add(-time.Minute)); ok {
				t.Errorf("a minute before, At knows %+v", w)
			}
			if w, ok := f.At(link, netip.AddrPortFrom(client.Addr(), client.Port()^1), asked); ok {
				t.Errorf("of another port, At knows %+v", w)
			}
		})
	}
	if c := f.Counters(); c.Located != 4 {
		t.Errorf("Counters: %+v", c)
	}
}

// A process in the node's own network.
func TestLocateOnHost(t *testing.T) {
	l, s := silent(t)
	resolv := filepath.Join(l.Dir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+s.Addr4.String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind(t, l.Node(), resolv, "/etc/resolv.conf")
	f := runFinder(t, l, Config{CRI: "off"})
	for _, tc := range resolvers {
		t.Run(string(tc.resolver), func(t *testing.T) {
			client, asked := ask(t, l, l.Node(), s, tc.resolver)
			if w, ok := f.At(1, client, asked); !ok || !w.Host || w.Known() {
				t.Errorf("before Locate, At knows %+v, %v", w, ok)
			}
			got, ok := f.Locate(t.Context(), 1, client, asked)
			want := Workload{Host: true, Process: tc.comm, Libc: tc.libc, Nameservers: []netip.Addr{s.Addr4}}
			if diff := cmp.Diff(want, got, equateAddr); !ok || diff != "" {
				t.Errorf("Locate: %v (-want +got)\n%s", ok, diff)
			}
			if again, ok := f.At(0, client, asked); !ok || again.Process != tc.comm {
				t.Errorf("after Locate, At knows %+v, %v", again, ok)
			}
		})
	}
}

// A socket that is closed is nobody's, and a resolv.conf that blocks or leads
// out of the container is not read.
func TestLocateHostile(t *testing.T) {
	l, s := silent(t)
	pod, err := l.AddPod(lab.PodConfig{Name: "client", Nameservers: []netip.Addr{s.Addr4}})
	if err != nil {
		t.Fatal(err)
	}
	f := runFinder(t, l, Config{CRI: "off"})
	link := linkIndex(t, l, pod.Link)
	if w, ok := f.Locate(t.Context(), link, netip.AddrPortFrom(pod.Addr4, 1234), time.Now()); ok {
		t.Errorf("nobody's socket is %+v", w)
	}
	client, asked := ask(t, l, pod.Namespace, s, lab.MuslStatic)
	etc := filepath.Join(l.Dir(), pod.Link, "etc", "resolv.conf")
	hostile(t, etc)
	got, ok := f.Locate(t.Context(), link, client, asked)
	if diff := cmp.Diff(Workload{Process: "resolve-musl-st", Libc: "static"}, got); !ok || diff != "" {
		t.Errorf("Locate: %v (-want +got)\n%s", ok, diff)
	}
}

// A pod's time ends with its link, whatever the runtime still says.
func TestLinkEnds(t *testing.T) {
	l := lab.ForTest(t)
	pod, err := l.AddPod(lab.PodConfig{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	c := h.cri(containerdSocket, fakePod{
		id: "a", name: "client", addrs: []string{pod.Addr4.String()}, containers: []string{"app"}, created: time.Now().Add(-time.Minute),
	})
	f := runFinder(t, l, Config{HostRoot: h.root, Proc: "off"})
	client := netip.AddrPortFrom(pod.Addr4, 0)
	ran := time.Now()
	if w, ok := f.At(linkIndex(t, l, pod.Link), client, ran); !ok || w.Pod != "client" {
		t.Errorf("while it runs: %+v, %v", w, ok)
	}
	if diff := cmp.Diff([]int{linkIndex(t, l, pod.Link)}, f.linksOf("client")); diff != "" {
		t.Errorf("links by its route (-want +got)\n%s", diff)
	}
	c.mu.Lock()
	c.hung = make(chan struct{}) // it does not tell of the end
	c.mu.Unlock()
	if err := l.Node().Do(func() error {
		link, err := rtnl.LinkByName(pod.Link)
		if err != nil {
			return err
		}
		return rtnl.LinkDel(link)
	}); err != nil {
		t.Fatal(err)
	}
	until(t, "its end", func() bool { _, ok := f.At(0, client, time.Now()); return !ok })
	if w, ok := f.At(0, client, ran); !ok || w.Pod != "client" {
		t.Errorf("of its past: %+v, %v", w, ok)
	}
}

// A pod's link comes before the runtime tells of the pod. A runtime without
// events is asked until it does.
func TestLinkComesFirst(t *testing.T) {
	l := lab.ForTest(t)
	h := newHost(t)
	c := h.cri(containerdSocket)
	c.eventless = true
	f := runFinder(t, l, Config{HostRoot: h.root, Proc: "off"})
	before := f.Counters().Refreshes
	pod, err := l.AddPod(lab.PodConfig{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "refreshes", func() bool { return f.Counters().Refreshes >= before+2 })
	c.set(fakePod{id: "a", name: "client", addrs: []string{pod.Addr4.String()}, containers: []string{"app"}, created: time.Now()})
	began := time.Now()
	until(t, "the pod", func() bool { return f.Alive(Workload{Namespace: "ci", Pod: "client"}) })
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("known after %v", d)
	}
}
