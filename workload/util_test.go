package workload

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp/cmpopts"
	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

var errNotYet = errors.New("not yet")

// linkIndex is the index of the node's link.
func linkIndex(t *testing.T, l *lab.Lab, name string) (index int) {
	t.Helper()
	err := l.Node().Do(func() error {
		link, err := rtnl.LinkByName(name)
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// bind covers a file, for the namespace's processes only.
func bind(t *testing.T, n *lab.Namespace, from, over string) {
	t.Helper()
	if err := n.Do(func() error { return unix.Mount(from, over, "", unix.MS_BIND, "") }); err != nil {
		t.Fatal(err)
	}
}

// hostile puts a FIFO, on which whoever opens it would wait, in the place of a file.
func hostile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

var equateAddr = cmpopts.EquateComparable(netip.Addr{})

// netipPort is the same address with another port.
func netipPort(a netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), port)
}
