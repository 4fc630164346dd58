package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	msgCTGet         = 1 // IPCTNL_MSG_CT_GET
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaPackets       = 1 // CTA_COUNTERS_PACKETS
)

// kernelTable asks the kernel's table, over a socket of its own. In a storm of
// collisions it is asked for each of them, hence a bare send and receive: a
// seventh of what the library's way takes. It is not safe for concurrent use.
type kernelTable struct {
	fd       int
	sequence uint32
	request  []byte
	reply    []byte
}

// openTable opens the socket in the calling thread's network namespace.
func openTable() (*kernelTable, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &kernelTable{fd: fd, reply: make([]byte, maxMessage)}, nil
}

func (k *kernelTable) close() error { return unix.Close(k.fd) }

// lookup finds the entry that a packet of the original tuple belongs to. No
// answer is taken for no entry: it is no evidence of anything.
func (k *kernelTable) lookup(t Tuple) (flow, bool) {
	k.sequence++
	k.request = appendGet(k.request[:0], t, k.sequence)
	if _, err := unix.Write(k.fd, k.request); err != nil {
		return flow{}, false
	}
	// The kernel answers while it takes the request, so the answer is there.
	// An older one may be before it, if a reading was interrupted.
	for {
		n, err := unix.Read(k.fd, k.reply)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n < nlmsgHeaderLen:
			return flow{}, false
		case binary.NativeEndian.Uint32(k.reply[8:]) != k.sequence:
			continue
		}
		return decodeFlow(k.reply[:n])
	}
}

// appendGet appends the request for the entry of an original tuple.
func appendGet(b []byte, t Tuple, sequence uint32) []byte {
	start := len(b)
	family := byte(unix.AF_INET)
	if t.Source.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // the length, below
	b = binary.NativeEndian.AppendUint16(b, subsysCTNetlink<<8|msgCTGet)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, 0, 0, 0)
	b = appendTuple(b, ctaTupleOrig, unix.IPPROTO_UDP, t.Source, t.Destination)
	if t.Zone != 0 {
		b = appendAttr(b, ctaZone, func(b []byte) []byte { return binary.BigEndian.AppendUint16(b, t.Zone) })
	}
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendTuple appends a CTA_TUPLE_* attribute.
func appendTuple(b []byte, kind uint16, proto byte, src, dst netip.AddrPort) []byte {
	from, to := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if src.Addr().Is6() {
		from, to = ctaIPv6Src, ctaIPv6Dst
	}
	addr := func(a netip.Addr) func([]byte) []byte {
		return func(b []byte) []byte { return append(b, a.AsSlice()...) }
	}
	port := func(p uint16) func([]byte) []byte {
		return func(b []byte) []byte { return binary.BigEndian.AppendUint16(b, p) }
	}
	return appendAttr(b, unix.NLA_F_NESTED|kind, func(b []byte) []byte {
		b = appendAttr(b, unix.NLA_F_NESTED|ctaTupleIP, func(b []byte) []byte {
			b = appendAttr(b, from, addr(src.Addr()))
			return appendAttr(b, to, addr(dst.Addr()))
		})
		return appendAttr(b, unix.NLA_F_NESTED|ctaTupleProto, func(b []byte) []byte {
			b = appendAttr(b, ctaProtoNum, func(b []byte) []byte { return append(b, proto) })
			b = appendAttr(b, ctaProtoSrcPort, port(src.Port()))
			return appendAttr(b, ctaProtoDstPort, port(dst.Port()))
		})
	})
}

// appendAttr appends an attribute with its padding.
func appendAttr(b []byte, kind uint16, payload func([]byte) []byte) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0) // the length, below
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = payload(b)
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	for (len(b)-start)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// decodeFlow reads the kernel's reply: an entry, or an error for none.
func decodeFlow(b []byte) (flow, bool) {
	m, err := decode(b)
	if err != nil {
		return flow{}, false
	}
	attrs := b[messageHeaderLen:]
	packets := func(direction uint16) (n uint64, known bool) {
		v := find(find(attrs, direction), ctaPackets)
		if len(v) != 8 {
			return 0, false
		}
		return binary.BigEndian.Uint64(v), true
	}
	f := flow{backend: m.backend, timeout: m.timeout}
	f.questions, f.counted = packets(ctaCountersOrig)
	f.answers, _ = packets(ctaCountersReply)
	return f, true
}
