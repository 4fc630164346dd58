package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/internal/lab"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// TestAddressReuse gives the address of a pod that loses lookups to the next
// pod, while they are still pending. Each lookup stays with the pod that asked.
func TestAddressReuse(t *testing.T) {
	const (
		rounds = 3 // of two pods
		lost   = 3 // calls of each pod that get no answer
		good   = 4 // calls that do
	)
	a := newBoxAgent(t, lab.BoxConfig{PodRange: 1})
	service, servers := a.service("10.96.0.10", lab.Random, 1, lab.Rule{Name: "silent.test.", Drop: true}, lab.Rule{Name: "*", Addrs: both})
	a.start()

	want := make(map[string]int) // incidents by pod
	var before *lab.CRIPod
	var gaps []time.Duration
	for round := range 2 * rounds {
		namespace := []string{"one", "two"}[round%2]
		cfg := lab.CRIPodConfig{Namespace: namespace, Name: fmt.Sprintf("%s-%d", namespace, round/2), Nameservers: []netip.Addr{service}}
		want[cfg.Namespace+"/"+cfg.Name] = 2 * lost
		stopped := time.Now()
		if before != nil {
			if err := before.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			stopped = time.Now()
		}
		p := a.runPod(cfg)
		if before != nil && p.Addr4 != before.Addr4 {
			t.Fatalf("the second pod has the address %v, the first one had %v", p.Addr4, before.Addr4)
		}
		a.load(p, "app", lab.MuslStatic, good, 1, "warm.test.")
		if before != nil {
			gaps = append(gaps, time.Since(stopped))
		}
		before = p

		// It is stopped once it has asked again, before it gives up.
		asked := servers[0].Questions()
		go func() {
			// It ends with the pod.
			_, _ = p.Exec(context.WithoutCancel(t.Context()), "app", lab.ClientPath(lab.MuslStatic), "-t", fmt.Sprint(lost), "silent.test.")
		}()
		a.until("every lookup was asked again", func() error {
			if n := servers[0].Questions() - asked; n < 4*lost {
				return fmt.Errorf("%d questions", n)
			}
			return nil
		})
	}
	t.Logf("from the end of a pod to lookups of the next one: %v", gaps)
	if err := before.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	f := a.counted(2 * rounds * 2 * (lost + good))
	each := map[string]int{"noerror": rounds * 2 * good, "timeout": rounds * 2 * lost}
	counted := map[string]int{}
	for _, namespace := range []string{"one", "two"} {
		for outcome, n := range each {
			counted[namespace+" "+outcome] = n
		}
	}
	if diff := cmp.Diff(counted, f.by("dns_lookups_total", "namespace", "outcome")); diff != "" {
		t.Errorf("lookups (-made +counted):\n%s", diff)
	}
	all, err := a.incidents(url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for _, in := range all {
		got[in.Namespace+"/"+in.Pod]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("incidents (-want +got):\n%s", diff)
	}
}

// churnRim is the agent's own rim, and keeps what a test looks at.
type churnRim struct {
	mu      sync.Mutex
	lookups lookupSource
	finder  finder
	gone    map[string]int // how often a pod was said to have ended
}

func (c *churnRim) rim() rim {
	return rim{
		conntrack: openConntrack, probe: newProbe,
		lookup: func(cfg lookup.Config) (lookupSource, error) {
			s, err := openLookup(cfg)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.lookups = s
			return s, err
		},
		finder: func(cfg workload.Config) (finder, error) {
			gone := cfg.Gone
			cfg.Gone = func(w workload.Workload) {
				c.mu.Lock()
				c.gone[w.Pod]++
				c.mu.Unlock()
				gone(w)
			}
			f, err := openFinder(cfg)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.finder = f
			return f, err
		},
	}
}

// counters are the finder's, and the number of lookups that are pending.
func (c *churnRim) counters() (workload.Counters, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finder.(*workload.Finder).Counters(), c.lookups.Counters().Pending
}

// alive asks the finder for a pod.
func (c *churnRim) alive(w workload.Workload) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finder.Alive(w)
}

// unnoticed are those of the pods whose end was not said once.
func (c *churnRim) unnoticed(pods map[string]int) (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range pods {
		if n := c.gone[name]; n != 1 {
			all = append(all, fmt.Sprintf("%s: %d", name, n))
		}
	}
	return all
}

// descriptors is how many this process has open.
func descriptors() (int, error) {
	all, err := os.ReadDir("/proc/self/fd")
	return len(all), err
}

