package lookup

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// maxPorts bounds the filter's length: its jumps reach 255 instructions.
	maxPorts = 16
	// snapLength is how much of a packet the ring keeps: the headers, and a DNS
	// message up to its first records.
	snapLength = 512
)

// What filter and decoder know of the headers.
const (
	maxTags             = 2 // VLAN tags that are still in the frame
	maxExtensions       = 4 // IPv6 extension headers
	maxQuotedExtensions = 2 // the same, in what an ICMP error quotes

	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8

	ip6Len          = 40
	udpLen          = 8
	icmpLen         = 8 // of an error, before what it quotes
	icmpUnreachable = 3 // RFC 792
	icmp6Unreach    = 1 // RFC 4443
	tcpFlags        = 13
	tcpSYN, tcpACK  = 0x02, 0x10
)

// filter is the decision of decode as a classic BPF program for a packet
// socket of the type SOCK_DGRAM, where a frame begins with its network header:
// whether the packet is UDP from or to one of the ports, a TCP SYN to one, or
// an ICMP error about a datagram to one. It returns the number of bytes to
// keep.
//
// It looks at the bytes alone, not at the frame's protocol (SKF_AD_PROTOCOL):
// that of a VLAN frame tells whether there is a tag only on the way in, because
// on the way out the kernel hands over the frame without the tag that it has
// just put in. A tag that the hardware or the kernel took out is not in the
// bytes at all.
//
// A load from behind the packet's end makes the kernel refuse the packet.
//
// Of these packets it takes a share; own are the node's own addresses.
func filter(ports []uint16, of share, own []addr) ([]bpf.RawInstruction, error) {
	if len(ports) == 0 || len(ports) > maxPorts {
		return nil, fmt.Errorf("%d ports: the filter takes 1 to %d", len(ports), maxPorts)
	}
	if len(own) > maxOwn {
		return nil, fmt.Errorf("%d addresses: the filter takes %d", len(own), maxOwn)
	}
	a := program{ports: ports}
	if of == noShare {
		a.verdict(0)
		return a.assemble()
	}
	rest := uint32(snapLength) // of what is not seen beyond the clients' links
	if of == beyond {
		rest = 0
	}
	// X is the offset of the header that is looked at, from here to the end.
	a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 0})
	a.tags()
	a.label("ip")
	a.add(bpf.StoreScratch{Src: bpf.RegX, N: ipOffset})
	a.load(0, 1)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0})
	a.jump(bpf.JumpEqual, 0x60, "ip6")
	a.jump(bpf.JumpNotEqual, 0x40, "drop")
	a.ip4(map[uint32]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_ICMP: "icmp4"}, "drop")
	a.label("ip6")
	a.ip6(map[uint32]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_ICMPV6: "icmp6"}, maxExtensions, "drop")

	a.label("tcp")
	a.load(tcpFlags, 1)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: tcpSYN | tcpACK})
	a.jump(bpf.JumpNotEqual, tcpSYN, "drop")
	a.load(2, 2)
	a.anyPort("pass")
	a.verdict(0)
	a.label("udp")
	a.load(2, 2)
	a.anyPort("whole")
	a.load(0, 2)
	a.anyPort("whole")
	a.label("drop")
	a.verdict(0)
	a.label("whole")
	a.load(udpLen-2, 2)
	if of != everything {
		a.always("split")
	}
	a.label("pass")
	a.verdict(rest)

	a.label("icmp4")
	a.load(0, 1)
	a.jump(bpf.JumpNotEqual, icmpUnreachable, "drop quoted")
	a.skip(icmpLen)
	a.load(0, 1)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0})
	a.jump(bpf.JumpNotEqual, 0x40, "drop quoted")
	a.ip4(map[uint32]string{unix.IPPROTO_UDP: "quoted"}, "drop quoted")
	a.label("icmp6")
	a.load(0, 1)
	a.jump(bpf.JumpNotEqual, icmp6Unreach, "drop quoted")
	a.skip(icmpLen)
	a.load(0, 1)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0})
	a.jump(bpf.JumpNotEqual, 0x60, "drop quoted")
	a.ip6(map[uint32]string{unix.IPPROTO_UDP: "quoted"}, maxQuotedExtensions, "drop quoted")
	a.label("quoted")
	a.load(2, 2)
	a.anyPort("quoted whole")
	a.label("drop quoted")
	a.verdict(0)
	a.label("quoted whole")
	a.load(udpLen-2, 2)
	a.verdict(rest)
	if of != everything {
		// Last, because it is long and other jumps would not reach over it.
		a.label("split")
		a.split(own)
		a.verdict(snapLength - rest)
		a.label("near")
		a.verdict(rest)
	}
	return a.assemble()
}

