package lookup

import (
	"encoding/binary"
	"math/bits"
)

const (
	headerLen = 12
	maxName   = 255 // octets of a name on the wire (RFC 1035, section 2.3.4)

	flagAnswer    = 1 << 15 // QR
	flagTruncated = 1 << 9  // TC
	flagRecursion = 1 << 8  // RD
	flagAuthentic = 1 << 5  // AD
	opcodeMask    = 0xf << 11
	rcodeMask     = 0xf

	typeOPT     = 41
	goEDNSSize  = 1232 // maxDNSPacketSize of Go's net package
	foldToLower = 0x2020202020202020
)

// question is what a message says up to the end of its question section.
type question struct {
	id, flags uint16
	counted   bool   // it has a question; errors may come without one
	name      []byte // on the wire, as it was asked
	qtype     uint16
	end       int // where the question section ends

	nameHash uint32 // of the name in lower case
	hash     uint32 // of the id, the name and the type
}

// verdict is what became of parsing a message.
type verdict uint8

const (
	good verdict = iota
	foreign
	malformed
)

// parse reads a message's header and question. A message that asks for anything
// but a lookup (RFC 1996, RFC 2136) is foreign.
func (q *question) parse(b []byte) verdict {
	if len(b) < headerLen {
		return malformed
	}
	q.id, q.flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if q.flags&opcodeMask != 0 {
		return foreign
	}
	if n := binary.BigEndian.Uint16(b[4:]); n != 1 {
		if n == 0 && q.flags&flagAnswer != 0 && q.flags&rcodeMask != 0 {
			q.counted, q.name, q.end = false, nil, headerLen
			return good // an error may leave the question out
		}
		return malformed
	}
	q.counted = true
	end := headerLen
	for {
		if end >= len(b) {
			return malformed
		}
		n := int(b[end])
		end++
		if n == 0 {
			break
		}
		if n > 63 { // a question has nothing before it to point to
			return malformed
		}
		end += n
	}
	if end-headerLen > maxName || end+4 > len(b) {
		return malformed
	}
	q.name, q.qtype, q.end = b[headerLen:end], binary.BigEndian.Uint16(b[end:]), end+4
	h := hashName(q.name)
	q.nameHash = uint32(h)
	q.hash = uint32(mix(h, uint64(q.id)<<16|uint64(q.qtype)))
	return good
}

// mix is one round of a multiplying hash.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xe7037ed1a0b428db)
	return hi ^ lo
}

// hashName hashes a name without regard to case. It folds a few other octets as
// well, which only makes them collide.
func hashName(name []byte) uint64 {
	h := uint64(len(name))
	if len(name) < 8 {
		var all uint64
		for i, b := range name {
			all |= uint64(b) << (8 * i)
		}
		return mix(h, all|foldToLower)
	}
	last := name[len(name)-8:] // overlaps what came before
	for len(name) >= 8 {
		h = mix(h, binary.LittleEndian.Uint64(name)|foldToLower)
		name = name[8:]
	}
	return mix(h, binary.LittleEndian.Uint64(last)|foldToLower)
}

// signature is what a question's bytes tell of who made it.
type signature uint8

const (
	plain   signature = iota // recursion desired, nothing more: musl and glibc
	trustAD                  // the same with AD: glibc with the option trust-ad
	goEDNS                   // EDNS as Go's resolver makes it
	strange                  // anything else
)

// sign reads a question's signature.
func (q *question) sign(b []byte) signature {
	if binary.BigEndian.Uint32(b[6:]) != 0 { // answers and authorities
		return strange
	}
	switch additional, rest := binary.BigEndian.Uint16(b[10:]), b[q.end:]; {
	case additional == 0 && q.flags == flagRecursion:
		return plain
	case additional == 0 && q.flags == flagRecursion|flagAuthentic:
		return trustAD
	// The OPT record: root, type, size, extended rcode and flags, no options.
	case additional == 1 && q.flags&^flagAuthentic == flagRecursion && len(rest) == 11 && rest[0] == 0 &&
		binary.BigEndian.Uint16(rest[1:]) == typeOPT && binary.BigEndian.Uint16(rest[3:]) == goEDNSSize &&
		binary.BigEndian.Uint32(rest[5:]) == 0 && binary.BigEndian.Uint16(rest[9:]) == 0:
		return goEDNS
	}
	return strange
}

// result is an Outcome as a number: an rcode, or one of these.
type result uint8

const (
	resultNoError  result = 0
	resultServFail result = 2
	resultNXDomain result = 3
	resultNoData   result = 16
	resultTimeout  result = 17
	resultNone     result = 255 // not asked, or not yet known
)

// final says whether a resolver takes an answer as the last word. Others make
// musl ask again, and glibc ask the next nameserver.
func (r result) final() bool {
	return r == resultNoError || r == resultNoData || r == resultNXDomain
}

// outcome reads what an answer says.
func (q *question) outcome(b []byte) result {
	if rcode := result(q.flags & rcodeMask); rcode != resultNoError {
		return rcode
	}
	answers := int(binary.BigEndian.Uint16(b[6:]))
	if !q.counted || q.flags&flagTruncated != 0 || q.qtype == 255 && answers > 0 {
		return resultNoError
	}
	rest := b[q.end:]
	for range answers {
		n := skipName(rest)
		if n < 0 || n+10 > len(rest) {
			return resultNoError // cut off, or not to be understood
		}
		if binary.BigEndian.Uint16(rest[n:]) == q.qtype {
			return resultNoError
		}
		n += 10 + int(binary.BigEndian.Uint16(rest[n+8:]))
		if n > len(rest) {
			return resultNoError
		}
		rest = rest[n:]
	}
	return resultNoData
}

// skipName gives the length of a name at the start of b; it ends at the first
// compression pointer. -1 when it is cut off.
func skipName(b []byte) int {
	for n := 0; n < len(b); {
		switch l := int(b[n]); {
		case l == 0:
			return n + 1
		case l >= 0xc0:
			return n + 2
		case l > 63:
			return -1
		default:
			n += 1 + l
		}
	}
	return -1
}

// present gives a wire name in presentation form (RFC 4343, section 2.1).
func present(name []byte) string {
	out := make([]byte, 0, len(name)+8)
	for len(name) > 0 && name[0] != 0 && int(name[0]) < len(name) {
		n := int(name[0])
		for _, c := range name[1 : 1+n] {
			switch {
			case c == '.' || c == '\\':
				out = append(out, '\\', c)
			case c < '!' || c > '~':
				out = append(out, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			default:
				out = append(out, c)
			}
		}
		out = append(out, '.')
		name = name[1+n:]
	}
	if len(out) == 0 {
		return "."
	}
	return string(out)
}

// lower folds an ASCII letter.
func lower(c byte) byte {
	if c-'A' < 26 {
		return c + 'a' - 'A'
	}
	return c
}

// sameName compares two pieces of names without regard to case. Octets of
// length are no letters, so they need no care.
func sameName(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}