func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestChurn starts and stops pods, many at a time. What they asked is told of
// each of them, their ends are noticed, and nothing of them stays.
func TestChurn(t *testing.T) {
	const (
		pods     = 200
		parallel = 8
		good     = 3        // calls of each
		most     = 32 << 10 // bytes that may stay of each
	)
	a := newBoxAgent(t, lab.BoxConfig{})
	service, servers := a.service("10.96.0.10", lab.Random, 2,
		lab.Rule{Name: "fails.test.", Rcode: dns.RcodeServerFailure}, lab.Rule{Name: "*", Addrs: both})
	seam := &churnRim{gone: make(map[string]int)}
	a.run = func(ctx context.Context, cfg Config, log *slog.Logger, version Version) error {
		return watch(ctx, cfg, log, version, listen, seam.rim())
	}
	a.start()

	live := func(name string) error {
		p, err := a.box.RunPod(t.Context(), lab.CRIPodConfig{Namespace: "ci", Name: name, Nameservers: []netip.Addr{service}})
		if err != nil {
			return err
		}
		a.load(p, "app", lab.MuslStatic, good, 1, "warm.test.")
		a.load(p, "app", lab.Glibc, 1, 0, "fails.test.")
		// The kubelet itself looks once a second whether a pod has ended.
		err = lab.Until(t.Context(), 10*time.Second, func() error {
			if !seam.alive(workload.Workload{Namespace: "ci", Pod: name}) {
				return fmt.Errorf("%s is not known", name)
			}
			return nil
		})
		return errors.Join(err, p.Stop(t.Context()))
	}
	// What is made once for all is there after the first pods.
	var first errgroup.Group
	for i := range parallel {
		first.Go(func() error { return live(fmt.Sprintf("first-%d", i)) })
	}
	if err := first.Wait(); err != nil {
		t.Fatal(err)
	}
	settled := func() {
		a.until("all pods have ended", func() error {
			if counters, pending := seam.counters(); counters.Pods+pending > 0 {
				return fmt.Errorf("%d pods, %d pending lookups", counters.Pods, pending)
			}
			return nil
		})
	}
	settled()
	goroutines, memory := runtime.NumGoroutine(), heap()
	open, err := descriptors()
	if err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	var group errgroup.Group
	group.SetLimit(parallel)
	want := make(map[string]int)
	for i := range pods {
		name := fmt.Sprintf("pod-%03d", i)
		want[name] = 2
		group.Go(func() error { return live(name) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pods in %v", pods, time.Since(began).Round(time.Millisecond))
	for i := range parallel {
		want[fmt.Sprintf("first-%d", i)] = 2
	}
	settled()

	all := 0
	for _, s := range servers {
		all += int(s.Questions())
	}
	f := a.counted((pods + parallel) * 2 * (good + 1))
	t.Logf("%d questions: %v", all, f.by("dns_lookups_total", "namespace", "resolver", "outcome"))
	if diff := cmp.Diff(map[string]int{"ci": (pods + parallel) * 2 * (good + 1)}, f.by("dns_lookups_total", "namespace")); diff != "" {
		t.Errorf("lookups (-made +counted):\n%s", diff)
	}
	if diff := cmp.Diff(want, f.by("dns_lookup_failures_total", "pod")); diff != "" {
		t.Errorf("failures by pod (-want +got):\n%s", diff)
	}
	// The finder says it after it has forgotten them.
	a.until("the end of each pod was noted once", func() error {
		if all := seam.unnoticed(want); len(all) > 0 {
			return fmt.Errorf("%d pods whose end was not: %s", len(all), strings.Join(all, ", "))
		}
		return nil
	})

	a.until("goroutines and descriptors are as many as before", func() error {
		n, err := descriptors()
		if err == nil && (n > open || runtime.NumGoroutine() > goroutines) {
			err = fmt.Errorf("%d descriptors, %d before; %d goroutines, %d before", n, open, runtime.NumGoroutine(), goroutines)
		}
		return err
	})
	counters, _ := seam.counters()
	grown := heap() - memory
	t.Logf("%d goroutines, %d descriptors; the heap has grown by %d KiB from %d KiB; %+v", goroutines, open, grown>>10, memory>>10, counters)
	// Each pod has two incidents in the history, their lines in the test's log,
	// a series, and two minutes in the finder's memory.
	if grown > pods*most {
		t.Errorf("%d bytes stay of each pod, want %d at most", grown/pods, most)
	}
	if counters.Remembered > pods+parallel {
		t.Errorf("%d pods are remembered", counters.Remembered)
	}
}
