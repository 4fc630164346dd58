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
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strings"
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

// What can be read in spite of its form is, and comes out as plain PEM.
func TestForms(t *testing.T) {
	a, b := newRoot(t, "a"), newRoot(t, "b")
	pa, pb := certPEM(a), certPEM(b)
	oneLine := strings.ReplaceAll(pa, "\n", " ")
	for _, c := range []struct {
		name    string
		content string
		want    [][]byte
	}{
		{"PEM", pa, [][]byte{a}},
		{"DER", string(a), [][]byte{a}},
		{"a bundle", pa + pb, [][]byte{a, b}},
		{"one of them twice", pa + pb + pa, [][]byte{a, b}},
		{"no line end at the end", strings.TrimSpace(pa), [][]byte{a}},
		{"a BOM", "\ufeff" + pa + pb, [][]byte{a, b}},
		{"a BOM before each", "\ufeff" + pa + "\ufeff" + pb, [][]byte{a, b}},
		{"CRLF", strings.ReplaceAll(pa+pb, "\n", "\r\n"), [][]byte{a, b}},
		{"CR alone", strings.ReplaceAll(pa+pb, "\n", "\r"), [][]byte{a, b}},
		{"spaces at the ends of lines", strings.ReplaceAll(pa+pb, "\n", " \t\n"), [][]byte{a, b}},
		{"indented, as in YAML", "    " + strings.ReplaceAll(pa+pb, "\n", "\n    "), [][]byte{a, b}},
		{"on one line", oneLine + strings.ReplaceAll(pb, "\n", " "), [][]byte{a, b}},
		{"lines of 76", "-----BEGIN CERTIFICATE-----\n" + lines(base64.StdEncoding.EncodeToString(a), 76) + "-----END CERTIFICATE-----\n", [][]byte{a}},
		{"empty lines within", strings.ReplaceAll(pa, "\n", "\n\n"), [][]byte{a}},
		{"glued", strings.TrimSpace(pa) + strings.TrimSpace(pb), [][]byte{a, b}},
		{"text around", "# the old one\n" + pa + "subject=CN = b\nissuer=CN = b\n" + pb + "# no private key is in here, the end\n# the private key\n" + pa, [][]byte{a, b}},
		{"a ruler of dashes", strings.Repeat("-", 79) + "\n" + pa + strings.Repeat("=", 79) + "\n" + pb, [][]byte{a, b}},
		{"a ruler of dashes that touches", strings.Repeat("-", 79) + pa, [][]byte{a}},
		{"headers", strings.Replace(pa, "-----\n", "-----\nComment: root\nX-Other: 1\n\n", 1), [][]byte{a}},
		{"its old label", block64("X509 CERTIFICATE", a), [][]byte{a}},
		{"a trusted certificate without settings", block64("TRUSTED CERTIFICATE", a), [][]byte{a}},
		{"a name in UTF-8 around", "# Über-CA\n" + pa, [][]byte{a}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parse("ca.crt", []byte(c.content), Config{Now: at(noon)}.rules(), nil)
			if diff := cmp.Diff(sorted(c.want...), slices.Sorted(slices.Values(fingerprints(p.anchors)))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(p.refused) > 0 || p.partly {
				t.Errorf("refused: %v, partly: %v", p.refused, p.partly)
			}
			for _, anchor := range p.anchors {
				plain, rest := pem.Decode(anchor.PEM())
				if plain == nil || len(rest) > 0 || len(plain.Headers) > 0 || plain.Type != "CERTIFICATE" || fingerprint(plain.Bytes) != anchor.Fingerprint {
					t.Errorf("PEM is %q", anchor.PEM())
				}
			}
		})
	}
}

