package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// FillConntrack fills the node's conntrack table to its limit (nf_conntrack_max,
// which is the machine's, and counted in each network namespace) with
// established TCP connections, which the kernel does not remove to make room.
// From then on it drops what needs a new entry.
func (l *Lab) FillConntrack() error {
	limit, err := l.node.ReadSysctl("net/netfilter/nf_conntrack_max")
	if err != nil {
		return err
	}
	most, err := strconv.Atoi(limit)
	if err != nil {
		return fmt.Errorf("nf_conntrack_max is %q: %w", limit, err)
	}
	return l.conntrack(func(c *conntrack.Conn) error {
		server := netip.AddrFrom4([4]byte{198, 18, 0, 1})
		for i := range most + 1 {
			client := netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
			f := conntrack.NewFlow(unix.IPPROTO_TCP, conntrack.StatusAssured|conntrack.StatusSeenReply|conntrack.StatusConfirmed,
				client, server, 1024, uint16(1024+i>>16), 600, 0)
			f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: 3} // TCP_CONNTRACK_ESTABLISHED
			switch err := c.Create(f); {
			case errors.Is(err, unix.ENOMEM):
				return nil // it is full
			case err != nil:
				return fmt.Errorf("add entry %d to the conntrack table: %w", i, err)
			}
		}
		return fmt.Errorf("the conntrack table has no room for %s entries and is not full", limit)
	})
}

// FlushConntrack empties the node's conntrack table.
func (l *Lab) FlushConntrack() error {
	return l.conntrack(func(c *conntrack.Conn) error { return c.Flush() })
}

// conntrack runs fn with a connection to the node's conntrack.
func (l *Lab) conntrack(fn func(*conntrack.Conn) error) error {
	var c *conntrack.Conn
	err := l.node.Do(func() (err error) {
		c, err = conntrack.Dial(nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	return errors.Join(fn(c), c.Close())
}
