package lookup

import "math"

// resolverCode is a Resolver as a number.
type resolverCode uint8

const (
	unknownResolver resolverCode = iota
	muslCode
	glibcCode
	goCode
	otherCode
	resolvers
)

func (r resolverCode) resolver() Resolver {
	switch r {
	case muslCode:
		return Musl
	case glibcCode:
		return Glibc
	case goCode:
		return Go
	default:
		return Other
	}
}

// history is what a client's earlier calls tell of its resolver. A call's own
// packets weigh more, so that a pod may run several.
type history struct {
	// Calls that looked like musl's or glibc's by their packets alone.
	musl, glibc float64
	// recent is the resolver of the latest call of each signature, for
	// questions that come alone.
	recent [strange + 1]resolverCode
	// shared is where the counter of IPv4 identifications stood that sockets
	// share which are not connected: at the latest pair that was taken for
	// musl's, and at the latest that might have been musl's.
	shared [2]ident
	ports  [16]portUse
}

// ident is an IPv4 identification of a packet to a server; at is 0 for none.
type ident struct {
	at       int64
	last, to uint16
}

// portUse is what a client asked from a port.
type portUse struct {
	port, others uint16 // others counts names after the first
	nameHash     uint32
}

const (
	maxHistory = 256
	// tick is the shortest that the kernel's clock tick may be (HZ=1000).
	tick = 1e6
)

// lasting says whether a question comes from a socket that asked other names
// before: no libc does that, a forwarder does. A port number that comes back by
// chance is forgiven once.
func (h *history) lasting(port uint16, nameHash uint32) bool {
	u := &h.ports[(uint32(port)*0x9e3779b1)>>28]
	switch {
	case u.port != port:
		*u = portUse{port: port, nameHash: nameHash}
	case u.nameHash != nameHash:
		u.nameHash = nameHash
		if u.others < math.MaxUint16 {
			u.others++
		}
	}
	return u.others > 1
}

// pair is what tells the resolver of a pair of questions from one socket.
type pair struct {
	apart    uint16 // the later question's id less the first one's
	inOrder  bool   // A before AAAA
	at       int64
	ident    uint16 // the first question's, 0 for none
	lastOne  uint16 // the later question's
	to       uint16
	sign     signature
	sameport bool
}

// judge tells who asked a pair.
//
// musl takes its ids from the clock when it makes the two questions, one right
// after the other (__res_mkquery), so that they are close together; glibc's are
// random. And a connected UDP socket counts its IPv4 identifications from a
// random start of its own, as glibc's and Go's (__ip4_datagram_connect); one
// that is not connected, as musl's, takes them from a counter that it shares
// with others to the same address, and that gains at most one a clock tick by
// itself (ip_idents_reserve).
func (h *history) judge(p pair) resolverCode {
	r := otherCode
	switch {
	case p.sign == goEDNS && !p.sameport:
		r = goCode
	case p.sign == trustAD && p.sameport && p.inOrder:
		r = glibcCode
	case p.sign == plain && p.sameport && p.inOrder:
		r = h.weigh(p)
	}
	h.recent[p.sign] = r
	return r
}

func (h *history) weigh(p pair) resolverCode {
	// How much likelier musl makes what was seen. Of musl's pairs, 97 % are at
	// most 512 apart, and 1 % more than 2048, because it was interrupted.
	seen := 1.0
	switch {
	case p.apart == 0 || p.apart > 2048:
		seen = 0.01
	case p.apart <= 512:
		seen = 0.97 * (1 << 16) / 512
	}
	if p.ident != 0 {
		seen *= h.counter(p)
	}
	// What is seen of one resolver by chance is not taken for another: 0.8 % of
	// glibc's pairs are as close together as musl's.
	before := (max(h.musl-0.02*h.glibc, 0) + 0.1) / (max(h.glibc-0.02*h.musl, 0) + 0.1)
	if seen > 1 {
		h.musl++
	} else {
		h.glibc++
	}
	if h.musl+h.glibc > maxHistory {
		h.musl, h.glibc = h.musl/2, h.glibc/2
	}
	r := glibcCode
	if seen*before > 1 {
		r = muslCode
	}
	if p.ident != 0 && p.apart != 0 && p.apart <= 512 {
		now := ident{at: p.at, last: p.lastOne, to: p.to}
		if r == muslCode {
			h.shared[0] = now
		} else {
			h.shared[1] = now
		}
	}
	return r
}

// counter tells how much likelier musl makes a pair's IPv4 identification.
func (h *history) counter(p pair) float64 {
	likelier := 1.0
	for _, s := range h.shared {
		reach := 16 + float64(max(p.at-s.at, 0))/tick
		if s.at == 0 || s.to != p.to || reach >= 1<<15 { // nothing to go by, or too long ago
			continue
		}
		if float64(p.ident-s.last) <= reach {
			return 0.999 * (1 << 16) / reach
		}
		likelier = 0.001
	}
	return likelier
}

// alone tells who asked a question that has no pair.
func (h *history) alone(s signature) resolverCode {
	switch r := h.recent[s]; {
	case r != unknownResolver:
		return r
	case s == goEDNS:
		return goCode
	default:
		return otherCode
	}
}
