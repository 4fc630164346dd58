package lookup

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Frames as a packet socket gives them: from the network header on.

var (
	pod4     = netip.MustParseAddr("10.244.1.2")
	service4 = netip.MustParseAddr("10.96.0.10")
	router4  = netip.MustParseAddr("172.18.0.3")
	pod6     = netip.MustParseAddr("fd00:10:244:1::2")
	service6 = netip.MustParseAddr("fd00:10:96::a")
	router6  = netip.MustParseAddr("fd00:172:18::3")

	queryBytes = []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04name\x04test\x00\x00\x01\x00\x01")
)

const testID = 0x4711 // of each IPv4 packet

func ip4(protocol uint8, src, dst netip.Addr, payload []byte) []byte {
	return ip4Options(protocol, src, dst, 0, payload)
}

// ip4Options has so many words of options.
func ip4Options(protocol uint8, src, dst netip.Addr, words int, payload []byte) []byte {
	b := make([]byte, 20+4*words)
	b[0], b[8], b[9] = 0x40|byte(5+words), 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[4:], testID)
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	return append(b, payload...)
}

// fragment4 makes a packet a fragment; the offset is in units of 8 bytes.
func fragment4(b []byte, offset uint16, more bool) []byte {
	if more {
		offset |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], offset)
	return b
}

func ip6(next uint8, src, dst netip.Addr, payload []byte) []byte {
	b := make([]byte, ip6Len)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, payload...)
}

// extension6 is an extension header of so many times 8 bytes before the payload.
func extension6(next uint8, units int, payload []byte) []byte {
	b := make([]byte, 8*units)
	b[0], b[1] = next, byte(units-1)
	return append(b, payload...)
}

func fragment6(next uint8, offset uint16, more bool, payload []byte) []byte {
	b := make([]byte, 8)
	b[0] = next
	binary.BigEndian.PutUint16(b[2:], offset<<3)
	if more {
		b[3] |= 1
	}
	return append(b, payload...)
}

func udp(src, dst uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen+len(payload)))
	b = binary.BigEndian.AppendUint16(b, 0)
	return append(b, payload...)
}

func tcp(src, dst uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[12], b[tcpFlags] = 5<<4, flags
	return b
}

func icmp(kind, code byte, quoted []byte) []byte {
	return append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, quoted...)
}

// tag puts a VLAN tag before a frame, as the kernel leaves an inner one.
func tag(etherType uint16, frame []byte) []byte {
	const priority2, id = 2 << 13, 5<<8 | 10 // looks like the beginning of an IPv4 header
	b := binary.BigEndian.AppendUint16(nil, priority2|id)
	return append(binary.BigEndian.AppendUint16(b, etherType), frame...)
}

