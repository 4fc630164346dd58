package lab

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
)

func newCA(t *testing.T, name string, options ...CAOption) *CA {
	t.Helper()
	ca, err := NewCA(name, options...)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func serverCert(t *testing.T, ca *CA, names ...string) tls.Certificate {
	t.Helper()
	cert, err := ca.Server(names...)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestCA proves that clients take and refuse what they should.
func TestCA(t *testing.T) {
	t.Parallel()
	ca, next := newCA(t, "root"), newCA(t, "root")
	noKeyID := newCA(t, "root")
	noKeyID.NoKeyID = true
	expired := newCA(t, "old", Expired)
	leaf := newCA(t, "self", Leaf("self.test"))
	for _, test := range []struct {
		name   string
		cert   tls.Certificate
		root   *x509.Certificate
		server string
		want   any // the target of errors.As; nil: it is taken
	}{
		{"a name", serverCert(t, ca, "a.test", "b.test", "192.0.2.1"), ca.Cert, "b.test", nil},
		{"an address", serverCert(t, ca, "a.test", "192.0.2.1"), ca.Cert, "192.0.2.1", nil},
		{"another name", serverCert(t, ca, "a.test"), ca.Cert, "b.test", new(x509.HostnameError)},
		{"another root of the same subject", serverCert(t, ca, "a.test"), next.Cert, "a.test", new(x509.UnknownAuthorityError)},
		{"without a key id", serverCert(t, noKeyID, "a.test"), noKeyID.Cert, "a.test", nil},
		{"expired", serverCert(t, expired, "a.test"), expired.Cert, "a.test", new(x509.CertificateInvalidError)},
		{"itself", leaf.SelfSigned(), leaf.Cert, "self.test", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(test.root)
			_, err := test.cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: test.server})
			if test.want == nil && err != nil || test.want != nil && !errors.As(err, test.want) {
				t.Errorf("error %v (%T), want %T", err, err, test.want)
			}
		})
	}
	if string(ca.Cert.RawSubject) != string(next.Cert.RawSubject) || ca.Cert.Equal(next.Cert) {
		t.Error("two roots of one name do not differ by their keys alone")
	}
	if got := serverCert(t, noKeyID, "a.test").Leaf.AuthorityKeyId; got != nil {
		t.Errorf("a key id: %x", got)
	}
	if got := serverCert(t, ca, "a.test").Leaf.AuthorityKeyId; len(got) == 0 || string(got) != string(ca.Cert.SubjectKeyId) {
		t.Errorf("the key id %x is not that of the root, %x", got, ca.Cert.SubjectKeyId)
	}
	if leaf.Cert.IsCA {
		t.Error("the leaf is a CA")
	}
	block, rest := pem.Decode(ca.PEM())
	if block == nil || len(rest) > 0 || string(block.Bytes) != string(ca.Cert.Raw) {
		t.Errorf("as PEM: %s", ca.PEM())
	}
}
