package doctor

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// The tests of this file are in a node in a box, with the kernel's own conntrack
// and real resolvers. They need root.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A healthy node is healthy, and each fault is found and named.
func TestFaults(t *testing.T) {
	if err := lab.Install(t.Context(), slog.New(slog.DiscardHandler), "nftables"); err != nil {
		t.Fatal(err)
	}
	nothing := func(*node) {}
	answering := func(rules ...lab.Rule) func(*node) {
		return func(n *node) { n.rules(rules...) }
	}
	tests := []struct {
		name   string
		cfg    Config
		inject func(*node)
		want   []string
		says   []string
	}{
		{name: "healthy", inject: nothing, says: []string{
			"10.96.0.10:53, from clusterDNS in /var/lib/kubelet/config.yaml",
			"kubernetes.default.default.svc.cluster.test. A nxdomain, AAAA nxdomain (musl goes on); kubernetes.default.svc.cluster.test. A noerror, AAAA nodata (musl success)",
		}},
		{name: "events off",
			inject: func(n *node) { n.sysctl("nf_conntrack_events", "0") },
			want:   []string{"conntrack_events finding"}, says: []string{"nf_conntrack_events is 0"}},
		{name: "a rule that exempts the pods' DNS",
			inject: func(n *node) {
				n.nft("add table inet t")
				n.nft("add chain inet t early { type filter hook prerouting priority -300; }")
				n.nft("add rule inet t early udp dport 53 notrack")
			},
			want: []string{"conntrack_exempt finding"}, says: []string{"table t, chain early exempts DNS from tracking"}},
		{name: "a silent nameserver", inject: answering(lab.Rule{Drop: true}),
			want: []string{"nameservers_answer finding", "name_search finding"}, says: []string{"10.96.0.10:53 did not answer A for kubernetes.default.svc.cluster.test. in 5s (asked 2 times)"}},
		{name: "a firewall on the node",
			inject: func(n *node) {
				n.nft("add table inet t")
				n.nft("add chain inet t out { type filter hook output priority 0; }")
				n.nft("add rule inet t out udp dport 53 drop")
			},
			want: []string{"nameservers_answer finding", "name_search finding"}, says: []string{"10.96.0.10:53 could not be asked A for kubernetes.default.svc.cluster.test.: ", "operation not permitted"}},
		{name: "a node without a kubelet",
			inject: func(n *node) {
				n.write("var/lib/kubelet/config.yaml", "")
				n.write("etc/resolv.conf", "nameserver 10.96.0.10\n")
			},
			want: []string{"nameservers_found unknown", "name_search unknown"}, says: []string{"the node's own /etc/resolv.conf", "cluster.local is a guess"}},
		{name: "no name at all", cfg: Config{Name: "git..test."}, inject: nothing,
			want: []string{"nameservers_answer unknown", "name_families unknown", "name_search unknown", "name_cost unknown"}, says: []string{"correct the name"}},
		{name: "AAAA of the name is denied", cfg: Config{Name: "git.example.test."}, inject: answering(lab.Rule{Name: "git.example.test.", Type: dns.TypeAAAA, Rcode: dns.RcodeNameError}),
			want: []string{"name_families finding", "name_search finding"}, says: []string{"family_mismatch: git.example.test. A noerror, AAAA nxdomain"}},
		{name: "AAAA of the name fails", cfg: Config{Name: "git.example.test."}, inject: answering(lab.Rule{Name: "git.example.test.", Type: dns.TypeAAAA, Rcode: dns.RcodeServerFailure}),
			want: []string{"name_families finding", "name_search finding"}, says: []string{"family_mismatch: git.example.test. A noerror, AAAA servfail (musl fails: EAI_AGAIN, glibc succeeds)"}},
		{name: "a search domain without data", cfg: Config{Name: "git.example.test", Search: []string{"corp.test"}}, inject: answering(lab.Rule{Name: "*.corp.test."}),
			want: []string{"name_search finding"}, says: []string{"search_stopped: musl stops at git.example.test.corp.test."}},
		{name: "the price of ndots", cfg: Config{Name: "git.example.test"}, inject: nothing,
			says: []string{"search_amplification: git.example.test is found after 6 questions in vain (3 names"}},
		{name: "ndots that suits", cfg: Config{Name: "git.example.test", Ndots: 2}, inject: nothing},
		{name: "two nameservers, one of which is silent", cfg: Config{Nameservers: []netip.AddrPort{netip.AddrPortFrom(service4, 53), netip.MustParseAddrPort("192.0.2.53:53")}}, inject: nothing,
			want: []string{"nameservers_answer finding"}, says: []string{"192.0.2.53:53 did not answer A"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // five seconds for each that is silent
			n := newNode(t, service4)
			tc.inject(n)
			verdicts := n.examine(tc.cfg, n.Node().Do)
			if diff := cmp.Diff(tc.want, notOK(verdicts)); diff != "" {
				t.Errorf("not ok (-want +got):\n%s", diff)
			}
			want := min(len(tc.want), 1)
			if strings.HasSuffix(strings.Join(tc.want, ""), "unknown") {
				want = 2
			}
			if got := Exit(verdicts); got != want {
				t.Errorf("exit %d, want %d", got, want)
			}
			var names []string
			for _, v := range verdicts {
				names = append(names, v.Check)
			}
			if diff := cmp.Diff(checks, names); diff != "" {
				t.Errorf("checks (-want +got):\n%s", diff)
			}
			all := text(verdicts)
			for _, want := range tc.says {
				if !strings.Contains(all, want) {
					t.Errorf("nothing says %q", want)
				}
			}
			if t.Failed() || tc.name == "healthy" {
				t.Log("\n" + all)
			}
		})
	}
}

