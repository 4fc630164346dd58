package conntrack

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// maxPorts bounds the filter's length: its jumps reach 255 instructions.
const maxPorts = 16

// wanted says which messages the sensor needs at a time.
type wanted struct {
	asked     []uint16 // the ports that clients ask
	answering []uint16 // the ports that servers answer from: where they differ, a service's target ports
	assured   bool     // flows that become ASSURED too
}

// filter is the decision of wanted.trouble as a classic BPF program for the
// netlink socket. The kernel runs it before it queues a message, so that what
// it refuses costs user space nothing. Attributes are found by type, with the
// extensions SKF_AD_NLATTR (A: where to begin, X: the type; A becomes the
// attribute's offset, or 0) and SKF_AD_NLATTR_NEST (A: the offset of the outer
// attribute), see net/core/filter.c.
//
// The header's words are in the host's byte order, while BPF loads are big
// endian: hence the byte loads. Everything inside conntrack's attributes is big
// endian already.
//
// Flows that become ASSURED are kept out unless they are wanted: reused ports and
// long-lived sockets do so in good health, and the sensor needs them only while
// something could tell a slow flow from those (tracker.wanted).
func (w wanted) filter() ([]bpf.RawInstruction, error) {
	for _, ports := range [][]uint16{w.asked, w.answering} {
		if len(ports) == 0 || len(ports) > maxPorts {
			return nil, fmt.Errorf("%d ports: the filter takes 1 to %d", len(ports), maxPorts)
		}
	}
	kind, subsys, flagsHigh := uint32(4), uint32(5), uint32(7)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big endian host
		kind, subsys, flagsHigh = 5, 4, 6
	}
	const (
		attr   = bpf.ExtNetlinkAttr
		nested = bpf.ExtNetlinkAttrNested
		status = 0 // scratch slot: the status word
		proto  = 1 // scratch slot: offset of CTA_TUPLE_PROTO
	)
	var a assembler
	// An event of conntrack?
	a.add(bpf.LoadAbsolute{Off: subsys, Size: 1})
	a.jump(bpf.JumpNotEqual, subsysCTNetlink, "drop")
	a.add(bpf.LoadAbsolute{Off: kind, Size: 1})
	a.jump(bpf.JumpEqual, msgCTNew, "tuple")
	a.jump(bpf.JumpNotEqual, msgCTDelete, "drop")
	// The L4 protocol and the ports are under CTA_TUPLE_ORIG, CTA_TUPLE_PROTO.
	a.label("tuple")
	a.add(bpf.LoadConstant{Dst: bpf.RegA, Val: messageHeaderLen})
	a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: ctaTupleOrig})
	a.add(bpf.LoadExtension{Num: attr})
	a.jump(bpf.JumpEqual, 0, "drop")
	a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: ctaTupleProto})
	a.add(bpf.LoadExtension{Num: nested})
	a.jump(bpf.JumpEqual, 0, "drop")
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: proto})
	a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoNum})
	a.add(bpf.LoadExtension{Num: nested})
	a.jump(bpf.JumpEqual, 0, "drop")
	a.add(bpf.TAX{})
	a.add(bpf.LoadIndirect{Off: unix.NLA_HDRLEN, Size: 1})
	a.jump(bpf.JumpNotEqual, unix.IPPROTO_UDP, "drop")
	// The clash bit passes, whatever the event and the port.
	a.add(bpf.LoadConstant{Dst: bpf.RegA, Val: 0})
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: status})
	a.add(bpf.LoadConstant{Dst: bpf.RegA, Val: messageHeaderLen})
	a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: ctaStatus})
	a.add(bpf.LoadExtension{Num: attr})
	a.jump(bpf.JumpEqual, 0, "event")
	a.add(bpf.TAX{})
	a.add(bpf.LoadIndirect{Off: unix.NLA_HDRLEN, Size: 4})
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: status})
	a.jump(bpf.JumpBitsSet, statusNATClash, "pass")
	// Else a NEW passes by its source port, an ASSURED update by its
	// destination port, a DESTROY not at all.
	a.label("event")
	a.add(bpf.LoadAbsolute{Off: kind, Size: 1})
	a.jump(bpf.JumpEqual, msgCTDelete, "drop")
	a.add(bpf.LoadAbsolute{Off: flagsHigh, Size: 1})
	a.jump(bpf.JumpBitsSet, nlmsgFlagsNewEntry>>8, "new")
	port := func(attribute uint32, ports []uint16) {
		a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: attribute})
		a.add(bpf.LoadScratch{Dst: bpf.RegA, N: proto})
		a.add(bpf.LoadExtension{Num: nested})
		a.jump(bpf.JumpEqual, 0, "drop")
		a.add(bpf.TAX{})
		a.add(bpf.LoadIndirect{Off: unix.NLA_HDRLEN, Size: 2})
		for _, p := range ports {
			a.jump(bpf.JumpEqual, uint32(p), "pass")
		}
		a.jump(bpf.JumpGreaterOrEqual, 0, "drop") // always
	}
	if w.assured {
		a.add(bpf.LoadScratch{Dst: bpf.RegA, N: status})
		a.jump(bpf.JumpBitsNotSet, statusAssured, "drop")
		port(ctaProtoDstPort, w.asked)
	} else {
		a.jump(bpf.JumpGreaterOrEqual, 0, "drop") // always
	}
	a.label("new")
	port(ctaProtoSrcPort, w.answering)
	a.label("drop")
	a.add(bpf.RetConstant{Val: 0})
	a.label("pass")
	a.add(bpf.RetConstant{Val: 0xffffffff})
	return a.assemble()
}

// assembler resolves forward jumps to labels.
type assembler struct {
	program []bpf.Instruction
	targets map[int]string // jump at this index goes to this label
	labels  map[string]int
}

func (a *assembler) add(i bpf.Instruction) { a.program = append(a.program, i) }

func (a *assembler) jump(cond bpf.JumpTest, val uint32, label string) {
	if a.targets == nil {
		a.targets = map[int]string{}
	}
	a.targets[len(a.program)] = label
	a.add(bpf.JumpIf{Cond: cond, Val: val})
}

func (a *assembler) label(name string) {
	if a.labels == nil {
		a.labels = map[string]int{}
	}
	a.labels[name] = len(a.program)
}

func (a *assembler) assemble() ([]bpf.RawInstruction, error) {
	for at, label := range a.targets {
		skip := a.labels[label] - at - 1
		if skip < 0 || skip > 255 {
			return nil, fmt.Errorf("filter: jump from %d to %s is out of reach", at, label)
		}
		j := a.program[at].(bpf.JumpIf)
		j.SkipTrue = uint8(skip)
		a.program[at] = j
	}
	raw, err := bpf.Assemble(a.program)
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	return raw, nil
}
