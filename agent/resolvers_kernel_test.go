package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
	"github.com/nodestead/nodestead/lookup"
)

// The shares of lookups whose resolver must be told: of a pod with one
// resolver, and of a pod with two.
const (
	wellTold   = 0.995
	fairlyTold = 0.97
)

// labelOf is the label of a resolver's lookups.
func labelOf(r lab.Resolver) string {
	switch r {
	case lab.Glibc:
		return string(lookup.Glibc)
	case lab.Go:
		return string(lookup.Go)
	default:
		return string(lookup.Musl)
	}
}

// checkResolvers shows a table of who asked against the resolver that the
// lookups were counted for, and wants a share of each row in its right column.
// The counts are by who asked and label.
func (a *boxAgent) checkResolvers(counts map[string]int, want map[string]string, least float64) {
	a.t.Helper()
	var b strings.Builder
	b.WriteString("\n| asked |")
	for _, r := range lookup.Resolvers() {
		fmt.Fprintf(&b, " %s |", r)
	}
	b.WriteString(" right |\n|---|" + strings.Repeat("---|", len(lookup.Resolvers())+1) + "\n")
	for _, who := range slices.Sorted(maps.Keys(want)) {
		fmt.Fprintf(&b, "| %s |", who)
		all := 0
		for _, r := range lookup.Resolvers() {
			n := counts[who+" "+string(r)]
			fmt.Fprintf(&b, " %d |", n)
			all += n
		}
		right := float64(counts[who+" "+want[who]]) / float64(max(all, 1))
		fmt.Fprintf(&b, " %.2f %% |\n", 100*right)
		if right < least {
			a.t.Errorf("%.2f %% of %d lookups of %s were taken for %s's, want %.2f %%", 100*right, all, who, want[who], 100*least)
		}
	}
	a.t.Log(b.String())
}

// TestResolvers has each resolver ask from a pod of its own, and two of them
// from the containers of one pod.
func TestResolvers(t *testing.T) {
	const (
		calls = 600
		turns = 40
		each  = 5 // calls a turn
	)
	known := zone{"git.example.de.": both, "registry.example.de.": both, "api.example.de.": onlyFour}
	names := slices.Sorted(maps.Keys(known))
	a := newBoxAgent(t, lab.BoxConfig{})
	service, servers := a.service("10.96.0.10", lab.Random, 2, known.rules()...)
	a.start()

	want := make(map[string]string)
	var wg sync.WaitGroup
	for _, r := range lab.Resolvers() {
		want[string(r)] = labelOf(r)
		p := a.runPod(lab.CRIPodConfig{Namespace: string(r), Name: "app", Nameservers: []netip.Addr{service}})
		wg.Go(func() { a.load(p, "app", r, calls/len(names), len(names), names...) })
	}
	// The outcome says which of the containers asked.
	mixed := func(namespace string) *lab.CRIPod {
		return a.runPod(lab.CRIPodConfig{
			Namespace: namespace, Name: "app", Containers: []string{"alpine", "debian"}, Nameservers: []netip.Addr{service},
		})
	}
	taking, together := mixed("in-turn"), mixed("together")
	alpine := func(p *lab.CRIPod, n int) { a.load(p, "alpine", lab.MuslStatic, n, 1, "git.example.de.") }
	debian := func(p *lab.CRIPod, n int) { a.load(p, "debian", lab.Glibc, n, 0, "nowhere.example.de.") }
	wg.Go(func() {
		for range turns {
			alpine(taking, each)
			debian(taking, each)
		}
	})
	wg.Go(func() { alpine(together, calls) })
	wg.Go(func() { debian(together, calls) })
	wg.Wait()

	all := 0
	for _, s := range servers {
		all += int(s.Questions())
	}
	f := a.counted(all)
	a.checkResolvers(f.by("dns_lookups_total", "namespace", "resolver"), want, wellTold)
	// Both ask from one address, so that each call is told by its packets alone.
	a.checkResolvers(f.by("dns_lookups_total", "namespace", "outcome", "resolver"), map[string]string{
		"in-turn noerror": "musl", "in-turn nxdomain": "glibc", "together noerror": "musl", "together nxdomain": "glibc",
	}, fairlyTold)
}
