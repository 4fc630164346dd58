package lookup

import (
	"cmp"
	"slices"

	"golang.org/x/net/bpf"
)

// share is which of the packets a filter takes. near and beyond are all, and
// have none in common.
type share uint8

const (
	everything share = iota
	// beyond are packets that nobody needs as long as lookups are answered:
	// questions that leave the node, and answers that come in, unless the node
	// itself asked.
	beyond
	near // all others
	noShare
)

// maxOwn bounds the filter's length.
const maxOwn = 64

// What the filter keeps in its memory; ip4 and ip6 use the first cell.
const (
	ipOffset  = 1
	direction = 2 // 0 to look at the source address, 1 for the destination
)

const (
	packetOutgoing = 4 // PACKET_OUTGOING
	dnsQR          = udpLen + 2
)

// split goes on behind itself with a datagram that is seen beyond the clients'
// links, and to "near" with all others. It decides as the tracker does: by the
// message's QR bit, the direction, and whether the client's address is one of the node's.
// Loopback and link-local addresses count as such without being named.
func (a *program) split(own []addr) {
	// Without flags it is no message, and what reads behind the end is refused.
	a.add(bpf.LoadExtension{Num: bpf.ExtLen})
	a.add(bpf.ALUOpX{Op: bpf.ALUOpSub})
	a.jump(bpf.JumpLessThan, dnsQR+1, "client's")
	a.load(dnsQR, 1)
	a.jump(bpf.JumpBitsSet, 0x80, "answer")
	a.add(bpf.LoadExtension{Num: bpf.ExtType})
	a.jump(bpf.JumpNotEqual, packetOutgoing, "client's")
	a.add(bpf.LoadConstant{Dst: bpf.RegA, Val: 0})
	a.always("address")
	a.label("answer")
	a.add(bpf.LoadExtension{Num: bpf.ExtType})
	a.jump(bpf.JumpEqual, packetOutgoing, "client's")
	a.add(bpf.LoadConstant{Dst: bpf.RegA, Val: 1})
	a.always("address")
	a.label("client's")
	a.always("near")

	a.label("address")
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: direction})
	a.add(bpf.LoadScratch{Dst: bpf.RegA, N: ipOffset})
	a.add(bpf.TAX{})
	a.load(0, 1)
	a.jump(bpf.JumpBitsSet, 0x20, "address6") // version 6, else 4
	a.toAddress(2)
	a.load(12, 4)
	for _, ip := range own {
		if ip.is4() {
			a.jump(bpf.JumpEqual, uint32(ip.lo), "own4")
		}
	}
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xffff0000})
	a.jump(bpf.JumpEqual, 169<<24|254<<16, "own4")
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xff000000})
	a.jump(bpf.JumpEqual, 127<<24, "own4")
	a.always("beyond")
	a.label("own4")
	a.always("near")

	a.label("address6")
	a.toAddress(4)
	a.own6(addr{lo: 1}, "loopback6")
	for i, ip := range own {
		if !ip.is4() {
			a.own6(ip, "own6 "+string(rune('0'+i)))
		}
	}
	a.load(8, 4)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xffc00000})
	a.jump(bpf.JumpNotEqual, 0xfe800000, "beyond")
	a.always("near")
	a.label("beyond")
}

// toAddress moves X on from the IP header, so that a load from where the source
// address is gives the one to look at.
func (a *program) toAddress(shift uint32) {
	a.add(bpf.LoadScratch{Dst: bpf.RegA, N: direction})
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: shift})
	a.add(bpf.ALUOpX{Op: bpf.ALUOpAdd})
	a.add(bpf.TAX{})
}

// own6 goes to "near" with an IPv6 address.
func (a *program) own6(ip addr, label string) {
	for i, word := range []uint32{uint32(ip.lo), uint32(ip.lo >> 32), uint32(ip.hi), uint32(ip.hi >> 32)} {
		a.load(8+uint32(12-4*i), 4) // the last ones first, which differ most
		a.jump(bpf.JumpNotEqual, word, label)
	}
	a.always("near")
	a.label(label)
}

// owned are the addresses that a filter has to know of the node's own. ok is
// false when there are too many.
func owned(local map[addr]struct{}) (own []addr, ok bool) {
	for a := range local {
		four, six := a.is4() && (a.lo>>24&0xff == 127 || a.lo>>16&0xffff == 169<<8|254), a.hi>>54 == 0xfe80>>6
		if four || six || a == (addr{lo: 1}) {
			continue
		}
		if len(own) == maxOwn {
			return nil, false
		}
		own = append(own, a)
	}
	slices.SortFunc(own, func(a, b addr) int { return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo)) })
	return own, true
}
