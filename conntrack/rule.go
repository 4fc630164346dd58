package conntrack

import (
	"bytes"
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// verdict decides whether one nftables rule takes DNS out of connection
// tracking. It counts a rule that names one of the ports, or one that has no
// condition but the protocol: a rule for marked packets or for one address,
// that names no port, is somebody's special case and no proof.
type verdict struct {
	ports []uint16
	set   func(name string) [][]byte // the keys of a set of the rule's table

	loaded   field
	named    bool // a condition names a port of ours
	other    bool // a condition excludes all packets of ours
	narrowed bool // there are other conditions
}

// field is what a rule has loaded into its register, as far as we care.
type field uint8

const (
	fieldOther    field = iota
	fieldFamily         // the network protocol, which says nothing about ports
	fieldProtocol       // the transport protocol
	fieldPort           // the source or the destination port
)

// rule tells whether the rule exempts packets to or from one of the ports, and
// which chain it sends them to, "" for none.
func (v *verdict) rule(exprs []expr.Any) (exempts bool, jump string) {
	untracks := false
	for _, x := range exprs {
		switch x := x.(type) {
		case *expr.Meta:
			v.loaded = metaField(x)
		case *expr.Payload:
			v.loaded = payloadField(x)
		case *expr.Bitwise, *expr.Ct, *expr.Fib, *expr.Socket:
			v.loaded = fieldOther
		case *expr.Cmp:
			v.compare(x.Op, [][]byte{x.Data})
		case *expr.Lookup:
			op := expr.CmpOpEq
			if x.Invert {
				op = expr.CmpOpNeq
			}
			v.compare(op, v.set(x.SetName))
		case *expr.Match:
			v.match(x)
		case *expr.Notrack:
			untracks = true
		case *expr.Target:
			untracks = untracks || x.Name == "NOTRACK" || x.Name == "CT" && ctNotrack(x.Info)
		case *expr.Verdict:
			if x.Kind == expr.VerdictJump || x.Kind == expr.VerdictGoto {
				jump = x.Chain
			}
		}
	}
	if v.other {
		return false, ""
	}
	return untracks && (v.named || !v.narrowed), jump
}

func metaField(m *expr.Meta) field {
	switch m.Key {
	case expr.MetaKeyL4PROTO:
		return fieldProtocol
	case expr.MetaKeyNFPROTO:
		return fieldFamily
	default:
		return fieldOther
	}
}

func payloadField(p *expr.Payload) field {
	switch {
	case p.Base == expr.PayloadBaseTransportHeader && p.Len == 2 && (p.Offset == 0 || p.Offset == 2):
		return fieldPort
	case p.Base == expr.PayloadBaseNetworkHeader && p.Len == 1 && (p.Offset == 9 || p.Offset == 6):
		return fieldProtocol // IPv4's protocol, IPv6's next header
	default:
		return fieldOther
	}
}

// compare takes a condition on the loaded field.
func (v *verdict) compare(op expr.CmpOp, keys [][]byte) {
	equal := op == expr.CmpOpEq
	has := func(want []byte) bool {
		for _, k := range keys {
			if bytes.HasPrefix(k, want) { // a set pads its keys to words
				return true
			}
		}
		return false
	}
	switch {
	case v.loaded == fieldFamily:
	case op != expr.CmpOpEq && op != expr.CmpOpNeq:
		v.narrowed = true // a range: undecided
	case v.loaded == fieldProtocol:
		v.other = v.other || has([]byte{unix.IPPROTO_UDP}) != equal
	case v.loaded == fieldPort:
		found := false
		for _, p := range v.ports {
			found = found || has(binary.BigEndian.AppendUint16(nil, p))
		}
		v.port(found == equal, equal)
	default:
		v.narrowed = true
	}
}

// port notes a condition on a port: whether packets of ours meet it, and
// whether it names theirs.
func (v *verdict) port(met, names bool) {
	v.other = v.other || !met
	v.named = v.named || met && names
	v.narrowed = v.narrowed || !names
}

// match is compare for a match of iptables inside nftables.
func (v *verdict) match(m *expr.Match) {
	switch info := m.Info.(type) {
	case *xt.Tcp:
		v.other = true
	case *xt.Udp:
		v.portRange(info.SrcPorts, info.InvFlags&xt.UdpInvSrcPorts != 0)
		v.portRange(info.DstPorts, info.InvFlags&xt.UdpInvDestPorts != 0)
	default:
		if m.Name != "comment" {
			v.narrowed = true
		}
	}
}

func (v *verdict) portRange(r [2]uint16, inverted bool) {
	if r == [2]uint16{0, 0xffff} && !inverted {
		return // any port: no condition
	}
	found := false
	for _, p := range v.ports {
		found = found || r[0] <= p && p <= r[1]
	}
	v.port(found != inverted, !inverted)
}

// ctNotrack reads XT_CT_NOTRACK in the flags, the first u16 of every revision
// of struct xt_ct_target_info (xt_CT.h).
func ctNotrack(info xt.InfoAny) bool {
	raw, ok := info.(*xt.Unknown)
	return ok && len(*raw) >= 2 && binary.NativeEndian.Uint16(*raw)&1 != 0
}