// A bad block does not take the good ones with it, unless it is a key.
func TestPartly(t *testing.T) {
	a, b := newRoot(t, "a"), newRoot(t, "b")
	leaf := selfSign(t, "leaf", newKey(t), func(c *x509.Certificate) { c.IsCA = false })
	for _, c := range []struct {
		name    string
		content string
		want    []Reason
	}{
		{"a leaf before them", certPEM(leaf) + certPEM(a) + certPEM(b), []Reason{NotCA}},
		{"a request between them", certPEM(a) + block64("CERTIFICATE REQUEST", nil) + certPEM(b), []Reason{Request}},
		{"a torn one between them", certPEM(a) + certPEM(leaf)[:200] + "\n" + certPEM(b), []Reason{Truncated}},
		{"a torn one behind them", certPEM(a) + certPEM(b) + certPEM(leaf)[:200], []Reason{Truncated}},
		{"the end of one before them", certPEM(leaf)[200:] + certPEM(a) + certPEM(b), []Reason{Truncated}},
		{"one with four dashes behind them", certPEM(a) + certPEM(b) + strings.ReplaceAll(certPEM(leaf), "-----", "----"), []Reason{BadPEM}},
		{"one with four dashes before them", strings.ReplaceAll(certPEM(leaf), "-----", "----") + certPEM(a) + certPEM(b), []Reason{BadPEM}},
		{"one with four dashes", certPEM(a) + strings.ReplaceAll(certPEM(leaf), "-----", "----") + certPEM(b), []Reason{BadPEM}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parse("ca.crt", []byte(c.content), Config{Now: at(noon)}.rules(), nil)
			if diff := cmp.Diff([]string{fingerprint(a), fingerprint(b)}, fingerprints(p.anchors)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.want, reasons(p.refused)); diff != "" || !p.partly {
				t.Errorf("partly is %v, reasons (-want +got):\n%s", p.partly, diff)
			}
		})
	}
}

// A leaf is taken for a configured registry whose name it has, and for no other.
func TestLeaf(t *testing.T) {
	self := func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
		c.DNSNames, c.IPAddresses = []string{"registry.test", "*.wild.test"}, []net.IP{net.ParseIP("fd00::5"), net.IPv4(10, 0, 0, 5)}
	}
	own := selfSign(t, "leaf", newKey(t), self)
	plain := selfSign(t, "leaf", newKey(t), func(c *x509.Certificate) { self(c); c.BasicConstraintsValid = false })
	selfCA := selfSign(t, "leaf", newKey(t), func(c *x509.Certificate) { self(c); c.IsCA = true })
	key := newKey(t)
	issuer, c := template("issuer"), template("leaf")
	self(c)
	issued := must(x509.CreateCertificate(rand.Reader, c, issuer, newKey(t).Public(), key))(t)
	for name, der := range map[string][]byte{"self-signed": own, "no basicConstraints": plain, "a CA that must not sign": selfCA, "issued": issued} {
		for registry, want := range map[string]bool{
			"registry.test:5000": true, "registry.test": true, "REGISTRY.test:443": true, "a.wild.test:5000": true,
			"[fd00::5]:5000": true, "10.0.0.5:5000": true,
			"registry.test.evil:5000": false, "a.b.wild.test:5000": false, "10.0.0.6:5000": false, "leaf:5000": false, "": false,
		} {
			t.Run(name+" for "+registry, func(t *testing.T) {
				p := parse("ca.crt", der, Config{Registries: []string{"other.test:1", registry}, Now: at(noon)}.rules(), nil)
				if got := len(p.anchors) == 1; got != want {
					t.Fatalf("taken: %v, refused: %v", got, p.refused)
				}
				if want && (!p.anchors[0].Leaf || len(p.refused) > 0) {
					t.Errorf("leaf: %v, refused: %v", p.anchors[0].Leaf, p.refused)
				}
				if !want && !slices.Contains([]Reason{NotCA, NoCertSign}, p.refused[0].Reason) {
					t.Errorf("refused: %v", p.refused)
				}
			})
		}
	}
}

