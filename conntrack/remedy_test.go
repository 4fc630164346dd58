package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// The remedy for orphaned answers that docs/causes.md names first: with
// sessionAffinity: ClientIP, in the rules that kube-proxy writes for it, the two
// questions of a pair go to one backend, and the kernel merges what collides.
func TestSessionAffinityIsARemedy(t *testing.T) {
	b := newBox(t, lab.Random, lab.Rule{Name: "*", Addrs: answer})
	b.install("iptables")
	nat := func(args ...string) { b.command("iptables-nft", append([]string{"-t", "nat"}, args...)...) }
	const service = "10.96.0.99"
	nat("-N", "SVC")
	nat("-A", "PREROUTING", "-d", service+"/32", "-p", "udp", "--dport", "53", "-j", "SVC")
	for i := range b.servers {
		nat("-N", fmt.Sprintf("SEP%d", i))
		nat("-A", "SVC", "-m", "recent", "--name", fmt.Sprintf("SEP%d", i), "--rcheck", "--seconds", "10800", "--reap", "-j", fmt.Sprintf("SEP%d", i))
	}
	for i, s := range b.servers {
		if i == 0 {
			nat("-A", "SVC", "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "SEP0")
		} else {
			nat("-A", "SVC", "-j", fmt.Sprintf("SEP%d", i))
		}
		sep := fmt.Sprintf("SEP%d", i)
		nat("-A", sep, "-m", "recent", "--name", sep, "--set", "-p", "udp", "-j", "DNAT", "--to-destination", s.Addr4.String()+":53")
	}
	p := b.pod("musl", netip.MustParseAddr(service))
	b.sense(Config{})
	h := b.hold(2)
	for h.Full() < 100 { // a client that stands still between its questions has none held together
		b.resolve(p, lab.MuslStatic, int(100-h.Full()), "fast.test.")
	}
	if b.statistics().ClashResolved < 90 {
		t.Fatalf("%d pairs held, %d clashes resolved: nothing was put to the test", h.Full(), b.statistics().ClashResolved)
	}
	b.settled(0, 0)
}
