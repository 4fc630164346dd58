package anchor

import (
	"bytes"
	"encoding/base64"
	"unicode/utf16"
)

// hasKey tells whether there is a private key in a file, however it is wrapped:
// by the words of its armour, by its structure in DER, and by both in any run of
// base64. It would rather refuse a file too many.
func hasKey(content []byte) bool {
	if keyWords(content) || keyDER(content) {
		return true
	}
	for run := range bytes.FieldsFuncSeq(content, notBase64) {
		if len(run) < minRun {
			continue
		}
		if b := decodePrefix(run); keyDER(b) || keyWords(b) {
			return true
		}
	}
	return false
}

// minRun is the least length of a run of base64 that is looked into, so that
// words are not: 24 characters show the beginning of each kind of key.
const minRun = 24

func notBase64(r rune) bool {
	return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '+' && r != '/'
}

// decodePrefix decodes as much of a run of base64 as makes whole bytes.
func decodePrefix(run []byte) []byte {
	run = run[:len(run)/4*4]
	b := make([]byte, base64.RawStdEncoding.DecodedLen(len(run)))
	n, _ := base64.RawStdEncoding.Decode(b, run) // what it decoded before an error is what counts
	return b[:n]
}

// keyWords looks for the armour of a private key, whole or torn, and for what
// openssl pkey -text and PuTTY write. The words alone, in a comment, are none.
func keyWords(text []byte) bool {
	if !containsFold(text, "private") && !containsFold(text, "putty") {
		return false // as nearly always: a bundle is read each minute
	}
	for line := range bytes.FieldsFuncSeq(text, func(r rune) bool { return r == '\r' || r == '\n' }) {
		if keyLine(bytes.Join(bytes.Fields(bytes.ToUpper(line)), []byte(" "))) {
			return true
		}
	}
	return false
}

func keyLine(line []byte) bool {
	for _, words := range []string{"PRIVATE-KEY: (", "PRIVATE-LINES:", "PUTTY-USER-KEY-FILE"} {
		if bytes.Contains(line, []byte(words)) {
			return true
		}
	}
	for {
		before, after, found := bytes.Cut(line, []byte("PRIVATE KEY"))
		if !found {
			return false
		}
		label := before[bytes.LastIndexByte(before, '-')+1:]
		after = bytes.TrimPrefix(bytes.TrimPrefix(after, []byte(" BLOCK")), []byte(" "))
		if bytes.Contains(label, []byte("BEGIN ")) || bytes.Contains(label, []byte("END ")) || bytes.HasPrefix(after, []byte("--")) {
			return true
		}
		line = after
	}
}

// element splits the first ASN.1 element off b. Its body is what is there of it:
// whole tells whether that is all. A length of the indefinite form (BER, as old
// PKCS#7 and PKCS#12 have it) takes the rest.
func element(b []byte) (tag byte, body, rest []byte, whole bool) {
	if len(b) < 2 || b[0]&0x1f == 0x1f {
		return 0, nil, nil, false
	}
	tag, size, b := b[0], int(b[1]), b[2:]
	switch n := size & 0x7f; {
	case size < 0x80:
	case n == 0 || n > 4 || n > len(b):
		return tag, b, nil, false
	default:
		size = 0
		for _, octet := range b[:n] {
			size = size<<8 | int(octet)
		}
		b = b[n:]
	}
	if size > len(b) {
		return tag, b, nil, false
	}
	return tag, b[:size], b[size:], true
}

// ASN.1 tags that matter here.
const (
	tagInteger   = 0x02
	tagBitString = 0x03
	tagOctets    = 0x04
	tagOID       = 0x06
	tagSequence  = 0x30
)

// keyDER tells whether one of the elements in b begins as a private key does:
// PKCS#1, DSA and SEC 1, PKCS#8 and the encrypted PKCS#8. Truncated ones count.
func keyDER(b []byte) bool {
	if bytes.HasPrefix(b, []byte("openssh-key-v1")) {
		return true
	}
	for len(b) > 0 {
		tag, body, rest, _ := element(b)
		if tag == tagSequence && keyBody(body) {
			return true
		}
		b = rest
	}
	return false
}

// keyBody looks at what the outer sequence has. Its first element is a version,
// 0 or 1, followed by the key, or the identifier of an algorithm that encrypts
// with a password. Certificates, and what else there is, begin in other ways.
// Sequences too short for a key are some certificate's extension that begins on
// a line of its base64.
func keyBody(body []byte) bool {
	if len(body) < minKey {
		return false
	}
	tag, first, rest, _ := element(body)
	switch tag {
	case tagInteger:
		if len(first) != 1 || first[0] > 1 {
			return false
		}
		next, _, _, _ := element(rest)
		return next == tagInteger || next == tagOctets || next == tagSequence
	case tagSequence:
		tag, oid, _, _ := element(first)
		return tag == tagOID && (bytes.HasPrefix(oid, []byte(oidPKCS5)) || bytes.HasPrefix(oid, []byte(oidPKCS12PBE)))
	}
	return false
}

// minKey is less than the bytes that a run of minRun base64 characters has after
// the outer header.
const minKey = 12

// Object identifiers, as they are encoded.
const (
	oidPKCS5     = "\x2a\x86\x48\x86\xf7\x0d\x01\x05"     // 1.2.840.113549.1.5
	oidPKCS7     = "\x2a\x86\x48\x86\xf7\x0d\x01\x07"     // 1.2.840.113549.1.7
	oidPKCS12PBE = "\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01" // 1.2.840.113549.1.12.1
)

// decodeUTF16 gives the text of a file in UTF-16 that has a byte order mark, or
// begins with two characters of ASCII.
func decodeUTF16(b []byte) (text []byte, ok bool) {
	if len(b) < 4 {
		return nil, false
	}
	big := b[0] == 0xfe && b[1] == 0xff || b[0] == 0 && b[1] != 0 && b[2] == 0 && b[3] != 0
	little := b[0] == 0xff && b[1] == 0xfe || b[0] != 0 && b[1] == 0 && b[2] != 0 && b[3] == 0
	if !big && !little {
		return nil, false
	}
	units := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		u := uint16(b[i]) | uint16(b[i+1])<<8
		if big {
			u = uint16(b[i])<<8 | uint16(b[i+1])
		}
		units = append(units, u)
	}
	return []byte(string(utf16.Decode(units))), true
}
