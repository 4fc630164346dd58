package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/internal/lab"
)

var (
	service4 = netip.MustParseAddr("10.96.0.10")
	other4   = netip.MustParseAddr("10.96.0.11")
	four     = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	both     = append(four[:1:1], netip.MustParseAddr("2001:db8::1"))
)

// node is a node with two DNS servers behind one Service, and a kubelet's
// configuration that names it.
type node struct {
	*lab.Lab
	t       *testing.T
	servers []*lab.Server
	root    string
}

// cluster are the rules of a healthy cluster.
func cluster(more ...lab.Rule) []lab.Rule {
	return append(more,
		lab.Rule{Name: "kubernetes.default.svc.cluster.test.", Addrs: four},
		lab.Rule{Name: "git.example.test.", Addrs: both},
	)
}

func newNode(t *testing.T, services ...netip.Addr) *node {
	t.Helper()
	n := &node{Lab: lab.ForTest(t), t: t, root: t.TempDir()}
	var addrs []netip.Addr
	for range 2 {
		s, err := n.AddServer(cluster()...)
		if err != nil {
			t.Fatal(err)
		}
		n.servers = append(n.servers, s)
		addrs = append(addrs, s.Addr4)
	}
	var config strings.Builder
	config.WriteString("clusterDomain: cluster.test\nclusterDNS:\n")
	for _, s := range services {
		if err := n.AddService(s, lab.Random, addrs...); err != nil {
			t.Fatal(err)
		}
		config.WriteString("- " + s.String() + "\n")
	}
	n.write("var/lib/kubelet/config.yaml", config.String())
	return n
}

// write writes a file of the host.
func (n *node) write(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) rules(rules ...lab.Rule) {
	for _, s := range n.servers {
		s.SetRules(cluster(rules...)...)
	}
}

// examine runs the doctor in the node's namespace.
func (n *node) examine(cfg Config, within func(func() error) error) []Verdict {
	n.t.Helper()
	cfg.HostRoot = n.root
	d := newDoctor(cfg)
	d.within = within
	begin := time.Now()
	verdicts := d.run(n.t.Context())
	if took := time.Since(begin); took > 2*limit {
		n.t.Errorf("the examination took %v", took)
	}
	return verdicts
}

// notOK are the checks that are not ok.
func notOK(verdicts []Verdict) []string {
	var out []string
	for _, v := range verdicts {
		if v.State != OK {
			out = append(out, fmt.Sprintf("%s %s", v.Check, v.State))
		}
	}
	return out
}

func text(verdicts []Verdict) string {
	var b strings.Builder
	_ = Table(&b, verdicts)
	return b.String()
}

var checks = []string{"kernel", "conntrack_events", "conntrack_accounting", "conntrack_timestamps", "conntrack_table", "conntrack_drops", "conntrack_exempt",
	"nameservers_found", "nameservers_answer", "nameservers_distinct", "node_local_cache", "name_families", "name_search", "name_cost"}

func (n *node) sysctl(name, value string) {
	n.t.Helper()
	if err := n.Node().Sysctl("net/netfilter/"+name, value); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) nft(rule string) {
	n.t.Helper()
	n.command("nft", rule)
}

// command runs a command in the node's namespace.
func (n *node) command(name string, args ...string) {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Node().Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
}

// serve answers every question at an address of the node with NXDOMAIN.
func (n *node) serve(at netip.AddrPort) (stop func()) {
	n.t.Helper()
	server := &dns.Server{Addr: at.String(), Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})}
	err := n.Node().Do(func() (err error) {
		server.PacketConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	started, done := make(chan struct{}), make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() {
		defer close(done)
		_ = server.ActivateAndServe()
	}()
	<-started
	return func() {
		_ = server.Shutdown()
		<-done
	}
}
