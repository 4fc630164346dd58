package anchor

import (
	"crypto/dsa" //nolint:staticcheck // old keys must be known
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// badForms are no certificates, or certificates that cannot be read.
func badForms(t testing.TB, root []byte) []badFile {
	key := newKey(t)
	cert := certPEM(root)
	pub := must(x509.MarshalPKIXPublicKey(key.Public()))(t)
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)
	issuer := must(x509.ParseCertificate(selfSign(t, "issuer", key, func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} })))(t)
	crl := must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: noon, NextUpdate: noon.Add(day)}, issuer, key))(t)
	signedData := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	p7 := must(asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content []asn1.RawValue `asn1:"explicit,tag:0"`
	}{signedData, []asn1.RawValue{{FullBytes: root}}}))(t)
	p12 := must(asn1.Marshal(struct {
		Version int
		Content struct{ Type asn1.ObjectIdentifier }
	}{3, struct{ Type asn1.ObjectIdentifier }{signedData}}))(t)
	body := cert[strings.Index(cert, "\n")+1 : strings.Index(cert, "-----END")]
	wide := func(big bool, text string) string {
		var b []byte
		for _, u := range utf16.Encode([]rune(text)) {
			if big {
				b = append(b, byte(u>>8), byte(u))
			} else {
				b = append(b, byte(u), byte(u>>8))
			}
		}
		return string(b)
	}
	damaged := slices.Clone(root)
	damaged[10] ^= 0xff // the version's tag
	var crowd, junk strings.Builder
	for range maxCerts + 1 {
		crowd.WriteString(certPEM(newRoot(t, "crowd")))
	}
	for range maxBlocks + 1 {
		junk.WriteString(block64("NOTHING", nil))
	}
	return []badFile{
		{"an empty file", "", []Reason{Empty}},
		{"white space", " \r\n\t\n", []Reason{Empty}},
		{"a BOM and nothing", "\ufeff\n", []Reason{Empty}},
		{"UTF-16 with a mark", "\xff\xfe" + wide(false, cert), []Reason{UTF16}},
		{"UTF-16, big end first, with a mark", "\xfe\xff" + wide(true, cert), []Reason{UTF16}},
		{"UTF-16 without a mark", wide(false, cert), []Reason{UTF16}},
		{"UTF-16, big end first, without a mark", wide(true, cert), []Reason{UTF16}},
		{"a web page", "<!DOCTYPE html>\n<html><body>404</body></html>\n", []Reason{HTML}},
		{"a web page in capitals", "\n<HTML>login</HTML>", []Reason{HTML}},
		{"a web page that shows a certificate", "<html><pre>" + cert + "</pre></html>", []Reason{HTML}},
		{"base64 without armour", base64.StdEncoding.EncodeToString(root), []Reason{Base64}},
		{"base64 without armour, in lines", body, []Reason{Base64}},
		{"base64 twice", base64.StdEncoding.EncodeToString([]byte(cert)), []Reason{Base64}},
		{"PKCS#7 in DER", string(p7), []Reason{PKCS7}},
		{"PKCS#7 in BER", "\x30\x80" + string(p7[element0(p7):]) + "\x00\x00", []Reason{PKCS7}},
		{"PKCS#7 in PEM", block64("PKCS7", p7), []Reason{PKCS7}},
		{"CMS in PEM", block64("CMS", p7), []Reason{PKCS7}},
		{"PKCS#7 labelled CERTIFICATE", certPEM(p7), []Reason{PKCS7}},
		{"PKCS#12", string(p12), []Reason{PKCS12}},
		{"PKCS#12 in BER", "\x30\x80" + string(p12[element0(p12):]) + "\x00\x00", []Reason{PKCS12}},
		{"PKCS#12 labelled CERTIFICATE", certPEM(p12), []Reason{PKCS12}},
		{"a Java keystore", "\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x00", []Reason{Keystore}},
		{"a request", block64("CERTIFICATE REQUEST", csr), []Reason{Request}},
		{"a request, as Microsoft labels it", block64("NEW CERTIFICATE REQUEST", csr), []Reason{Request}},
		{"a request labelled CERTIFICATE", certPEM(csr), []Reason{Request}},
		{"a request in DER", string(csr), []Reason{Request}},
		{"a CRL", block64("X509 CRL", crl), []Reason{CRL}},
		{"a CRL labelled CERTIFICATE", certPEM(crl), []Reason{CRL}},
		{"a CRL in DER", string(crl), []Reason{CRL}},
		{"a public key", block64("PUBLIC KEY", pub), []Reason{PublicKey}},
		{"a public key labelled CERTIFICATE", certPEM(pub), []Reason{PublicKey}},
		{"a public key in DER", string(pub), []Reason{PublicKey}},
		{"an RSA public key in DER", string(x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537})), []Reason{PublicKey}},
		{"a trusted certificate", block64("TRUSTED CERTIFICATE", append(slices.Clone(root), 0x30, 0x00)), []Reason{TrustedCert}},
		{"parameters", block64("DH PARAMETERS", []byte{0x30, 0}), []Reason{OtherBlock}},
		{"an attribute certificate", block64("ATTRIBUTE CERTIFICATE", root), []Reason{OtherBlock}},
		{"text", "the CA is on the wiki\n", []Reason{NoCert}},
		{"JSON", `{"ca":"none"}`, []Reason{NoCert}},
		{"binary rubbish", "\x7fELF\x02\x01\x01\x00", []Reason{NoCert}},
		{"an SSH public key", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 root@node\n", []Reason{NoCert}},
		{"only BEGIN", "-----BEGIN CERTIFICATE-----\n", []Reason{Truncated}},
		{"only END", "-----END CERTIFICATE-----\n", []Reason{Truncated}},
		{"a block without its end", cert[:len(cert)/2], []Reason{Truncated}},
		{"a block without its beginning", cert[len(cert)/2:], []Reason{Truncated}},
		{"two blocks without their ends", cert[:100] + "\n" + cert[:200], []Reason{Truncated, Truncated}},
		{"a block with half its content", certPEM(root[:len(root)/2]), []Reason{Truncated}},
		{"half of a DER", string(root[:len(root)/2]), []Reason{Truncated}},
		{"DER without its last byte", string(root[:len(root)-1]), []Reason{Truncated}},
		{"DER with a line end", string(root) + "\n", []Reason{Trailing}},
		{"DER with rubbish behind", string(root) + "rubbish", []Reason{Trailing}},
		{"two certificates in DER", string(root) + string(root), []Reason{Trailing}},
		{"a block with rubbish behind its DER", certPEM(append(slices.Clone(root), 0, 0)), []Reason{Trailing}},
		{"base64 with a hole", strings.Replace(cert, "M", "*", 1), []Reason{BadPEM}},
		{"base64 without a character", strings.Replace(cert, body[:5], body[:4], 1), []Reason{BadPEM}},
		{"lines joined by backslash and n", strings.ReplaceAll(cert, "\n", `\n`), []Reason{BadPEM}},
		{"BEGIN and END of different types", strings.Replace(cert, "END CERTIFICATE", "END X509 CRL", 1), []Reason{BadPEM}},
		{"END with a typing error", strings.Replace(cert, "END CERTIFICATE", "END CERTIFCATE", 1), []Reason{BadPEM}},
		{"BEGIN with four dashes behind", strings.Replace(cert, "BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE----", 1), []Reason{BadPEM}},
		{"four dashes everywhere", strings.ReplaceAll(cert, "-----", "----"), []Reason{BadPEM}},
		{"a word processor's dashes", strings.ReplaceAll(cert, "-----", "—–"), []Reason{BadPEM}},
		{"markers in lower case", strings.ReplaceAll(strings.ReplaceAll(cert, "BEGIN CERTIFICATE", "begin certificate"), "END CERTIFICATE", "end certificate"), []Reason{BadPEM}},
		{"headers of an encrypted block", strings.Replace(cert, body, "Proc-Type: 4,ENCRYPTED\n\n$$$$\n", 1), []Reason{BadPEM}},
		{"an empty block", certPEM(nil), []Reason{BadCert}},
		{"a block of zeros", certPEM(make([]byte, 300)), []Reason{BadCert}},
		{"a sequence of nothing", certPEM([]byte{0x30, 0}), []Reason{BadCert}},
		{"a damaged certificate", certPEM(damaged), []Reason{BadCert}},
		{"base64 of text in a block", certPEM([]byte("not a certificate at all, sorry")), []Reason{BadCert}},
		{"a file over the limit", cert + strings.Repeat("#", maxFile), []Reason{TooLarge}},
		{"a public bundle", crowd.String(), []Reason{TooMany}},
		{"more blocks than anybody has", junk.String(), []Reason{TooMany}},
	}
}

