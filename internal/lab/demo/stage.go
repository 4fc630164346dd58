package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	zone = "example.de."
	// upstreamTakes is what the authoritative server needs for a name that no
	// cache has: more than the second that conntrack keeps what collided, and
	// little enough for a pod to stand still for a second before musl asks again.
	upstreamTakes = 1200 * time.Millisecond
)

// The pods, all in the namespace ci.
const (
	plain          = "runner"
	second         = "runner-2"
	twoNameservers = "runner-2ns"
	searching      = "runner-search"
	stopping       = "runner-wildcard"
	cached         = "runner-cached"
)

var (
	kubeDNS  = netip.MustParseAddr("10.96.0.10")
	firstDNS = netip.MustParseAddr("10.96.0.20")
	otherDNS = netip.MustParseAddr("10.96.0.21") // translated to the same backends

	clusterSearch = []string{"ci.svc.cluster.local", "svc.cluster.local", "cluster.local"}
	fiveDots      = []string{"ndots:5"}
)

// podConfigs are what the pods look like.
var podConfigs = []lab.CRIPodConfig{
	{Name: plain, Nameservers: []netip.Addr{kubeDNS}},
	{Name: second, Nameservers: []netip.Addr{kubeDNS}},
	{Name: twoNameservers, Nameservers: []netip.Addr{firstDNS, otherDNS}},
	{Name: searching, Nameservers: []netip.Addr{kubeDNS}, Search: append(clusterSearch[:3:3], "office.test"), Options: fiveDots},
	{Name: stopping, Nameservers: []netip.Addr{kubeDNS}, Search: append(clusterSearch[:3:3], "wildcard.test"), Options: fiveDots},
	{Name: cached, Nameservers: []netip.Addr{nodeLocal}},
}

// stage is the node in the box with the agent on it.
type stage struct {
	*lab.Lab
	ctx      context.Context
	out      io.Writer
	box      *lab.Box
	pods     map[string]*lab.CRIPod
	upstream *lab.Server
	agent    *agent
	registry *lab.Registry
	ca       *lab.CA
}

func newStage(ctx context.Context, out io.Writer, log *slog.Logger, path string) (*stage, error) {
	l, err := lab.New(ctx, log)
	if err != nil {
		return nil, err
	}
	s := &stage{Lab: l, ctx: ctx, out: out, pods: make(map[string]*lab.CRIPod)}
	if err = s.build(); err == nil {
		s.agent, err = watch(ctx, s.Node(), path, s.box.Root())
	}
	if err != nil {
		return nil, errors.Join(err, s.end())
	}
	fmt.Fprintln(out, "On the node runs: nodestead watch --log.level debug")
	return s, nil
}

// build makes the cluster: two CoreDNS behind each service, that ask a server
// which is slow for names that are not in their caches.
func (s *stage) build() error {
	address := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	var err error
	s.upstream, err = s.AddServer(
		lab.Rule{Name: "*.idle." + zone, Addrs: address, Delay: upstreamTakes},
		lab.Rule{Name: "lb." + zone, Type: dns.TypeAAAA, Rcode: dns.RcodeNameError},
		lab.Rule{Name: "old." + zone, Type: dns.TypeAAAA, Rcode: dns.RcodeServerFailure},
		lab.Rule{Name: "silent." + zone, Drop: true},
		lab.Rule{Name: "*." + zone, Addrs: address},
		lab.Rule{Name: "*.wildcard.test."}, // NODATA
	)
	if err != nil {
		return err
	}
	var backends []netip.Addr
	for range 2 {
		c, err := s.AddCoreDNS(fmt.Sprintf(". {\n bind {addr4} {addr6}\n cache\n forward . %s\n}\n", s.upstream.Addr4))
		if err != nil {
			return err
		}
		backends = append(backends, c.Addr4)
	}
	// kube-proxy chooses at random; taking turns makes it happen each time. The
	// other order makes both copies of the AAAA meet an entry with their way back.
	err = errors.Join(
		s.AddService(kubeDNS, lab.Alternate, backends...),
		s.AddService(firstDNS, lab.Alternate, backends...),
		s.AddService(otherDNS, lab.Alternate, backends[1], backends[0]),
	)
	if err != nil {
		return err
	}
	// With it the agent can say how late an answer was, to the millisecond.
	if err := s.Node().Sysctl("net/netfilter/nf_conntrack_timestamp", "1"); err != nil {
		return err
	}
	if err := s.addRegistry(); err != nil {
		return err
	}
	if s.box, err = s.Boot(s.ctx, lab.BoxConfig{LiveRestore: true}); err != nil {
		return err
	}
	var names []string
	for _, cfg := range podConfigs {
		cfg.Namespace = "ci"
		if s.pods[cfg.Name], err = s.box.RunPod(s.ctx, cfg); err != nil {
			return err
		}
		names = append(names, cfg.Name)
	}
	fmt.Fprintf(s.out, "\nA node in a box: systemd, containerd, and the pods %s in the namespace ci, with musl.\nService %s → CoreDNS %s and %s, upstream %s.\n",
		strings.Join(names, ", "), kubeDNS, backends[0], backends[1], s.upstream.Addr4)
	return nil
}

// stopAgent stops the agent, and shows how.
func (s *stage) stopAgent() error {
	took, err := s.agent.stop()
	s.agent = nil
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nSIGTERM: the agent stopped in %d ms with exit code 0.\n", took.Milliseconds())
	return nil
}

func (s *stage) end() error {
	var err error
	if s.agent != nil {
		err = s.agent.kill()
	}
	return errors.Join(err, s.Close())
}
