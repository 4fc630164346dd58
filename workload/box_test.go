package workload

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/internal/lab"
)

// farewells are the pods that a Finder said are gone.
type farewells struct {
	mu   sync.Mutex
	pods []string
}

func (f *farewells) add(w Workload) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods = append(f.pods, w.Pod)
}

func (f *farewells) has(pod string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.pods, pod)
}

// boot boots a box with a real containerd and runs a Finder on it.
func boot(t *testing.T, cfg lab.BoxConfig, finder Config) (*lab.Box, *Finder, *lab.Server) {
	t.Helper()
	l, s := silent(t)
	b, err := l.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	finder.HostRoot = b.Root()
	return b, runFinder(t, l, finder), s
}

func runPod(t *testing.T, b *lab.Box, cfg lab.CRIPodConfig) *lab.CRIPod {
	t.Helper()
	p, err := b.RunPod(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func stopPod(t *testing.T, p *lab.CRIPod) {
	t.Helper()
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// lookAt is At for an address of which no socket is known.
func lookAt(f *Finder, link int, a netip.Addr, at time.Time) Workload {
	w, _ := f.At(link, netip.AddrPortFrom(a, 0), at)
	return w
}

// askIn has a container ask and wait, and returns the socket that it asks from.
func askIn(t *testing.T, p *lab.CRIPod, s *lab.Server, container string, r lab.Resolver) (client netip.AddrPort, asked time.Time) {
	t.Helper()
	name := fmt.Sprintf("%s.%s.%s.test.", r, container, p.Name)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = p.Resolve(ctx, container, r, 1, name) // nobody answers it
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	until(t, "the question "+name, func() bool {
		for _, q := range s.Recorded() {
			if q.Name == dns.CanonicalName(name) {
				client, asked = q.Client, q.Arrived
				return true
			}
		}
		return false
	})
	return client, asked
}

// What a real containerd, real CNI plugins and the real kernel tell of pods.
func TestBoxPods(t *testing.T) {
	for _, tc := range []struct {
		cni  lab.CNI
		proc string
	}{{lab.PTP, "auto"}, {lab.Bridge, "auto"}, {lab.PTP, "off"}} {
		t.Run(string(tc.cni)+", proc "+tc.proc, func(t *testing.T) {
			var gone farewells
			b, f, s := boot(t, lab.BoxConfig{CNI: tc.cni}, Config{Proc: tc.proc, Gone: gone.add})
			search := []string{"ci.svc.test", "svc.test"}

			p := runPod(t, b, lab.CRIPodConfig{Namespace: "ci", Name: "one", Nameservers: []netip.Addr{s.Addr4}, Search: search})
			began := time.Now()
			want := Workload{
				Namespace: "ci", Pod: "one", UID: p.UID, Container: "app", Nameservers: []netip.Addr{s.Addr4}, Search: search,
			}
			until(t, "the pod", func() bool {
				return cmp.Equal(want, lookAt(f, p.LinkIndex, p.Addr4, time.Now()), equateAddr) && f.linksOf("one") != nil
			})
			t.Logf("known with its container %v after it ran", time.Since(began))
			if diff := cmp.Diff([]int{p.LinkIndex}, f.linksOf("one")); diff != "" {
				t.Errorf("links (-want +got)\n%s", diff)
			}
			for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
				for _, link := range []int{0, p.LinkIndex} {
					if diff := cmp.Diff(want, lookAt(f, link, a, time.Now()), equateAddr); diff != "" {
						t.Errorf("at link %d, %v (-want +got)\n%s", link, a, diff)
					}
				}
				if w := lookAt(f, 9999, a, time.Now()); w.Known() {
					t.Errorf("on a link that nobody knows: %+v", w)
				}
			}
			if tc.proc == "auto" {
				locate(t, b, f, s, search)
			}
			ended := time.Now()
			stopPod(t, p)
			until(t, "its end", func() bool { return gone.has("one") })
			if w := lookAt(f, 0, p.Addr4, time.Now()); w.Known() {
				t.Errorf("after its end: %+v", w)
			}
			if diff := cmp.Diff(want, lookAt(f, 0, p.Addr4, ended), equateAddr); diff != "" {
				t.Errorf("of its past (-want +got)\n%s", diff)
			}
		})
	}
}

// linksOf are the links of a pod.
func (f *Finder) linksOf(name string) []int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, p := range f.table.live {
		if p.name == name {
			return p.links
		}
	}
	return nil
}

// locate finds processes in containers, of a pod of its own network and of one
// of the node's.
func locate(t *testing.T, b *lab.Box, f *Finder, s *lab.Server, search []string) {
	cfg := lab.CRIPodConfig{Namespace: "ci", Name: "two", Containers: []string{"build", "helper"}, Nameservers: []netip.Addr{s.Addr4}, Search: search}
	host := cfg
	host.Name, host.HostNetwork = "host", true
	two, onHost := runPod(t, b, cfg), runPod(t, b, host)
	for _, tc := range []struct {
		pod       *lab.CRIPod
		link      int
		container string
		resolver  lab.Resolver
		libc      string
	}{
		{two, two.LinkIndex, "build", lab.MuslDynamic, "musl"},
		{two, two.LinkIndex, "helper", lab.Glibc, "glibc"},
		{two, 0, "helper", lab.MuslStatic, "static"},
		{onHost, 1, "helper", lab.MuslDynamic, "musl"},
	} {
		client, asked := askIn(t, tc.pod, s, tc.container, tc.resolver)
		got, ok := f.Locate(t.Context(), tc.link, client, asked)
		if !ok || !strings.Contains(got.Process, "resolve") && !strings.HasPrefix(got.Process, "ld-") {
			t.Errorf("process %q, %v", got.Process, ok)
		}
		want := Workload{
			Namespace: "ci", Pod: tc.pod.Name, UID: tc.pod.UID, Container: tc.container, Host: tc.pod == onHost,
			Process: got.Process, Libc: tc.libc, Nameservers: []netip.Addr{s.Addr4}, Search: search,
		}
		if diff := cmp.Diff(want, got, equateAddr); diff != "" {
			t.Errorf("%s in %s/%s (-want +got)\n%s", tc.resolver, tc.pod.Name, tc.container, diff)
		}
		if again, ok := f.At(tc.link, client, asked); !ok || again.Container != tc.container {
			t.Errorf("after that At knows %+v, %v", again, ok)
		}
	}
	stopPod(t, two)
	stopPod(t, onHost)
}

// One address goes from pod to pod. Whoever asks at the second's link never hears
// of the first, and the past stays what it was.
func TestBoxAddressReuse(t *testing.T) {
	b, f, _ := boot(t, lab.BoxConfig{CNI: lab.Bridge, PodRange: 1}, Config{})
	var last *lab.CRIPod
	var lastRan time.Time
	for i := range 3 {
		name := fmt.Sprintf("job-%d", i)
		p := runPod(t, b, lab.CRIPodConfig{Name: name})
		if last != nil && p.Addr4 != last.Addr4 {
			t.Fatalf("%s has %v, not %v", name, p.Addr4, last.Addr4)
		}
		until(t, name, func() bool {
			w := lookAt(f, p.LinkIndex, p.Addr4, time.Now())
			if w.Pod != "" && w.Pod != name {
				t.Fatalf("on the link of %s: %+v", name, w)
			}
			return w.Pod == name
		})
		ran := time.Now()
		if w := lookAt(f, 0, p.Addr4, ran); w.Pod != name {
			t.Errorf("by address: %+v, want %s", w, name)
		}
		if last != nil {
			if w := lookAt(f, 0, p.Addr4, lastRan); w.Pod != last.Name {
				t.Errorf("when %s ran: %+v", last.Name, w)
			}
		}
		stopPod(t, p)
		last, lastRan = p, ran
	}
}

// Pods come and go, and containerd is restarted in between.
func TestBoxChurn(t *testing.T) {
	var gone farewells
	b, f, _ := boot(t, lab.BoxConfig{}, Config{Gone: gone.add})
	stay := runPod(t, b, lab.CRIPodConfig{Name: "stay"})
	until(t, "stay", func() bool { return lookAt(f, stay.LinkIndex, stay.Addr4, time.Now()).Pod == "stay" })
	for i := range 4 {
		var wg sync.WaitGroup
		for j := range 5 {
			wg.Go(func() {
				p, err := b.RunPod(t.Context(), lab.CRIPodConfig{Name: fmt.Sprintf("churn-%d-%d", i, j)})
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.Stop(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	until(t, "the end of the churn", func() bool { return f.Counters().Pods == 1 })
	if _, err := b.Run(t.Context(), "systemctl", "restart", "containerd.service"); err != nil {
		t.Fatal(err)
	}
	if w := lookAt(f, stay.LinkIndex, stay.Addr4, time.Now()); w.Pod != "stay" {
		t.Errorf("while containerd is restarted: %+v", w)
	}
	var after *lab.CRIPod
	until(t, "a pod after that", func() (ok bool) {
		var err error
		after, err = b.RunPod(t.Context(), lab.CRIPodConfig{Name: "after"})
		return err == nil
	})
	until(t, "after", func() bool { return lookAt(f, after.LinkIndex, after.Addr4, time.Now()).Pod == "after" })
	if gone.has("stay") {
		t.Error("a restart of containerd ended its pod")
	}
}

// A real dockerd, without Kubernetes.
func TestBoxDocker(t *testing.T) {
	l, _ := silent(t)
	b, err := l.Boot(t.Context(), lab.BoxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	command := func(line string) string {
		t.Helper()
		out, err := b.Run(t.Context(), "sh", "-c", line)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if err := b.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	command("tar -C / -chf - bin/sleep $(ldd /bin/sleep | grep -o '/lib[^ ]*' | cut -c2-) | docker import - lab/sleep")
	var gone farewells
	f := runFinder(t, l, Config{HostRoot: b.Root(), CRI: b.Root() + "/run/docker.sock", Gone: gone.add})
	began := time.Now()
	command("docker run -d --name one lab/sleep /bin/sleep 1000")
	a, err := netip.ParseAddr(command("docker inspect -f '{{.NetworkSettings.IPAddress}}' one"))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the container", func() bool { return lookAt(f, 0, a, time.Now()).Container == "one" && f.linksOf("") != nil })
	t.Logf("known %v after its start began", time.Since(began))
	if w := lookAt(f, f.linksOf("")[0], a, time.Now()); w.Container != "one" {
		t.Errorf("at its link: %+v", w)
	}
	command("docker restart -t 0 one")
	until(t, "the container again", func() bool { return lookAt(f, 0, a, time.Now()).Container == "one" })
	command("docker rm -f one")
	until(t, "its end", func() bool { return !f.Alive(Workload{Container: "one"}) && gone.has("") })
}
