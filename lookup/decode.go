package lookup

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// header is what the decoder needs of an IP header and its extensions.
type header struct {
	src, dst addr
	protocol uint8
	id       uint16 // 0 for IPv6
	payload  []byte
}

// decode fills the packet's kind, addresses and message from a frame that
// begins with its network header. It tells whether the frame is one that the
// filter lets through. It trusts nothing and allocates nothing.
func decode(frame []byte, ports []uint16, p *packet) bool {
	frame = untag(frame)
	if len(frame) == 0 {
		return false
	}
	var h header
	v4 := frame[0]>>4 == 4
	if v4 {
		if !h.ip4(frame) {
			return false
		}
	} else if frame[0]>>4 != 6 || !h.ip6(frame, maxExtensions) {
		return false
	}
	switch {
	case h.protocol == unix.IPPROTO_UDP:
		return p.datagram(&h, ports)
	case h.protocol == unix.IPPROTO_TCP:
		return p.connect(&h, ports)
	case h.protocol == unix.IPPROTO_ICMP && v4:
		return p.unreachable(&h, ports, true)
	case h.protocol == unix.IPPROTO_ICMPV6 && !v4:
		return p.unreachable(&h, ports, false)
	}
	return false
}

// untag takes VLAN tags off that are in the frame. An IP packet may look like a
// tag, an IPv4 one by its length (2048), an IPv6 one by its flow label. So what
// follows must be a packet of the version that the tag names. And the length of an
// IPv4 packet behind a tag is where one without a tag has its fragment offset,
// which is 0 in all that matter.
func untag(b []byte) []byte {
	for i := range maxTags {
		if len(b) < 8 {
			return b
		}
		follows := binary.BigEndian.Uint16(b[6:])
		switch binary.BigEndian.Uint16(b[2:]) {
		case etherTypeIPv4:
			if b[4]>>4 != 4 || follows&0x1fff == 0 {
				return b
			}
		case etherTypeIPv6:
			if b[4]>>4 != 6 {
				return b
			}
		case etherTypeVLAN, etherTypeQinQ:
			if i == maxTags-1 || follows != etherTypeIPv4 && follows != etherTypeIPv6 {
				return b
			}
		default:
			return b
		}
		b = b[4:]
	}
	return b
}

// ip4 reads an IPv4 header. Fragments but the first are refused.
func (h *header) ip4(b []byte) bool {
	if len(b) < 20 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return false
	}
	n := int(b[0]&0x0f) * 4
	if n < 20 || n > len(b) {
		return false
	}
	h.src, h.dst = addr4(b[12:]), addr4(b[16:])
	h.id, h.protocol, h.payload = binary.BigEndian.Uint16(b[4:]), b[9], b[n:]
	return true
}

// ip6 reads an IPv6 header and so many extension headers at most.
func (h *header) ip6(b []byte, extensions int) bool {
	if len(b) < ip6Len {
		return false
	}
	h.src, h.dst = addr6(b[8:]), addr6(b[24:])
	h.id, h.protocol, h.payload = 0, b[6], b[ip6Len:]
	for range extensions {
		n := 8
		switch h.protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(h.payload) < 2 {
				return false
			}
			n *= int(h.payload[1]) + 1
		case unix.IPPROTO_FRAGMENT:
			if len(h.payload) < 4 || binary.BigEndian.Uint16(h.payload[2:])&0xfff8 != 0 {
				return false
			}
		default:
			return true
		}
		if n > len(h.payload) {
			return false
		}
		h.protocol, h.payload = h.payload[0], h.payload[n:]
	}
	return true
}

// datagram takes UDP from or to one of the ports.
func (p *packet) datagram(h *header, ports []uint16) bool {
	if !p.udp(h) || !slices.Contains(ports, p.dst.port) && !slices.Contains(ports, p.src.port) {
		return false
	}
	p.kind, p.from = datagram, addr{}
	return true
}

// udp reads a UDP header. The message ends where the header says, or earlier
// where not everything was captured or quoted.
func (p *packet) udp(h *header) bool {
	b := h.payload
	if len(b) < udpLen {
		return false
	}
	p.src = endpoint{h.src, binary.BigEndian.Uint16(b)}
	p.dst = endpoint{h.dst, binary.BigEndian.Uint16(b[2:])}
	p.ipID = h.id
	n := max(int(binary.BigEndian.Uint16(b[4:])), udpLen)
	p.message = b[udpLen:min(n, len(b))]
	return true
}

// connect takes a SYN without ACK to one of the ports.
func (p *packet) connect(h *header, ports []uint16) bool {
	b := h.payload
	if len(b) <= tcpFlags || b[tcpFlags]&(tcpSYN|tcpACK) != tcpSYN {
		return false
	}
	p.src = endpoint{h.src, binary.BigEndian.Uint16(b)}
	p.dst = endpoint{h.dst, binary.BigEndian.Uint16(b[2:])}
	p.kind, p.from, p.ipID, p.message = connect, addr{}, h.id, nil
	return slices.Contains(ports, p.dst.port)
}

// unreachable takes an ICMP error that quotes a datagram to one of the ports.
// All but the sender is then the quoted datagram's.
func (p *packet) unreachable(h *header, ports []uint16, v4 bool) bool {
	b, from := h.payload, h.src
	if len(b) <= icmpLen {
		return false
	}
	quoted := b[icmpLen:]
	switch {
	case v4 && (b[0] != icmpUnreachable || quoted[0]>>4 != 4 || !h.ip4(quoted)):
		return false
	case !v4 && (b[0] != icmp6Unreach || quoted[0]>>4 != 6 || !h.ip6(quoted, maxQuotedExtensions)):
		return false
	}
	if h.protocol != unix.IPPROTO_UDP || !p.udp(h) || !slices.Contains(ports, p.dst.port) {
		return false
	}
	p.kind, p.from = unreachable, from
	return true
}

func addr4(b []byte) addr { return addr{lo: mapped | uint64(binary.BigEndian.Uint32(b))} }

func addr6(b []byte) addr {
	return addr{hi: binary.BigEndian.Uint64(b), lo: binary.BigEndian.Uint64(b[8:])}
}
