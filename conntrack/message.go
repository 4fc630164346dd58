package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The parts of the kernel's ABI that the sensor reads
// (include/uapi/linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h).
const (
	subsysCTNetlink = 1 // NFNL_SUBSYS_CTNETLINK
	msgCTNew        = 0 // IPCTNL_MSG_CT_NEW: a new entry, or an update of one
	msgCTDelete     = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig       = 1
	ctaTupleReply      = 2
	ctaStatus          = 3
	ctaTimeout         = 7
	ctaZone            = 18
	ctaTimestamp       = 20
	ctaTupleIP         = 1
	ctaTupleProto      = 2
	ctaTupleZone       = 3
	ctaIPv4Src         = 1
	ctaIPv4Dst         = 2
	ctaIPv6Src         = 3
	ctaIPv6Dst         = 4
	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaTimestampStart  = 1
	statusSeenReply    = 1 << 1  // IPS_SEEN_REPLY
	statusAssured      = 1 << 2  // IPS_ASSURED
	statusNATClash     = 1 << 12 // IPS_NAT_CLASH
	nlaTypeMask        = 0x3fff
	nlmsgHeaderLen     = 16
	nfgenmsgLen        = 4
	messageHeaderLen   = nlmsgHeaderLen + nfgenmsgLen
	nlmsgFlagsNewEntry = unix.NLM_F_CREATE | unix.NLM_F_EXCL
)

// event is what happened to an entry.
type event uint8

const (
	eventNew event = iota + 1
	eventUpdate
	eventDestroy
)

// message is one decoded ctnetlink event about a UDP entry.
type message struct {
	event    event
	status   uint32
	timeout  time.Duration // what was left of the entry's life; 0 when not told
	original Tuple
	// backend and client are the reply direction: who answers, and to whom.
	backend, client netip.AddrPort
	// start is when the entry was made; zero unless
	// net.netfilter.nf_conntrack_timestamp is 1 and the entry was destroyed.
	start time.Time
}

var (
	errNotConntrack = errors.New("not a conntrack event")
	errNotUDP       = errors.New("not a UDP entry")
)

// decode reads one netlink message of the conntrack groups. Attributes are
// found as the kernel's nla_find does, which the socket filter uses: the first
// of a type counts, and parsing ends at the first malformed one.
func decode(b []byte) (message, error) {
	var m message
	if len(b) < messageHeaderLen {
		return m, fmt.Errorf("conntrack message of %d bytes: too short", len(b))
	}
	if n := binary.NativeEndian.Uint32(b); uint64(n) != uint64(len(b)) {
		return m, fmt.Errorf("conntrack message of %d bytes says it has %d", len(b), n)
	}
	kind := binary.NativeEndian.Uint16(b[4:])
	flags := binary.NativeEndian.Uint16(b[6:])
	switch {
	case kind>>8 != subsysCTNetlink:
		return m, errNotConntrack
	case kind&0xff == msgCTDelete:
		m.event = eventDestroy
	case kind&0xff != msgCTNew:
		return m, errNotConntrack
	case flags&nlmsgFlagsNewEntry != 0:
		m.event = eventNew
	default:
		m.event = eventUpdate
	}

	attrs := b[messageHeaderLen:]
	src, dst, proto, err := tuple(attrs, ctaTupleOrig)
	if err != nil {
		return m, fmt.Errorf("original tuple: %w", err)
	}
	if proto != unix.IPPROTO_UDP {
		return m, errNotUDP
	}
	m.original = Tuple{Source: src, Destination: dst, Zone: originalZone(attrs)}
	if m.backend, m.client, _, err = tuple(attrs, ctaTupleReply); err != nil {
		return m, fmt.Errorf("reply tuple: %w", err)
	}
	if v := find(attrs, ctaStatus); v != nil {
		if len(v) != 4 {
			return m, fmt.Errorf("status of %d bytes", len(v))
		}
		m.status = binary.BigEndian.Uint32(v)
	}
	if v := find(attrs, ctaTimeout); len(v) == 4 {
		m.timeout = time.Duration(binary.BigEndian.Uint32(v)) * time.Second
	}
	if v := find(find(attrs, ctaTimestamp), ctaTimestampStart); len(v) == 8 {
		m.start = time.Unix(0, int64(binary.BigEndian.Uint64(v)))
	}
	return m, nil
}

// trouble tells whether a message is one of the few that the sensor needs:
// anything with the clash bit, a new flow from a port that servers answer from,
// or, when those are wanted, a flow to a port that clients ask that became
// ASSURED. The socket filter (filter.go) is the same decision in the kernel, and
// a fuzz test holds the two together.
func (w wanted) trouble(m message) bool {
	switch {
	case m.status&statusNATClash != 0:
		return true
	case m.event == eventNew:
		return slices.Contains(w.answering, m.original.Source.Port())
	case m.event == eventUpdate:
		return w.assured && m.status&statusAssured != 0 && slices.Contains(w.asked, m.original.Destination.Port())
	default:
		return false
	}
}

// tuple reads a CTA_TUPLE_* attribute.
func tuple(attrs []byte, kind uint16) (src, dst netip.AddrPort, proto uint8, err error) {
	t := find(attrs, kind)
	p := find(t, ctaTupleProto)
	num := find(p, ctaProtoNum)
	if len(num) != 1 {
		return src, dst, 0, errors.New("no layer 4 protocol")
	}
	if num[0] != unix.IPPROTO_UDP {
		return src, dst, num[0], nil
	}
	sport, dport := find(p, ctaProtoSrcPort), find(p, ctaProtoDstPort)
	if len(sport) != 2 || len(dport) != 2 {
		return src, dst, num[0], errors.New("no ports")
	}
	ip := find(t, ctaTupleIP)
	saddr, daddr := find(ip, ctaIPv4Src), find(ip, ctaIPv4Dst)
	if saddr == nil {
		saddr, daddr = find(ip, ctaIPv6Src), find(ip, ctaIPv6Dst)
	}
	s, ok1 := netip.AddrFromSlice(saddr)
	d, ok2 := netip.AddrFromSlice(daddr)
	if !ok1 || !ok2 || s.BitLen() != d.BitLen() {
		return src, dst, num[0], errors.New("no addresses")
	}
	return netip.AddrPortFrom(s, binary.BigEndian.Uint16(sport)), netip.AddrPortFrom(d, binary.BigEndian.Uint16(dport)), num[0], nil
}

// originalZone is the zone of the original direction: CTA_ZONE when the entry
// has one zone, CTA_TUPLE_ZONE inside the tuple when its directions differ.
func originalZone(attrs []byte) uint16 {
	v := find(attrs, ctaZone)
	if v == nil {
		v = find(find(attrs, ctaTupleOrig), ctaTupleZone)
	}
	if len(v) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

// find gives the payload of the first attribute of a type, nil when there is
// none (lib/nlattr.c, nla_find). An empty payload is not nil.
func find(b []byte, kind uint16) []byte {
	for len(b) >= unix.NLA_HDRLEN {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.NLA_HDRLEN || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&nlaTypeMask == kind {
			return b[unix.NLA_HDRLEN:n:n]
		}
		n = (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
		if n > len(b) {
			return nil
		}
		b = b[n:]
	}
	return nil
}