// samples are frames of each kind that the decoder tells apart.
func samples() map[string][]byte {
	query4 := udp(40000, 53, queryBytes)
	at4 := func(protocol uint8, payload []byte) []byte { return ip4(protocol, pod4, service4, payload) }
	at6 := func(next uint8, payload []byte) []byte { return ip6(next, pod6, service6, payload) }
	const u, t, i4, i6 = unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	const hop, routing, dst, frag = unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT
	long := make([]byte, 2048-28)
	copy(long, queryBytes)
	jumbo := at4(u, udp(40000, 53, long))
	flow := at6(u, query4)
	copy(flow[2:], "\x86\xdd")
	exts := func(n int, payload []byte) []byte {
		next := uint8(u)
		for range n {
			payload, next = extension6(next, 2, payload), dst
		}
		return at6(next, payload)
	}
	unreach4, unreach6 := at4(u, query4), at6(u, query4)
	return map[string][]byte{
		"question4":                      at4(u, query4),
		"question6":                      at6(u, query4),
		"answer4":                        ip4(u, service4, pod4, udp(53, 40000, queryBytes)),
		"answer6":                        ip6(u, service6, pod6, udp(53, 40000, queryBytes)),
		"options4":                       ip4Options(u, pod4, service4, 10, query4),
		"length 2048":                    jumbo,
		"flow label 0x86dd":              flow,
		"padded4":                        append(at4(u, query4), make([]byte, 7)...),
		"cut message":                    at4(u, query4[:20]),
		"empty message":                  at4(u, udp(40000, 53, nil)),
		"UDP length 0":                   at4(u, append([]byte{0x9c, 0x40, 0, 53, 0, 0, 0, 0}, queryBytes...)),
		"first fragment4":                fragment4(at4(u, query4), 0, true),
		"later fragment4":                fragment4(at4(u, query4), 1, false),
		"first fragment6":                at6(frag, fragment6(u, 0, true, query4)),
		"later fragment6":                at6(frag, fragment6(u, 1, false, query4)),
		"hop by hop6":                    at6(hop, extension6(u, 1, query4)),
		"routing, options6":              at6(routing, extension6(dst, 3, extension6(u, 1, query4))),
		"extensions, fragment":           at6(hop, extension6(frag, 1, fragment6(u, 0, true, query4))),
		"four extensions":                exts(4, query4),
		"five extensions":                exts(5, query4),
		"long extension":                 at6(hop, extension6(u, 200, query4)),
		"authentication6":                at6(unix.IPPROTO_AH, extension6(u, 2, query4)),
		"VLAN4":                          tag(etherTypeIPv4, at4(u, query4)),
		"VLAN6":                          tag(etherTypeIPv6, at6(u, query4)),
		"two VLANs":                      tag(etherTypeVLAN, tag(etherTypeIPv4, at4(u, query4))),
		"QinQ6":                          tag(etherTypeQinQ, tag(etherTypeIPv6, at6(u, query4))),
		"three VLANs":                    tag(etherTypeQinQ, tag(etherTypeVLAN, tag(etherTypeIPv4, at4(u, query4)))),
		"VLAN that is none":              tag(etherTypeIPv4, at6(u, query4)),
		"syn4":                           at4(t, tcp(40000, 53, tcpSYN)),
		"syn6":                           at6(t, tcp(40000, 53, tcpSYN|0xc0)), // with ECN
		"syn ack4":                       ip4(t, service4, pod4, tcp(53, 40000, tcpSYN|tcpACK)),
		"ack4":                           at4(t, tcp(40000, 53, tcpACK)),
		"syn from the port":              at4(t, tcp(53, 40000, tcpSYN)),
		"unreachable4":                   ip4(i4, router4, pod4, icmp(3, 1, unreach4[:28])),
		"unreachable6":                   ip6(i6, router6, pod6, icmp(1, 0, unreach6)),
		"unreachable, options":           ip4(i4, router4, pod4, icmp(3, 3, ip4Options(u, pod4, service4, 1, query4))),
		"unreachable, quoted fragment":   ip4(i4, router4, pod4, icmp(3, 1, fragment4(at4(u, query4), 2, true))),
		"unreachable, quoted extensions": ip6(i6, router6, pod6, icmp(1, 4, at6(hop, extension6(frag, 1, fragment6(u, 0, true, query4))))),
		"unreachable, too many":          ip6(i6, router6, pod6, icmp(1, 4, exts(3, query4))),
		"unreachable, an answer":         ip4(i4, pod4, service4, icmp(3, 3, ip4(u, service4, pod4, udp(53, 40000, queryBytes)))),
		"unreachable, TCP":               ip4(i4, router4, pod4, icmp(3, 1, at4(t, tcp(40000, 53, tcpSYN)))),
		"unreachable, cut":               ip4(i4, router4, pod4, icmp(3, 1, unreach4[:27])),
		"unreachable, other family":      ip4(i4, router4, pod4, icmp(3, 1, unreach6)),
		"unreachable6, other family":     ip6(i6, router6, pod6, icmp(1, 1, unreach4)),
		"time exceeded":                  ip4(i4, router4, pod4, icmp(11, 0, unreach4)),
		"too big6":                       ip6(i6, router6, pod6, icmp(2, 0, unreach6)),
		"ICMPv6 in IPv4":                 ip4(i6, router4, pod4, icmp(3, 0, unreach4)),
		"ICMP in IPv6":                   ip6(i4, router6, pod6, icmp(1, 0, unreach6)),
		"another port":                   at4(u, udp(40000, 5353, queryBytes)),
		"header too short":               append([]byte{0x44}, at4(u, query4)[1:]...),
		"cut UDP header":                 at4(u, query4[:7]),
		"nothing but an IP header":       at4(u, nil),
		"ARP":                            []byte("\x00\x01\x08\x00\x06\x04\x00\x01\xee\xee\xee\xee\xee\xee\x0a\xf4\x01\x02\x00\x00\x00\x00\x00\x00\x0a\xf4\x01\x03"),
		"one byte":                       {0x45},
	}
}