// program is an assembler that knows the filter's steps. All of them expect the
// offset of a header in X.
type program struct {
	assembler
	ports []uint16
	steps int // makes labels of steps that are used several times differ
}

// load loads what is behind X into A.
func (a *program) load(off uint32, size int) { a.add(bpf.LoadIndirect{Off: off, Size: size}) }

// skip moves X on.
func (a *program) skip(n uint32) {
	a.add(bpf.TXA{})
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: n})
	a.add(bpf.TAX{})
}

func (a *program) verdict(keep uint32) { a.add(bpf.RetConstant{Val: keep}) }

// anyPort goes to the label when A is one of the ports.
func (a *program) anyPort(label string) {
	for _, p := range a.ports {
		a.jump(bpf.JumpEqual, uint32(p), label)
	}
}

// tags skips VLAN tags, each two bytes of tag and two of the type of what
// follows; see untag for what must look right there.
func (a *program) tags() {
	for i := range maxTags {
		four, six, tag, yes := fmt.Sprint("tag4 ", i), fmt.Sprint("tag6 ", i), fmt.Sprint("tag ", i), fmt.Sprint("tagged ", i)
		a.load(2, 2)
		a.jump(bpf.JumpEqual, etherTypeIPv4, four)
		a.jump(bpf.JumpEqual, etherTypeIPv6, six)
		if i < maxTags-1 {
			a.jump(bpf.JumpEqual, etherTypeVLAN, tag)
			a.jump(bpf.JumpEqual, etherTypeQinQ, tag)
		}
		a.always("ip")
		a.label(four)
		a.load(6, 2)
		a.jump(bpf.JumpBitsNotSet, 0x1fff, "ip")
		a.load(4, 1)
		a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0})
		a.jump(bpf.JumpEqual, 0x40, yes)
		a.always("ip")
		a.label(six)
		a.load(4, 1)
		a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0})
		a.jump(bpf.JumpEqual, 0x60, yes)
		a.always("ip")
		if i < maxTags-1 {
			a.label(tag)
			a.load(6, 2)
			a.jump(bpf.JumpEqual, etherTypeIPv4, yes)
			a.jump(bpf.JumpNotEqual, etherTypeIPv6, "ip")
		}
		a.label(yes)
		a.skip(4)
	}
}

// ip4 goes on with what is in an IPv4 packet, by its protocol. Fragments but the
// first have no ports in them.
func (a *program) ip4(protocols map[uint32]string, drop string) {
	a.load(6, 2)
	a.jump(bpf.JumpBitsSet, 0x1fff, drop)
	a.load(9, 1)
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
	a.load(0, 1)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f})
	a.jump(bpf.JumpLessThan, 5, drop)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2})
	a.add(bpf.ALUOpX{Op: bpf.ALUOpAdd})
	a.add(bpf.TAX{})
	a.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	a.dispatch(protocols)
	a.always(drop)
}

// dispatch goes to the label of the protocol in A, if it has one.
func (a *program) dispatch(protocols map[uint32]string) {
	for _, p := range []uint32{unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		if label, ok := protocols[p]; ok {
			a.jump(bpf.JumpEqual, p, label)
		}
	}
}

// ip6 does the same for an IPv6 packet, behind so many extension headers at
// most.
func (a *program) ip6(protocols map[uint32]string, extensions int, drop string) {
	a.load(6, 1)
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
	a.skip(ip6Len)
	a.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	for range extensions {
		a.steps++
		extension, fragment, next := fmt.Sprint("extension ", a.steps), fmt.Sprint("fragment ", a.steps), fmt.Sprint("next ", a.steps)
		a.dispatch(protocols)
		a.jump(bpf.JumpEqual, unix.IPPROTO_FRAGMENT, fragment)
		a.jump(bpf.JumpEqual, unix.IPPROTO_HOPOPTS, extension)
		a.jump(bpf.JumpEqual, unix.IPPROTO_ROUTING, extension)
		a.jump(bpf.JumpNotEqual, unix.IPPROTO_DSTOPTS, drop)
		a.label(extension)
		a.load(0, 1)
		a.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
		a.load(1, 1) // in units of 8 bytes, without the first
		a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 1})
		a.add(bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 3})
		a.add(bpf.ALUOpX{Op: bpf.ALUOpAdd})
		a.add(bpf.TAX{})
		a.always(next)
		a.label(fragment)
		a.load(2, 2)
		a.jump(bpf.JumpBitsSet, 0xfff8, drop)
		a.load(0, 1)
		a.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
		a.skip(8)
		a.label(next)
		a.add(bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	}
	a.dispatch(protocols)
	a.always(drop)
}

// attach puts the filter before a socket.
func attach(fd int, program []bpf.RawInstruction) error {
	code := make([]unix.SockFilter, len(program))
	for i, p := range program {
		code[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	if err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}
