package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func runPod(t *testing.T, b *Box, cfg CRIPodConfig) *CRIPod {
	t.Helper()
	p, err := b.RunPod(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func stopPod(t *testing.T, p *CRIPod) {
	t.Helper()
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// read reads a file as the pod has it.
func (p *CRIPod) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.box.Root(), "proc", strconv.Itoa(p.Pid), "root", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCRIPodResolvers proves that every resolver of a pod, of either CNI, gets
// both families' answers through a service of each family, asking from the
// pod's own address.
func TestCRIPodResolvers(t *testing.T) {
	t.Parallel()
	for _, cni := range []CNI{PTP, Bridge} {
		t.Run(string(cni), func(t *testing.T) {
			t.Parallel()
			l := ForTest(t)
			b := boot(t, l, BoxConfig{CNI: cni})
			for _, f := range families {
				servers, backends := addServers(t, l, 1, f.service, Rule{Name: "ok.test", Addrs: answers})
				addService(t, l, f.service, Random, backends...)
				pod := runPod(t, b, CRIPodConfig{Name: f.name, Nameservers: []netip.Addr{f.service}, Options: patient()})
				host := runPod(t, b, CRIPodConfig{Name: "host-" + f.name, Nameservers: []netip.Addr{f.service}, Options: patient(), HostNetwork: true})
				for _, p := range []*CRIPod{pod, host} {
					for _, r := range Resolvers() {
						t.Run(p.Name+"/"+string(r), func(t *testing.T) {
							servers[0].Record(true)
							got, err := p.Resolve(t.Context(), "app", r, 2, "ok.test", "missing.test")
							if err != nil {
								t.Fatal(err)
							}
							allOK(t, []Answer{got[0], got[2]})
							if got[1].Err == "" || got[3].Err == "" {
								t.Errorf("missing name: %v", got)
							}
							questions := servers[0].Recorded()
							if want := 2 * 2 * 2; len(questions) != want {
								t.Errorf("%d questions, want %d: %v", len(questions), want, questions)
							}
							for _, q := range questions {
								if a := q.Client.Addr(); a != p.Addr4 && a != p.Addr6 {
									t.Errorf("question from %v, not from the pod (%v, %v): the node masquerades", a, p.Addr4, p.Addr6)
								}
							}
						})
					}
				}
			}
		})
	}
}

// TestCRIPod proves that a pod is what was asked for, and where it says.
func TestCRIPod(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	_, backends := addServers(t, l, 2, service4, Rule{Addrs: answers})
	addService(t, l, service4, Alternate, backends...)
	b := boot(t, l, BoxConfig{})
	pod := runPod(t, b, CRIPodConfig{
		Namespace: "ci", Name: "runner", Containers: []string{"build", "helper"},
		Nameservers: []netip.Addr{service4, second4}, Search: []string{"ci.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5"},
	})
	want := "search ci.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n"
	if diff := cmp.Diff(want, pod.read(t, "etc/resolv.conf")); diff != "" {
		t.Errorf("resolv.conf (-want +got):\n%s", diff)
	}
	if got := runInBox(t, b, "nsenter", "--uts", "--target", strconv.Itoa(pod.Pid), "hostname"); got != "runner\n" {
		t.Errorf("its host name is %q", got)
	}
	if !boxNet4.Contains(pod.Addr4) || !boxNet6.Contains(pod.Addr6) {
		t.Errorf("its addresses are %v and %v", pod.Addr4, pod.Addr6)
	}
	// The link is the one that the node sends to the pod by.
	err := l.Node().netlink(func(h *netlink.Handle) error {
		for _, a := range []netip.Addr{pod.Addr4, pod.Addr6} {
			routes, err := h.RouteGet(a.AsSlice())
			if err != nil {
				return err
			}
			link, err := h.LinkByIndex(routes[0].LinkIndex)
			if err != nil {
				return err
			}
			if got := link.Attrs(); got.Index != pod.LinkIndex || got.Name != pod.Link {
				t.Errorf("the node reaches %v by link %d, %s; want %d, %s", a, got.Index, got.Name, pod.LinkIndex, pod.Link)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	for _, container := range []string{"build", "helper"} {
		if _, err := pod.Resolve(t.Context(), container, MuslStatic, 1, "ok.test"); err != nil {
			t.Error(err)
		}
	}
	for _, container := range []string{"", "other"} {
		if _, err := pod.Resolve(t.Context(), container, MuslStatic, 1, "ok.test"); err == nil {
			t.Errorf("a resolver ran in container %q", container)
		}
	}
	if _, err := pod.Exec(t.Context(), "build", "/bin/resolve-musl-static"); err == nil {
		t.Error("a command that fails has no error")
	}

	// What the lab does to lookups it does to those of the pod.
	h := hold(t, l, 2, together)
	before := statistics(t, l)
	single := runPod(t, b, CRIPodConfig{Name: "single", Nameservers: []netip.Addr{service4}, Options: patient()})
	got, err := single.Resolve(t.Context(), "", MuslDynamic, 3, "ok.test")
	if err != nil {
		t.Fatal(err)
	}
	allOK(t, got)
	if h.Full() != 3 {
		t.Errorf("%d of 3 pairs were held", h.Full())
	}
	if n := statistics(t, l).clashResolve - before.clashResolve; n != 3 {
		t.Errorf("%d of 3 pairs collided", n)
	}

	// Many at once, none twice.
	pods := make([]*CRIPod, 4)
	inParallel(len(pods), func(i int) {
		var err error
		if pods[i], err = b.RunPod(t.Context(), CRIPodConfig{Name: fmt.Sprintf("pod-%d", i)}); err != nil {
			t.Error(err)
		}
	})
	seen := map[any]bool{}
	for _, p := range pods {
		if p == nil {
			return
		}
		for _, id := range []any{p.Addr4, p.Addr6, p.Link, p.UID, p.Pid} {
			if seen[id] {
				t.Errorf("%v is of two pods", id)
			}
			seen[id] = true
		}
	}
}

// TestCRIPodAddressReuse proves that with one address the next pod gets it,
// as soon as the one before has stopped.
func TestCRIPodAddressReuse(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	_, backends := addServers(t, l, 1, service4, Rule{Addrs: answers})
	addService(t, l, service4, Random, backends...)
	b := boot(t, l, BoxConfig{PodRange: 1})
	var last *CRIPod
	for i := range 3 {
		p := runPod(t, b, CRIPodConfig{Name: fmt.Sprintf("pod-%d", i), Nameservers: []netip.Addr{service4}, Options: patient()})
		if last != nil && (p.Addr4 != last.Addr4 || p.Addr6 != last.Addr6 || p.UID == last.UID || p.LinkIndex == last.LinkIndex) {
			t.Errorf("%+v was not followed by the address only: %+v", last, p)
		}
		got, err := p.Resolve(t.Context(), "", MuslStatic, 1, "ok.test")
		if err != nil {
			t.Fatal(err)
		}
		allOK(t, got)
		if _, err := b.RunPod(t.Context(), CRIPodConfig{Name: "too-many"}); err == nil {
			t.Error("a pod has an address that there is not")
		}
		stopPod(t, p)
		if _, err := os.Stat(filepath.Join(b.Root(), "proc", strconv.Itoa(p.Pid))); err == nil {
			t.Error("a stopped pod still runs")
		}
		last = p
	}
}