// Two Services over the same servers: musl loses questions to them.
func TestSameServers(t *testing.T) {
	t.Parallel()
	n := newNode(t, service4, other4)
	verdicts := n.examine(Config{}, n.Node().Do)
	if got := notOK(verdicts); !slices.Contains(got, "nameservers_distinct finding") {
		t.Errorf("not ok: %v\n%s", got, text(verdicts))
	}
	if got, want := text(verdicts), "10.96.0.10:53 and 10.96.0.11:53 are both translated to 10.244.3."; !strings.Contains(got, want) {
		t.Errorf("nothing says %q:\n%s", want, got)
	}
}

// Who stops it early gets no findings that are none.
func TestStopped(t *testing.T) {
	t.Parallel()
	n := newNode(t, service4)
	n.rules(lab.Rule{Drop: true})
	d := newDoctor(Config{HostRoot: n.root})
	d.within = n.Node().Do
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	verdicts := d.run(ctx)
	want := []string{"nameservers_answer unknown", "name_families unknown", "name_search unknown", "name_cost unknown"}
	if diff := cmp.Diff(want, notOK(verdicts)); diff != "" {
		t.Errorf("not ok (-want +got):\n%s%s", diff, text(verdicts))
	}
}

// NodeLocal DNSCache answers and is not tracked; when its rules are lost, its
// lookups are.
func TestNodeLocal(t *testing.T) {
	t.Parallel()
	n := newNode(t, service4)
	if err := lab.Install(t.Context(), slog.New(slog.DiscardHandler), "nftables", "iproute2"); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("169.254.20.10")
	n.command("ip", "link", "add", "nodelocaldns", "type", "veth", "peer", "name", "nodelocalpeer")
	n.command("ip", "addr", "add", local.String()+"/32", "dev", "nodelocaldns")
	n.command("ip", "link", "set", "nodelocaldns", "up")
	stop := n.serve(netip.AddrPortFrom(local, 53))
	defer stop()
	verdicts := n.examine(Config{}, n.Node().Do)
	if got := notOK(verdicts); !slices.Equal(got, []string{"node_local_cache finding"}) {
		t.Errorf("without rules, not ok: %v\n%s", got, text(verdicts))
	}
	n.nft("add table ip raw")
	n.nft("add chain ip raw OUTPUT { type filter hook output priority -300; }")
	n.nft("add rule ip raw OUTPUT ip daddr 169.254.20.10 udp dport 53 notrack")
	n.nft("add rule ip raw OUTPUT ip saddr 169.254.20.10 udp sport 53 notrack")
	verdicts = n.examine(Config{}, n.Node().Do)
	if got := notOK(verdicts); got != nil {
		t.Errorf("with rules, not ok: %v\n%s", got, text(verdicts))
	}
	if got, want := text(verdicts), "169.254.20.10:53 answered A"; !strings.Contains(got, want) || !strings.Contains(got, "its lookups are not tracked") {
		t.Errorf("%q and that it is not tracked is not said:\n%s", want, got)
	}
}

// Without the capability it says what it could not tell, and what to give.
func TestWithoutNetAdmin(t *testing.T) {
	t.Parallel()
	n := newNode(t, service4)
	verdicts := n.examine(Config{}, func(fn func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread is spoilt
			done <- func() error {
				if err := unix.Setns(n.Node().FD(), unix.CLONE_NEWNET); err != nil {
					return err
				}
				header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
				var data [2]unix.CapUserData
				if err := unix.Capget(&header, &data[0]); err != nil {
					return err
				}
				data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
				if err := unix.Capset(&header, &data[0]); err != nil {
					return err
				}
				return fn()
			}()
		}()
		return <-done
	})
	want := []string{"conntrack_table unknown", "conntrack_drops unknown", "conntrack_exempt unknown"}
	if diff := cmp.Diff(want, notOK(verdicts)); diff != "" {
		t.Errorf("not ok (-want +got):\n%s%s", diff, text(verdicts))
	}
	if Exit(verdicts) != 2 || !strings.Contains(text(verdicts), "capability NET_ADMIN") {
		t.Errorf("exit %d:\n%s", Exit(verdicts), text(verdicts))
	}
}
