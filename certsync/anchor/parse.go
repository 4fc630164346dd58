package anchor

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
)

// Limits of what is read. A Secret is at most 1 MiB in all.
const (
	maxFile   = 1 << 20 // bytes
	maxSource = 4 << 20 // bytes of all files of a source
	maxBlocks = 100     // in a file
	maxCerts  = 20      // in a source, and so in a file
)

// parsed is what one file says.
type parsed struct {
	anchors []Anchor
	refused []Refusal
	// certs are the fingerprints of all certificates in it, good or bad.
	certs map[string]bool
	// partly: something was refused that may have been an anchor before.
	partly bool
}

func (p *parsed) refuse(source string, reason Reason, format string, args ...any) {
	p.refused = append(p.refused, Refusal{source, reason, fmt.Sprintf(format, args...)})
	p.partly = p.partly || reason != NotAllowed
}

// parse judges the content of a file. An anchor whose fingerprint is in known
// was given by this file before: it is taken although the clock speaks against
// it, which is reported all the same.
func parse(source string, content []byte, r rules, known map[string]bool) parsed {
	p := parsed{certs: make(map[string]bool)}
	if reason, detail := kindOfFile(content); reason != "" {
		p.refuse(source, reason, "%s", detail)
		return p
	}
	if !hasMarker(content) {
		p.certificate(source, "the file", content, r, known)
		return p
	}
	list := blocks(content)
	for _, b := range list {
		if keyDER(b.der) {
			p.refuse(source, PrivateKey, "a private key under a wrong label; nothing in the file is taken")
			return p
		}
		if isCertificate(b.label) && b.fault == "" {
			p.certs[fingerprint(b.der)] = true
		}
	}
	if len(list) > maxBlocks || len(p.certs) > maxCerts {
		p.refuse(source, TooMany, "%d blocks with %d different certificates, the limits are %d and %d: a public bundle?", len(list), len(p.certs), maxBlocks, maxCerts)
		return p
	}
	for i, b := range list {
		at := fmt.Sprintf("block %d", i+1)
		switch reason := kindOfBlock(b.label); {
		case b.fault != "":
			p.refuse(source, b.fault, "%s: %s", at, b.detail)
		case reason != "":
			p.refuse(source, reason, "%s: %s", at, hint(reason))
		case b.label == trustedLabel && trusted(b.der):
			p.refuse(source, TrustedCert, "%s: has OpenSSL's trust settings; openssl x509 takes them off", at)
		default:
			p.certificate(source, at, b.der, r, known)
		}
	}
	return p
}

const trustedLabel = "TRUSTED CERTIFICATE"

// trusted tells whether OpenSSL's trust settings follow the certificate. They
// may say that it is not for TLS servers, so they are not just cut off.
func trusted(der []byte) bool {
	_, _, rest, _ := element(der)
	return len(rest) > 0
}

func isCertificate(label string) bool { return kindOfBlock(label) == "" }

// kindOfBlock is the reason to refuse a block for its label alone, or empty for
// a certificate.
func kindOfBlock(label string) Reason {
	switch label {
	case "CERTIFICATE", "X509 CERTIFICATE", trustedLabel:
		return ""
	case "PKCS7", "PKCS #7 SIGNED DATA", "CMS":
		return PKCS7
	case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
		return Request
	case "X509 CRL":
		return CRL
	}
	if strings.HasSuffix(label, "PUBLIC KEY") {
		return PublicKey
	}
	return OtherBlock
}

// hint says what it is, or what to do, for what is no certificate.
func hint(reason Reason) string {
	switch reason {
	case PKCS7:
		return "openssl pkcs7 -print_certs takes the certificates out"
	case PKCS12:
		return "openssl pkcs12 -nokeys takes the certificates out"
	case Request:
		return "a request that nobody has signed yet"
	case CRL:
		return "a revocation list"
	case PublicKey:
		return "a key, and no certificate"
	}
	return "a PEM block of a type that is no certificate's"
}

