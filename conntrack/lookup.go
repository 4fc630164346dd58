package conntrack

import (
	"net/netip"
	"time"

	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// kernelTable asks the kernel's table over a connection of its own.
type kernelTable struct{ conn *ct.Conn }

// lookup finds the entry that a packet of the original tuple belongs to.
func (k kernelTable) lookup(t Tuple) (flow, bool) {
	q := ct.Flow{Zone: t.Zone}
	q.TupleOrig.IP.SourceAddress, q.TupleOrig.IP.DestinationAddress = t.Source.Addr(), t.Destination.Addr()
	q.TupleOrig.Proto.Protocol = unix.IPPROTO_UDP
	q.TupleOrig.Proto.SourcePort, q.TupleOrig.Proto.DestinationPort = t.Source.Port(), t.Destination.Port()
	f, err := k.conn.Get(q)
	if err != nil {
		// Gone already, most likely; and no answer is no evidence.
		return flow{}, false
	}
	return flow{
		backend:   netip.AddrPortFrom(f.TupleReply.IP.SourceAddress, f.TupleReply.Proto.SourcePort),
		timeout:   time.Duration(f.Timeout) * time.Second,
		counted:   f.CountersOrig.Packets > 0,
		questions: f.CountersOrig.Packets,
		answers:   f.CountersReply.Packets,
	}, true
}