// element0 is where the body of the outer element begins.
func element0(der []byte) int {
	_, body, _, _ := element(der)
	return len(der) - len(body)
}

// badCertificates are whole, and would not do.
func badCertificates(t testing.TB) []badFile {
	key := newKey(t)
	weak := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	unknown := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}
	ca := newRoot(t, "to be changed")
	made := func(change func(*x509.Certificate)) string { return certPEM(selfSign(t, "bad", key, change)) }
	forged := func(change func(*tbs)) string { return certPEM(forge(t, ca, key, change)) }
	other := selfSign(t, "broken", key, nil)
	other[len(other)-1] ^= 1 // in the signature
	huge := selfSign(t, "huge", key, nil)
	hugeKey := must(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), maxRSA, 1), E: 65537}))(t)
	dsaKey := dsaPublic(t)
	return []badFile{
		{"a server's certificate", made(func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage, c.DNSNames = false, x509.KeyUsageDigitalSignature, []string{"elsewhere.test"}
		}), []Reason{NotCA}},
		{"no basicConstraints", made(func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = false, false }), []Reason{NotCA}},
		{"a registry's name as common name only", made(func(c *x509.Certificate) { c.IsCA, c.Subject.CommonName = false, "registry.test" }), []Reason{NotCA}},
		{"a CA that must not sign certificates", made(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), []Reason{NoCertSign}},
		{"a CA for mail", made(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }), []Reason{NoServerAuth}},
		{"a CA for something unknown", made(func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{unknown} }), []Reason{NoServerAuth}},
		{"a registry's client certificate", made(func(c *x509.Certificate) {
			c.IsCA, c.DNSNames, c.ExtKeyUsage = false, []string{"registry.test"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), []Reason{NoServerAuth}},
		{"X.509 version 1", forged(func(c *tbs) { c.Version, c.Extensions = 0, nil }), []Reason{Version1}},
		{"a version that does not exist", forged(func(c *tbs) { c.Version = 7 }), []Reason{BadCert}},
		{"a negative serial number", forged(func(c *tbs) { c.Serial = big.NewInt(-5) }), []Reason{BadSerial}},
		{"an unknown critical extension", made(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: unknown, Critical: true, Value: []byte{5, 0}}}
		}), []Reason{CriticalExt}},
		{"an extension twice", forged(func(c *tbs) { c.Extensions = append(c.Extensions, c.Extensions[0]) }), []Reason{BadCert}},
		{"a broken signature of its own", certPEM(other), []Reason{BadSignature}},
		{"the signature of another key", forged(func(*tbs) {}), []Reason{BadSignature}},
		{"RSA with 1024 bits", certPEM(selfSign(t, "weak", weak, nil)), []Reason{WeakKey}},
		{"RSA with more bits than can be checked", certPEM(forge(t, huge, key, func(c *tbs) { c.Key = asn1.RawValue{FullBytes: hugeKey} })), []Reason{UnsupportedKey}},
		{"DSA", certPEM(forge(t, huge, key, func(c *tbs) { c.Key = asn1.RawValue{FullBytes: dsaKey} })), []Reason{UnsupportedKey}},
		{"an unknown kind of key", certPEM(forge(t, huge, key, func(c *tbs) {
			c.Key = asn1.RawValue{FullBytes: must(asn1.Marshal(struct {
				A pkix.AlgorithmIdentifier
				K asn1.BitString
			}{pkix.AlgorithmIdentifier{Algorithm: unknown}, asn1.BitString{Bytes: []byte{1}, BitLength: 8}}))(t)}
		})), []Reason{UnsupportedKey}},
		{"expired", made(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = noon.Add(-2*day), noon.Add(-1) }), []Reason{Expired}},
		{"not yet valid", made(func(c *x509.Certificate) { c.NotBefore = noon.Add(day) }), []Reason{NotYetValid}},
		{"expired twice", made(func(c *x509.Certificate) { c.NotAfter = noon.Add(-day / 2) }) + made(func(c *x509.Certificate) { c.NotAfter = noon.Add(-day / 3) }), []Reason{Expired, Expired}},
	}
}

// dsaPublic is the key of a DSA certificate. The numbers mean nothing.
func dsaPublic(t testing.TB) []byte {
	n := func(bits int) *big.Int { return new(big.Int).SetBit(big.NewInt(1), bits, 1) }
	p := dsa.Parameters{P: n(2047), Q: n(255), G: n(100)}
	y := must(asn1.Marshal(n(2000)))(t)
	return must(asn1.Marshal(struct {
		Algorithm struct {
			ID asn1.ObjectIdentifier
			P  dsa.Parameters
		}
		Key asn1.BitString
	}{struct {
		ID asn1.ObjectIdentifier
		P  dsa.Parameters
	}{asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, p}, asn1.BitString{Bytes: y, BitLength: 8 * len(y)}}))(t)
}