// kindOfFile is the reason to refuse a file as a whole, or empty for one that is
// PEM or DER.
func kindOfFile(content []byte) (reason Reason, detail string) {
	const noKey = "a private key; nothing in the file is taken"
	trimmed := bytes.TrimSpace(bytes.TrimPrefix(content, []byte("\ufeff")))
	wide, isWide := decodeUTF16(content)
	switch {
	case len(content) > maxFile:
		return TooLarge, fmt.Sprintf("more than %d bytes", maxFile)
	case len(trimmed) == 0:
		return Empty, "nothing in it"
	case hasKey(content) || isWide && hasKey(wide):
		return PrivateKey, noKey
	case isWide:
		return UTF16, "text in UTF-16; write it in UTF-8 or ASCII"
	case hasPrefixFold(trimmed, "<!doctype") || hasPrefixFold(trimmed, "<html") || hasPrefixFold(trimmed, "<?xml"):
		return HTML, "a web page: the download went wrong"
	case hasMarker(content) || content[0] == tagSequence:
		return "", ""
	case bytes.HasPrefix(content, []byte("\xfe\xed\xfe\xed")) || bytes.HasPrefix(content, []byte("\xce\xce\xce\xce")):
		return Keystore, "a Java keystore; keytool -exportcert -rfc writes PEM"
	case nearMarker(content):
		return BadPEM, "a line that looks like BEGIN or END, and has not five dashes"
	}
	text := bytes.Join(bytes.Fields(trimmed), nil)
	if b, err := base64.StdEncoding.DecodeString(string(text)); err == nil && len(text) >= minRun {
		switch {
		case hasKey(b):
			return PrivateKey, noKey
		case hasMarker(b):
			return Base64, "base64 of a PEM file: encoded twice?"
		case b[0] == tagSequence:
			return Base64, "base64 without its BEGIN and END lines"
		}
	}
	return NoCert, "neither PEM nor DER"
}

// containsFold tells whether a word of lower-case ASCII is in b in any case.
func containsFold(b []byte, word string) bool {
	for i := range b {
		if b[i]|0x20 == word[0] && hasPrefixFold(b[i:], word) {
			return true
		}
	}
	return false
}

func hasPrefixFold(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && bytes.EqualFold(b[:len(prefix)], []byte(prefix))
}

// certificate judges what should be the DER of one.
func (p *parsed) certificate(source, at string, der []byte, r rules, known map[string]bool) {
	if reason, detail := kindOfDER(der); reason != "" {
		p.refuse(source, reason, "%s: %s", at, detail)
		return
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		reason, detail := unparsed(der, err)
		p.refuse(source, reason, "%s: %s", at, detail)
		return
	}
	a := Anchor{Cert: cert, Fingerprint: Fingerprint(cert), Source: source}
	for _, b := range p.anchors {
		if a.Fingerprint == b.Fingerprint {
			return
		}
	}
	p.certs[a.Fingerprint] = true
	at += " (" + a.Fingerprint[:16] + ")"
	if reason, detail := r.judge(&a); reason != "" {
		p.refuse(source, reason, "%s: %s", at, detail)
		return
	}
	if reason, detail := r.clock(cert); reason != "" {
		if !known[a.Fingerprint] {
			p.refuse(source, reason, "%s: %s", at, detail)
			return
		}
		p.refused = append(p.refused, Refusal{source, reason, at + ": " + detail + "; it was valid before, and stays"})
	}
	p.anchors = append(p.anchors, a)
}

// kindOfDER tells what is surely no certificate.
func kindOfDER(der []byte) (reason Reason, detail string) {
	tag, body, rest, whole := element(der)
	if tag != tagSequence {
		return BadCert, "not DER"
	}
	inner, first, after, _ := element(body)
	switch inner {
	case tagOID:
		if bytes.HasPrefix(first, []byte(oidPKCS7)) {
			return PKCS7, hint(PKCS7)
		}
	case tagInteger:
		if len(first) == 1 && first[0] == 3 {
			return PKCS12, hint(PKCS12)
		}
		return PublicKey, hint(PublicKey)
	case tagSequence:
		tag, _, _, _ := element(first)
		next, _, _, _ := element(after)
		if tag == tagOID && next == tagBitString {
			return PublicKey, hint(PublicKey)
		}
	}
	if !whole {
		return Truncated, "its end is missing"
	}
	if len(rest) > 0 {
		return Trailing, fmt.Sprintf("%d bytes after its end", len(rest))
	}
	return "", ""
}

// unparsed tells why crypto/x509 does not take it.
func unparsed(der []byte, err error) (Reason, string) {
	if _, err := x509.ParseCertificateRequest(der); err == nil {
		return Request, hint(Request)
	}
	if _, err := x509.ParseRevocationList(der); err == nil {
		return CRL, hint(CRL)
	}
	// encoding/asn1 lets more follow than the fields that are named.
	var c struct {
		TBS struct {
			Version int `asn1:"optional,explicit,default:0,tag:0"`
			Serial  *big.Int
		}
	}
	if _, err := asn1.Unmarshal(der, &c); err == nil && c.TBS.Serial.Sign() < 0 {
		return BadSerial, "a negative serial number"
	}
	// Words of the certificate come after a quote; no more than the library's own are repeated.
	words, _, _ := strings.Cut(err.Error(), `"`)
	return BadCert, words
}
