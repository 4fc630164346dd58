package anchor

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// keyFiles hold private keys of all kinds, in all clothes.
func keyFiles(t testing.TB, root []byte) []badFile {
	ec := newKey(t)
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := must(ecdh.X25519().GenerateKey(rand.Reader))(t)
	sec1 := must(x509.MarshalECPrivateKey(ec))(t)
	pkcs1 := x509.MarshalPKCS1PrivateKey(rsaKey)
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(rsaKey))(t)
	ed8 := must(x509.MarshalPKCS8PrivateKey(ed))(t)
	x8 := must(x509.MarshalPKCS8PrivateKey(x))(t)
	one := big.NewInt(1234567)
	dsaDER := must(asn1.Marshal(struct{ V, P, Q, G, Y, X *big.Int }{big.NewInt(0), one, one, one, one, one}))(t)
	pbes2 := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	pbe := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 3}
	encrypted := func(oid asn1.ObjectIdentifier) []byte {
		return must(asn1.Marshal(struct {
			Algorithm pkix.AlgorithmIdentifier
			Data      []byte
		}{pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue}, pkcs8}))(t)
	}
	openssh := append([]byte("openssh-key-v1\x00"), pkcs8...)
	legacy := must(x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", pkcs1, []byte("secret"), x509.PEMCipherAES256))(t) //nolint:staticcheck // people have them
	cert := certPEM(root)
	keyPEM := block64("PRIVATE KEY", pkcs8)
	wide := func(text string) string {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(text)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return string(b)
	}
	list := []badFile{
		{name: "PKCS#1", content: block64("RSA PRIVATE KEY", pkcs1)},
		{name: "SEC 1", content: block64("EC PRIVATE KEY", sec1)},
		{name: "DSA", content: block64("DSA PRIVATE KEY", dsaDER)},
		{name: "PKCS#8 RSA", content: keyPEM},
		{name: "PKCS#8 Ed25519", content: block64("PRIVATE KEY", ed8)},
		{name: "PKCS#8 X25519", content: block64("PRIVATE KEY", x8)},
		{name: "encrypted PKCS#8", content: block64("ENCRYPTED PRIVATE KEY", encrypted(pbes2))},
		{name: "encrypted PKCS#1", content: string(pem.EncodeToMemory(legacy))},
		{name: "OpenSSH", content: block64("OPENSSH PRIVATE KEY", openssh)},
		{name: "SSH2", content: "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: x\nAAAA\n---- END SSH2 ENCRYPTED PRIVATE KEY ----\n"},
		{name: "PGP", content: "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBF\n-----END PGP PRIVATE KEY BLOCK-----\n"},
		{name: "PuTTY", content: "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n"},
		{name: "openssl pkey -text", content: "Private-Key: (2048 bit, 2 primes)\nmodulus:\n    00:c5:\n"},
		{name: "PKCS#1 in DER", content: string(pkcs1)},
		{name: "SEC 1 in DER", content: string(sec1)},
		{name: "DSA in DER", content: string(dsaDER)},
		{name: "PKCS#8 in DER", content: string(pkcs8)},
		{name: "Ed25519 in DER", content: string(ed8)},
		{name: "encrypted PKCS#8 in DER", content: string(encrypted(pbes2))},
		{name: "encrypted PKCS#8 in DER, PKCS#12's cipher", content: string(encrypted(pbe))},
		{name: "truncated PKCS#8 in DER", content: string(pkcs8[:100])},
		{name: "truncated PKCS#1 in DER", content: string(pkcs1[:20])},
		{name: "certificate, then key", content: cert + keyPEM},
		{name: "key, then certificate", content: keyPEM + cert},
		{name: "key between certificates", content: cert + keyPEM + cert},
		{name: "key glued to a certificate", content: strings.TrimSpace(cert) + keyPEM},
		{name: "certificate in DER, then key in DER", content: string(root) + string(pkcs8)},
		{name: "certificate's block with a key after it", content: certPEM(append(slices.Clone(root), sec1...))},
		{name: "key labelled CERTIFICATE", content: block64("CERTIFICATE", pkcs8)},
		{name: "EC key labelled CERTIFICATE beside a certificate", content: cert + block64("CERTIFICATE", sec1)},
		{name: "encrypted key labelled X509 CRL", content: cert + block64("X509 CRL", encrypted(pbes2))},
		{name: "OpenSSH key labelled CERTIFICATE", content: block64("CERTIFICATE", openssh)},
		{name: "key in lower case", content: strings.ToLower(keyPEM)},
		{name: "key with a BOM", content: "\ufeff" + keyPEM},
		{name: "key with CRLF", content: strings.ReplaceAll(keyPEM, "\n", "\r\n")},
		{name: "key with more spaces in its marker", content: strings.ReplaceAll(keyPEM, "PRIVATE KEY", "PRIVATE  KEY")},
		{name: "key on one line", content: cert + strings.ReplaceAll(keyPEM, "\n", `\n`)},
		{name: "key torn at its end", content: cert + keyPEM[:200]},
		{name: "key torn at its beginning", content: keyPEM[len(keyPEM)-200:] + cert},
		{name: "key torn within its first line", content: cert + "-----BEGIN RSA PRIVATE KEY"},
		{name: "key of which the last line is left", content: cert + "AAAA\n-----END PRIVATE KEY\n" + cert},
		{name: "key with damaged base64", content: cert + strings.ReplaceAll(keyPEM, "M", "*")},
		{name: "key's base64 without armour", content: base64.StdEncoding.EncodeToString(pkcs8)},
		{name: "EC key's base64 as a comment", content: cert + base64.StdEncoding.EncodeToString(sec1) + "\n" + cert},
		{name: "Ed25519 key's base64 as a comment", content: cert + "# " + base64.StdEncoding.EncodeToString(ed8) + "\n"},
		{name: "base64 of a key's PEM", content: base64.StdEncoding.EncodeToString([]byte(keyPEM))},
		{name: "base64 of a certificate's and a key's PEM, in lines", content: lines(base64.StdEncoding.EncodeToString([]byte(cert+keyPEM)), 60)},
		{name: "base64 of a certificate's and a key's PEM, in short lines", content: lines(base64.StdEncoding.EncodeToString([]byte(cert+keyPEM)), 20)},
		{name: "key's base64 in short lines", content: lines(base64.StdEncoding.EncodeToString(ed8), 20)},
		{name: "a Secret's manifest", content: "data:\n  tls.key: " + base64.StdEncoding.EncodeToString([]byte(keyPEM)) + "\n"},
		{name: "a Secret's manifest in JSON", content: `{"data":{"tls.key":"` + base64.StdEncoding.EncodeToString([]byte(keyPEM)) + `"}}` + cert},
		{name: "key in UTF-16", content: wide(cert + keyPEM)},
		{name: "key in a web page", content: "<html><pre>" + keyPEM + "</pre></html>"},
	}
	for i := range list {
		list[i].name, list[i].want = "private key: "+list[i].name, []Reason{PrivateKey}
	}
	return list
}

func lines(text string, width int) string {
	var b strings.Builder
	for chunk := range slices.Chunk([]byte(text), width) {
		b.Write(chunk)
		b.WriteByte('\n')
	}
	return b.String()
}
