package anchor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is the time of all tests that have one.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func at(when time.Time) func() time.Time { return func() time.Time { return when } }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// must makes the test end at an error: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// template is a CA as it should be, around noon.
func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: name},
		NotBefore: noon.Add(-day), NotAfter: noon.Add(365 * day),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// selfSign makes a self-signed certificate's DER, a CA if change is nil.
func selfSign(t testing.TB, name string, key crypto.Signer, change func(*x509.Certificate)) []byte {
	t.Helper()
	c := template(name)
	if change != nil {
		change(c)
	}
	return must(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))(t)
}

func newRoot(t testing.TB, name string) []byte { t.Helper(); return selfSign(t, name, newKey(t), nil) }

func block64(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

func certPEM(der []byte) string { return block64("CERTIFICATE", der) }

// tbs is RFC 5280's TBSCertificate, to make what crypto/x509 does not.
type tbs struct {
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     *big.Int
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	Validity   asn1.RawValue
	Subject    asn1.RawValue
	Key        asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

// forge changes a certificate, and signs it again with key (ECDSA, SHA-256).
func forge(t testing.TB, der []byte, key crypto.Signer, change func(*tbs)) []byte {
	t.Helper()
	var c struct {
		TBS       tbs
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		t.Fatal(err)
	}
	change(&c.TBS)
	c.Algorithm = c.TBS.Algorithm
	sum := sha256.Sum256(must(asn1.Marshal(c.TBS))(t))
	c.Signature = asn1.BitString{Bytes: must(key.Sign(rand.Reader, sum[:], crypto.SHA256))(t)}
	c.Signature.BitLength = 8 * len(c.Signature.Bytes)
	return must(asn1.Marshal(c))(t)
}

func write(t testing.TB, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func reasons(list []Refusal) []Reason {
	var all []Reason
	for _, r := range list {
		all = append(all, r.Reason)
	}
	return all
}

func fingerprints(anchors []Anchor) []string {
	var all []string
	for _, a := range anchors {
		all = append(all, a.Fingerprint)
	}
	return all
}

// sorted are the fingerprints of certificates as a Reading has them.
func sorted(ders ...[]byte) []string {
	var all []string
	for _, der := range ders {
		all = append(all, fingerprint(der))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
