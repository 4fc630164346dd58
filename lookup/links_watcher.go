package lookup

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumps is how often links and addresses are read anew when the kernel says that
// they changed in the meantime.
const dumps = 3

// linkWatcher reads a namespace's links and addresses, and learns that they
// changed. What changed it does not ask: it reads all of them again, so that a
// lost message costs nothing.
type linkWatcher struct {
	fd         int
	handle     *netlink.Handle
	interfaces []string
	buf        [64]byte
}

// picture is what the tracker has to know of links and addresses.
type picture struct {
	links []link
	local map[addr]struct{}
}

// openLinkWatcher works in the calling thread's network namespace, for good.
func openLinkWatcher(interfaces []string) (*linkWatcher, error) {
	if err := checkPatterns(interfaces); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("join changes of links and addresses: %w", err), unix.Close(fd))
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open route netlink socket: %w", err), unix.Close(fd))
	}
	return &linkWatcher{fd: fd, handle: handle, interfaces: interfaces}, nil
}

// changed tells whether links or addresses changed since the last call. It does
// not wait.
func (w *linkWatcher) changed() (changed bool, err error) {
	for {
		// What the message says does not matter.
		_, _, err = unix.Recvfrom(w.fd, w.buf[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS): // some were lost
			changed = true
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return changed, nil
		default:
			return changed, fmt.Errorf("receive changes of links: %w", err)
		}
	}
}

// read reads all links and addresses.
func (w *linkWatcher) read() (p picture, err error) {
	var (
		all   []netlink.Link
		addrs []netlink.Addr
	)
	for range dumps {
		if all, err = w.handle.LinkList(); err == nil {
			addrs, err = w.handle.AddrList(nil, netlink.FAMILY_ALL)
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return p, fmt.Errorf("read links and addresses: %w", err)
	}
	p.local = make(map[addr]struct{}, len(addrs))
	networks := map[int]bool{}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		p.local[addrOf(ip)] = struct{}{}
		// A point-to-point address (the ptp plugin's) is no network.
		if ones, bits := a.Mask.Size(); ones < bits && ip.Unmap().IsGlobalUnicast() {
			networks[a.LinkIndex] = true
		}
	}
	p.links = classify(all, networks, w.interfaces)
	return p, nil
}

func (w *linkWatcher) close() error {
	w.handle.Close()
	if err := unix.Close(w.fd); err != nil {
		return fmt.Errorf("close route netlink socket: %w", err)
	}
	return nil
}
