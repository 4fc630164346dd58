package anchor

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// P-224 is weak, but Go and OpenSSL take it; nothing is refused only for taste.
func TestOddButGood(t *testing.T) {
	key := newKey(t)
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }
	for _, c := range []struct {
		name   string
		signer crypto.Signer
		der    []byte
		warn   []Reason
	}{
		{"P-224", p224, selfSign(t, "odd", p224, nil), nil},
		{"Ed25519", ed, selfSign(t, "odd", ed, nil), nil},
		{"RSA with 2048 bits", rsaKey, selfSign(t, "odd", rsaKey, nil), nil},
		{"RSA-PSS", rsaKey, selfSign(t, "odd", rsaKey, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }), nil},
		{"SHA-1 under a root", rsaKey, selfSign(t, "odd", rsaKey, sha1), []Reason{WeakSignature}},
		{"serial number 0", key, forge(t, selfSign(t, "odd", key, nil), key, func(c *tbs) { c.Serial = big.NewInt(0) }), nil},
		{"a path of no length", key, selfSign(t, "odd", key, func(c *x509.Certificate) { c.MaxPathLenZero = true }), nil},
		{"no key usage", key, selfSign(t, "odd", key, func(c *x509.Certificate) { c.KeyUsage = 0 }), nil},
		{"a CA for servers", key, selfSign(t, "odd", key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), nil},
		{"a CA for everything", key, selfSign(t, "odd", key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), nil},
		{"name constraints", key, selfSign(t, "odd", key, func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"registry.test"}, true
		}), []Reason{NameConstraints}},
		{"a CA with a server's name", key, selfSign(t, "odd", key, func(c *x509.Certificate) { c.DNSNames = []string{"registry.test"} }), nil},
		{"an unknown extension that is not critical", key, selfSign(t, "odd", key, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: []byte{5, 0}}}
		}), nil},
		{"ends this second", key, selfSign(t, "odd", key, func(c *x509.Certificate) { c.NotAfter = noon }), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "ca.crt", certPEM(c.der))
			r := Read(Config{Dirs: []string{dir}, Registries: []string{"registry.test"}, Now: at(noon)}, nil)
			if len(r.Anchors) != 1 || !bytes.Equal(r.Anchors[0].Cert.Raw, c.der) || r.Anchors[0].Leaf {
				t.Fatalf("taken: %v, refused: %v", r.Anchors, r.Refused)
			}
			if diff := cmp.Diff(c.warn, reasons(r.Warnings)); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			vouches(t, r.Anchors[0].Cert, c.signer)
		})
	}
}

// vouches checks that Go believes a server that the anchor signed.
func vouches(t *testing.T, ca *x509.Certificate, signer crypto.Signer) {
	t.Helper()
	server := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"registry.test"}, NotBefore: noon.Add(-day), NotAfter: noon.Add(day)}
	der := must(x509.CreateCertificate(rand.Reader, server, ca, newKey(t).Public(), signer))(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := must(x509.ParseCertificate(der))(t).Verify(x509.VerifyOptions{Roots: roots, DNSName: "registry.test", CurrentTime: noon}); err != nil {
		t.Errorf("taken, and Go does not believe it: %v", err)
	}
}
