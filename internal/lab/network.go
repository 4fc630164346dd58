package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is the name of the node's link to the remote router.
const Uplink = "eth0"

// The addresses are the same in every lab.
var (
	podNet4     = netip.MustParsePrefix("10.244.1.0/24")
	podNet6     = netip.MustParsePrefix("fd00:10:244:1::/64")
	boxNet4     = netip.MustParsePrefix("10.244.7.0/24") // of CRIPods
	boxNet6     = netip.MustParsePrefix("fd00:10:244:7::/64")
	backendNet4 = netip.MustParsePrefix("10.244.3.0/24")
	backendNet6 = netip.MustParsePrefix("fd00:10:244:3::/64")
	node4       = netip.MustParsePrefix("172.18.0.2/24")
	node6       = netip.MustParsePrefix("fd00:172:18::2/64")
	remote4     = netip.MustParsePrefix("172.18.0.3/24")
	remote6     = netip.MustParsePrefix("fd00:172:18::3/64")

	// A leaf's next hops, and the link address that stands behind them: those
	// of Calico's workloads. No interface has these addresses; a permanent
	// neighbour makes them reachable.
	nextHop4  = netip.MustParseAddr("169.254.1.1")
	nextHop6  = netip.MustParseAddr("fe80::1")
	routerMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

	all4 = netip.MustParsePrefix("0.0.0.0/0")
	all6 = netip.MustParsePrefix("::/0")
)

// router are the sysctls of the node and of the remote router, leaf those of a
// namespace behind one of them. New links take what "default" says.
var (
	leaf = [][2]string{
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
	}
	router = append(leaf[:len(leaf):len(leaf)], [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/forwarding", "1"},
	}...)
)

// configure writes sysctls and sets the loopback up.
func (n *Namespace) configure(sysctls [][2]string) error {
	for _, s := range sysctls {
		if err := n.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return n.netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find the loopback: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set the loopback up: %w", err)
		}
		return nil
	})
}

// netlink runs fn on the namespace's thread with a route netlink handle.
func (n *Namespace) netlink(fn func(*netlink.Handle) error) error {
	return n.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return fn(h)
	})
}

// connect puts the uplink between node and remote and routes over it.
func (l *Lab) connect() error {
	if err := errors.Join(l.node.configure(router), l.remote.configure(router)); err != nil {
		return err
	}
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	peer := net.HardwareAddr{0x02, 0, 0, 0, 0, 3}
	if err := addVeth(l.node, Uplink, mac, l.remote, Uplink, peer); err != nil {
		return err
	}
	err := l.node.setUpLink(Uplink, []netip.Prefix{node4, node6}, []neighbour{{remote4.Addr(), peer}, {remote6.Addr(), peer}}, []route{
		{dst: all4, gw: remote4.Addr()},
		{dst: all6, gw: remote6.Addr()},
	})
	if err != nil {
		return err
	}
	// As Calico has it: what is in a node's block and belongs to nobody
	// vanishes there, instead of going round between the two routers.
	return errors.Join(
		l.remote.setUpLink(Uplink, []netip.Prefix{remote4, remote6}, []neighbour{{node4.Addr(), mac}, {node6.Addr(), mac}}, []route{
			{dst: podNet4, gw: node4.Addr()},
			{dst: podNet6, gw: node6.Addr()},
			{dst: boxNet4, gw: node4.Addr()},
			{dst: boxNet6, gw: node6.Addr()},
		}),
		l.remote.blackhole(backendNet4, backendNet6),
		l.node.blackhole(podNet4, podNet6, boxNet4, boxNet6),
	)
}

// attach connects a leaf to a router in Calico's way: each address of its own
// (/32, /128), a default route over a link-local next hop, permanent neighbours
// on both sides. link is the name on the router's side; the leaf has eth0.
func (l *Lab) attach(at *Namespace, link string, n *Namespace, addrs []netip.Addr) error {
	if err := n.configure(leaf); err != nil {
		return err
	}
	// The last four bytes of the first address make the link address unique.
	b := addrs[0].As16()
	mac := net.HardwareAddr{0x02, 0xaa, b[12], b[13], b[14], b[15]}
	if err := addVeth(at, link, routerMAC, n, "eth0", mac); err != nil {
		return err
	}
	var (
		hosts      []netip.Prefix
		neighbours []neighbour
		routes     []route
	)
	for _, a := range addrs {
		host := netip.PrefixFrom(a, a.BitLen())
		hosts = append(hosts, host)
		neighbours = append(neighbours, neighbour{a, mac})
		routes = append(routes, route{dst: host})
	}
	return errors.Join(
		n.setUpLink("eth0", hosts, []neighbour{{nextHop4, routerMAC}, {nextHop6, routerMAC}}, []route{
			{dst: netip.PrefixFrom(nextHop4, 32)},
			{dst: all4, gw: nextHop4},
			{dst: all6, gw: nextHop6},
		}),
		at.setUpLink(link, nil, neighbours, routes),
	)
}

