package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// nodeLocalLink is the link that NodeLocal DNSCache makes for its addresses.
const nodeLocalLink = "nodelocaldns"

// dnsPort is the port of every nameserver that a resolv.conf can name.
const dnsPort = 53

// PodDNS is how the pods of a node resolve names, as far as the node knows: that
// of pods with the policy ClusterFirst.
type PodDNS struct {
	// Nameservers are in the order of the pods' resolv.conf.
	Nameservers []netip.AddrPort
	// Domain is the cluster's domain without a dot at its end; "" when the
	// kubelet's configuration was not found.
	Domain string
	// Search is the node's own search list, which the kubelet appends to that of
	// the cluster.
	Search []string
	// NodeLocal are the addresses of NodeLocal DNSCache on this node. Pods ask
	// them directly only where they are among the Nameservers.
	NodeLocal []netip.Addr
	// FromNode: the nameservers are the node's own, because those of the pods
	// were not found.
	FromNode bool
	// Source says where the nameservers come from, for people to read.
	Source string
}

// Nameservers finds what is worth asking from this node: the nameservers of its
// pods and, after them, NodeLocal DNSCache. It says where that is written. See
// FindPodDNS.
func Nameservers(hostRoot string) (nameservers []netip.AddrPort, source string, err error) {
	d, err := FindPodDNS(hostRoot)
	nameservers, source = d.all()
	return nameservers, source, err
}

// all are the pods' nameservers and those of NodeLocal DNSCache.
func (d PodDNS) all() (nameservers []netip.AddrPort, source string) {
	nameservers, source = slices.Clone(d.Nameservers), d.Source
	for _, a := range d.NodeLocal {
		nameservers = appendNew(nameservers, a)
	}
	if len(nameservers) > len(d.Nameservers) {
		source += "; and the link " + nodeLocalLink
	}
	return nameservers, source
}

// FindPodDNS reads, below hostRoot ("" and "/" are the process's own root), the
// running kubelet's command line, its configuration, and that of k3s and RKE2;
// when none of them names a nameserver, what running pods were given; and when
// there are none, the node's own resolv.conf, and Source says so. The link of NodeLocal DNSCache is looked for in the process's network
// namespace, which must be the node's. It fails when no nameserver was found.
func FindPodDNS(hostRoot string) (PodDNS, error) {
	return findPodDNS(hostRoot, nodeLocalAddrs)
}

func findPodDNS(hostRoot string, nodeLocal func() []netip.Addr) (PodDNS, error) {
	if hostRoot == "" {
		hostRoot = "/"
	}
	root, err := os.OpenRoot(hostRoot)
	if err != nil {
		return PodDNS{}, fmt.Errorf("open the host's files: %w", err)
	}
	defer root.Close()
	k, errs := findKubelet(root)
	resolv := strings.TrimPrefix(k.resolvConf, "/")
	if resolv == "" {
		resolv = "etc/resolv.conf"
	}
	node, err := readResolvConf(root, resolv)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	d := PodDNS{Domain: k.domain, Search: node.search, NodeLocal: nodeLocal()}
	if len(k.dns) == 0 {
		pods, more := findSandboxes(root)
		errs = append(errs, more...)
		k.dns, k.source = pods.dns, pods.source
		if d.Domain == "" {
			d.Domain = pods.domain
		}
	}
	addrs := k.dns
	d.Source = k.source
	if len(addrs) == 0 {
		addrs = node.nameservers
		d.FromNode = true
		d.Source = "the node's own /" + resolv + ": no kubelet's clusterDNS was found"
		if len(errs) > 0 {
			d.Source += " (" + strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; ") + ")"
		}
	}
	for _, a := range addrs {
		d.Nameservers = appendNew(d.Nameservers, a)
	}
	if len(d.Nameservers) == 0 {
		return d, errors.Join(append(errs, errors.New("no nameserver was found: neither in the kubelet's configuration nor in the node's resolv.conf"))...)
	}
	return d, nil
}

func appendNew(to []netip.AddrPort, a netip.Addr) []netip.AddrPort {
	ns := netip.AddrPortFrom(a.Unmap(), dnsPort)
	if slices.Contains(to, ns) {
		return to
	}
	return append(to, ns)
}

// nodeLocalAddrs are the addresses of NodeLocal DNSCache, none when there is no
// such link.
func nodeLocalAddrs() []netip.Addr {
	link, err := net.InterfaceByName(nodeLocalLink)
	if err != nil {
		return nil
	}
	list, err := link.Addrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range list {
		// The kernel's own link-local IPv6 address serves nobody.
		if p, err := netip.ParsePrefix(a.String()); err == nil && (p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast()) {
			out = append(out, p.Addr())
		}
	}
	return out
}

// resolvConf is what we need of a resolv.conf (resolv.conf(5)).
type resolvConf struct {
	nameservers []netip.Addr
	search      []string
}

func readResolvConf(root *os.Root, path string) (resolvConf, error) {
	b, err := readBounded(root, path)
	if err != nil {
		return resolvConf{}, err
	}
	return parseResolvConf(string(b)), nil
}

// parseResolvConf ignores lines that it does not understand, as resolvers do.
func parseResolvConf(text string) resolvConf {
	var c resolvConf
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				c.nameservers = append(c.nameservers, a)
			}
		case "search", "domain": // the last one counts
			c.search = nil
			for _, s := range fields[1:] {
				if s = strings.TrimSuffix(s, "."); s != "" { // "search ." is systemd's for none
					c.search = append(c.search, s)
				}
			}
		}
	}
	return c
}
