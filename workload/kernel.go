package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernel asks the network namespace that it was opened in for links, addresses
// and routes.
type kernel struct {
	handle *rtnl.Handle
	events *netlink.Conn
}

// openKernel opens its sockets in the calling thread's network namespace.
func openKernel() (*kernel, error) {
	events, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := events.JoinGroup(unix.RTNLGRP_LINK); err != nil {
		return nil, errors.Join(fmt.Errorf("join link events: %w", err), events.Close())
	}
	handle, err := rtnl.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink: %w", err), events.Close())
	}
	return &kernel{handle: handle, events: events}, nil
}

func (k *kernel) close() error {
	k.handle.Close()
	return k.events.Close()
}

// links is what the kernel says of the node's own side.
type links struct {
	// byPeer are the links whose other end is in another network namespace, by
	// the kernel's number for that.
	byPeer   map[int][]int
	shared   map[int]bool // all others
	loopback int
	local    map[netip.Addr]bool
}

// noPeer is what the kernel and the library say of a link without a peer in
// another network namespace (NETNSA_NSID_NOT_ASSIGNED).
const noPeer = -1

// links reads them all.
func (k *kernel) links() (links, error) {
	all, err := k.handle.LinkList()
	if err != nil && !errors.Is(err, rtnl.ErrDumpInterrupted) { // interrupted: a link changed, and its event comes
		return links{}, fmt.Errorf("list links: %w", err)
	}
	l := links{byPeer: make(map[int][]int), shared: make(map[int]bool), local: make(map[netip.Addr]bool)}
	for _, link := range all {
		a := link.Attrs()
		switch {
		case a.NetNsID != noPeer:
			l.byPeer[a.NetNsID] = append(l.byPeer[a.NetNsID], a.Index)
		default:
			l.shared[a.Index] = true
		}
		if a.Flags&unix.IFF_LOOPBACK != 0 {
			l.loopback = a.Index
		}
	}
	addrs, err := k.handle.AddrList(nil, rtnl.FAMILY_ALL)
	if err != nil && !errors.Is(err, rtnl.ErrDumpInterrupted) {
		return links{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range addrs {
		if a, ok := netip.AddrFromSlice(addr.IP); ok && !a.IsLinkLocalUnicast() {
			l.local[a.Unmap()] = true
		}
	}
	return l, nil
}

// peer is the kernel's number for a network namespace; noPeer when it has given
// it none.
func (k *kernel) peer(netns string) (int, error) {
	f, err := os.Open(netns)
	if err != nil {
		return noPeer, err
	}
	defer f.Close()
	id, err := k.handle.GetNetNsIdByFd(int(f.Fd()))
	if err != nil {
		return noPeer, fmt.Errorf("ask for the number of %s: %w", netns, err)
	}
	return id, nil
}

// leadsTo tells whether a link still leads to the network namespace: the
// kernel uses the number of one that has ended again.
func (k *kernel) leadsTo(link, peer int) bool {
	l, err := k.handle.LinkByIndex(link)
	return err == nil && l.Attrs().NetNsID == peer
}

// hostRoutes returns the link of each address that has a route of its own, as
// point-to-point CNIs make them (Calico, ptp).
func (k *kernel) hostRoutes() (map[netip.Addr]int, error) {
	routes, err := k.handle.RouteList(nil, rtnl.FAMILY_ALL)
	if err != nil && !errors.Is(err, rtnl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	byAddr := make(map[netip.Addr]int)
	for _, r := range routes {
		if r.Dst == nil || r.Gw != nil || r.LinkIndex == 0 {
			continue
		}
		ones, bits := r.Dst.Mask.Size()
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && ones == bits {
			byAddr[a.Unmap()] = r.LinkIndex
		}
	}
	return byAddr, nil
}

// linkEvent is a link that came, changed or went.
type linkEvent struct {
	index int
	gone  bool
}

// receive waits for link events until interrupt is called; then it returns an
// error that wraps os.ErrDeadlineExceeded. It returns none when the kernel had
// no room for some: all links must be read again.
func (k *kernel) receive() ([]linkEvent, error) {
	messages, err := k.events.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("receive link events: %w", err)
	}
	var events []linkEvent
	for _, m := range messages {
		// struct ifinfomsg: family, pad, type (16 bits), index (32 bits), flags, change.
		if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] == unix.AF_BRIDGE {
			continue // a port that leaves its bridge is no link that ends
		}
		events = append(events, linkEvent{
			index: int(nlenc.Int32(m.Data[4:8])),
			gone:  m.Header.Type == unix.RTM_DELLINK,
		})
	}
	return events, nil
}

// interrupt ends receive for good.
func (k *kernel) interrupt() { _ = k.events.SetReadDeadline(time.Unix(1, 0)) }
