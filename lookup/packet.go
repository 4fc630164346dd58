package lookup

import "net/netip"

// addr is an IP address as two words, an IPv4 address mapped to IPv6
// (RFC 4291, section 2.5.5.2): quick to compare and to hash.
type addr struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func (a addr) is4() bool { return a.hi == 0 && a.lo>>32 == mapped>>32 }

// netip is for what leaves the package.
func (a addr) netip() netip.Addr {
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(a.hi>>(56-8*i)), byte(a.lo>>(56-8*i))
	}
	return netip.AddrFrom16(b).Unmap()
}

func addrOf(ip netip.Addr) addr {
	var a addr
	for i, b := range ip.As16() {
		if i < 8 {
			a.hi = a.hi<<8 | uint64(b)
		} else {
			a.lo = a.lo<<8 | uint64(b)
		}
	}
	return a
}

// endpoint is an address and a port.
type endpoint struct {
	addr addr
	port uint16
}

func (e endpoint) netip() netip.AddrPort { return netip.AddrPortFrom(e.addr.netip(), e.port) }

// kind is what a packet is.
type kind uint8

const (
	datagram    kind = iota // UDP from or to a DNS port
	connect                 // a TCP SYN to a DNS port
	unreachable             // an ICMP error about a datagram to a DNS port
)

// packet is one frame that the tap saw, decoded as far as its UDP payload.
// What it points to is valid until the next one is read.
type packet struct {
	at     int64 // nanoseconds since 1970, of the kernel's real-time clock
	link   int32 // index of the link
	egress bool  // the node sent it on that link; else it came in
	kind   kind
	// src and dst are those of the datagram. For unreachable they are those of
	// the datagram that the error is about, and from is the error's sender.
	src, dst endpoint
	from     addr
	// message is the UDP payload, as much as was captured. It is empty for
	// connect; for unreachable it is as much as the error quotes.
	message []byte
	// id is the IP header's identification, 0 for IPv6.
	ipID uint16
}

// role is what a link is to the tracker.
type role uint8

const (
	ignored  role = iota // what passes it is seen elsewhere as well: a bridge
	client               // a pod's own link: what comes in is a client's question
	uplink               // leads to other nodes
	loopback             // lo: the node's own clients
)

// link is a link of the node.
type link struct {
	index int32
	name  string
	role  role
}