// addVeth makes a pair of links, one end in each namespace, and sets both up.
func addVeth(a *Namespace, aName string, aMAC net.HardwareAddr, b *Namespace, bName string, bMAC net.HardwareAddr) error {
	err := a.netlink(func(h *netlink.Handle) error {
		veth := netlink.NewVeth(netlink.NewLinkAttrs())
		veth.Name, veth.HardwareAddr = aName, aMAC
		veth.PeerName, veth.PeerHardwareAddr = bName, bMAC
		veth.PeerNamespace = netlink.NsFd(b.fd)
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s: %w", aName, err)
		}
		return setUp(h, aName)
	})
	if err != nil {
		return err
	}
	return b.netlink(func(h *netlink.Handle) error { return setUp(h, bName) })
}

func setUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

type neighbour struct {
	addr netip.Addr
	mac  net.HardwareAddr
}

// route goes to dst over gw, or, without a gw, to what is on the link itself.
type route struct {
	dst netip.Prefix
	gw  netip.Addr
}

// setUpLink waits until the link carries packets and gives it addresses,
// permanent neighbours and routes.
func (n *Namespace) setUpLink(name string, addrs []netip.Prefix, neighbours []neighbour, routes []route) error {
	return n.netlink(func(h *netlink.Handle) error {
		link, err := waitUp(h, name)
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		for _, a := range addrs {
			addr := &netlink.Addr{IPNet: ipNet(a)}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add address %v to link %s: %w", a, name, err)
			}
			if err := waitLocal(h, a.Addr()); err != nil {
				return err
			}
		}
		for _, nb := range neighbours {
			err := h.NeighSet(&netlink.Neigh{
				LinkIndex:    index,
				Family:       family(nb.addr),
				State:        netlink.NUD_PERMANENT,
				IP:           nb.addr.AsSlice(),
				HardwareAddr: nb.mac,
			})
			if err != nil {
				return fmt.Errorf("add neighbour %v to link %s: %w", nb.addr, name, err)
			}
		}
		for _, r := range routes {
			nr := &netlink.Route{LinkIndex: index, Dst: ipNet(r.dst), Family: family(r.dst.Addr())}
			if r.gw.IsValid() {
				nr.Gw = r.gw.AsSlice()
			} else if r.dst.Addr().Is4() {
				nr.Scope = netlink.SCOPE_LINK
			}
			if err := h.RouteAdd(nr); err != nil {
				return fmt.Errorf("add route to %v over link %s: %w", r.dst, name, err)
			}
		}
		return nil
	})
}

// linkList lists the links. A list during which links came or went may lack some
// that were there all the time, so that another one is asked for.
func linkList(h *netlink.Handle) (links []netlink.Link, err error) {
	err = poll(func() (bool, error) {
		if links, err = h.LinkList(); errors.Is(err, netlink.ErrDumpInterrupted) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// waitUp returns the link once the kernel says that it is operational: a veth
// whose peer came up later drops packets until a kernel worker has seen it.
func waitUp(h *netlink.Handle, name string) (netlink.Link, error) {
	var link netlink.Link
	err := poll(func() (done bool, err error) {
		if link, err = h.LinkByName(name); err != nil {
			return false, fmt.Errorf("find link %s: %w", name, err)
		}
		return link.Attrs().OperState == netlink.OperUp, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for link %s to be up: %w", name, err)
	}
	return link, nil
}

// waitLocal waits until packets to the address are taken in. For IPv6 a kernel
// worker sees to that, some time after the address was added.
func waitLocal(h *netlink.Handle, a netip.Addr) error {
	err := poll(func() (bool, error) {
		routes, err := h.RouteGet(a.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL, nil
	})
	if err != nil {
		return fmt.Errorf("wait for address %v to be local: %w", a, err)
	}
	return nil
}

// poll asks until the kernel has done what it does in the background, in
// general within a millisecond; on a machine with far too much to do it has
// taken more than ten seconds to end the processes of a box.
func poll(done func() (bool, error)) error {
	for deadline := time.Now().Add(time.Minute); ; {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("the kernel takes too long")
		}
		time.Sleep(time.Millisecond)
	}
}

// blackhole routes what has no better route nowhere. Any route of a link to the
// same destination is better: a bridge's to its network.
func (n *Namespace) blackhole(dsts ...netip.Prefix) error {
	return n.netlink(func(h *netlink.Handle) error {
		for _, dst := range dsts {
			r := &netlink.Route{Dst: ipNet(dst), Family: family(dst.Addr()), Type: unix.RTN_BLACKHOLE, Priority: 1 << 16}
			if err := h.RouteAdd(r); err != nil {
				return fmt.Errorf("add blackhole for %v: %w", dst, err)
			}
		}
		return nil
	})
}

// newHost returns the next free address of a network; the first is 2.
func (l *Lab) newHost(p netip.Prefix) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	host := l.hosts[p] + 2
	if host > 254 {
		return netip.Addr{}, fmt.Errorf("no address left in %v", p)
	}
	l.hosts[p]++
	return hostOf(p, host), nil
}

// hostOf returns the address of a network with this number.
func hostOf(p netip.Prefix, host uint16) netip.Addr {
	b := p.Addr().AsSlice()
	low := b[len(b)-2:]
	binary.BigEndian.PutUint16(low, binary.BigEndian.Uint16(low)+host)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// newLink returns an unused name for a link of a router.
func (l *Lab) newLink(at *Namespace) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links[at]++
	return fmt.Sprintf("cali%d", l.links[at])
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