func TestWarnings(t *testing.T) {
	oldKey, newerKey := newKey(t), newKey(t)
	id := func(id byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.SubjectKeyId, c.SerialNumber = []byte{id}, big.NewInt(int64(id)) }
	}
	older, newer := selfSign(t, "Root", oldKey, id(1)), selfSign(t, "Root", newerKey, id(2))
	longer := selfSign(t, "Root", oldKey, func(c *x509.Certificate) { id(3)(c); c.NotAfter = noon.Add(1000 * day) })
	by := func(name string) []byte { // signed by the old key
		c := template(name)
		c.SubjectKeyId, c.AuthorityKeyId = []byte{2}, []byte{1}
		return must(x509.CreateCertificate(rand.Reader, c, must(x509.ParseCertificate(older))(t), newerKey.Public(), oldKey))(t)
	}
	for _, c := range []struct {
		name string
		ders [][]byte
		want []Reason
	}{
		{"a root", [][]byte{older}, nil},
		{"an intermediate", [][]byte{by("Issuing")}, []Reason{NotSelfSigned}},
		{"the new key signed with the old one", [][]byte{by("Root")}, []Reason{NotSelfSigned}},
		{"old and new", [][]byte{older, newer}, []Reason{SameSubject}},
		{"the same key with a longer life", [][]byte{older, longer}, nil},
		{"other names", [][]byte{older, newRoot(t, "Other")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dirs := []string{t.TempDir(), t.TempDir()} // sources are looked at together
			for i, der := range c.ders {
				write(t, dirs[i%2], "ca.crt", certPEM(der))
			}
			r := Read(Config{Dirs: dirs, Now: at(noon)}, nil)
			if len(r.Anchors) != len(c.ders) {
				t.Errorf("refused: %v", r.Refused)
			}
			if diff := cmp.Diff(c.want, reasons(r.Warnings)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What was written comes back as it was, and a leaf is never a CA.
func TestStored(t *testing.T) {
	named := func(change func(*x509.Certificate)) []byte {
		return selfSign(t, "leaf", newKey(t), func(c *x509.Certificate) { c.DNSNames = []string{"registry.test"}; change(c) })
	}
	var content []byte
	r := Config{Registries: []string{"registry.test:5000"}, Now: at(noon)}.rules()
	var want []Anchor
	for _, der := range [][]byte{
		newRoot(t, "root"),
		named(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }),
		named(func(c *x509.Certificate) { c.BasicConstraintsValid = false }),
		named(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }),
	} {
		p := parse("ca.crt", der, r, nil)
		want = append(want, p.anchors...)
		content = append(content, p.anchors[0].PEM()...)
		content = append(content, certPEM([]byte("rubbish"))...)
	}
	got := Stored(content, "ca.crt")
	if diff := cmp.Diff(want, got, cmp.Comparer((*x509.Certificate).Equal)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseFingerprint(t *testing.T) {
	want := strings.Repeat("0a", 32)
	for _, text := range []string{want, strings.ToUpper(want), " " + want + "\n", strings.TrimSuffix(strings.Repeat("0A:", 32), ":")} {
		if got, err := ParseFingerprint(text); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0a", want + "0a", want[1:], "sha256:" + want, strings.Repeat("xy", 32)} {
		if got, err := ParseFingerprint(text); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// Fingerprints counts what Go and OpenSSL would find in a bundle.
func TestFingerprints(t *testing.T) {
	a, b := newRoot(t, "a"), newRoot(t, "b")
	pa, pb := certPEM(a), certPEM(b)
	key := block64("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(newKey(t)))(t))
	fa, fb := fingerprint(a), fingerprint(b)
	for _, c := range []struct {
		name   string
		bundle string
		want   map[string]int
		key    bool
	}{
		{"nothing", "", map[string]int{}, false},
		{"comments", "# a\n" + pa + "\n\n# b\n" + pb + "# no private key\n", map[string]int{fa: 1, fb: 1}, false},
		{"twice", pa + pb + pa, map[string]int{fa: 2, fb: 1}, false},
		{"CRLF", strings.ReplaceAll(pa, "\n", "\r\n"), map[string]int{fa: 1}, false},
		{"a key", pa + key + pb, map[string]int{fa: 1, fb: 1}, true},
		{"a torn key", pa + key[:40], map[string]int{fa: 1}, true},
		{"glued: Go finds none", strings.TrimSpace(pa) + pb, map[string]int{}, false},
		{"a BOM: Go does not find the first", "\ufeff" + pa + pb, map[string]int{fb: 1}, false},
		{"headers: Go finds none", strings.Replace(pa, "-----\n", "-----\na: b\n\n", 1), map[string]int{}, false},
		{"other blocks", block64("X509 CRL", a) + pb, map[string]int{fb: 1}, false},
		{"what is no certificate counts, too", certPEM([]byte("x")), map[string]int{fingerprint([]byte("x")): 1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, key := Fingerprints([]byte(c.bundle))
			if diff := cmp.Diff(c.want, got); diff != "" || key != c.key {
				t.Errorf("key is %v (-want +got):\n%s", key, diff)
			}
		})
	}
	if cert := must(x509.ParseCertificate(a))(t); Fingerprint(cert) != fa {
		t.Errorf("%s of the certificate, %s of the bytes", Fingerprint(cert), fa)
	}
}

func BenchmarkFingerprints(b *testing.B) {
	var bundle strings.Builder
	for range 150 {
		bundle.WriteString(certPEM(newRoot(b, "public")))
	}
	for b.Loop() {
		if count, key := Fingerprints([]byte(bundle.String())); len(count) != 150 || key {
			b.Fatal(len(count), key)
		}
	}
}
