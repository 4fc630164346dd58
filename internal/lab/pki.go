package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CA is a certificate authority that is made for a test: a self-signed root and
// its key.
type CA struct {
	Cert *x509.Certificate
	// NoKeyID: its server certificates have no AuthorityKeyIdentifier, so that
	// only the issuer's name says who signed them.
	NoKeyID bool

	key *ecdsa.PrivateKey
}

// CAOption changes the root before it is signed.
type CAOption func(*x509.Certificate)

// Expired makes it a root that was valid until yesterday.
func Expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().AddDate(-1, 0, 0), time.Now().AddDate(0, 0, -1)
}

// Leaf makes it no CA but the certificate of a server, by itself, for which
// SelfSigned has the key.
func Leaf(names ...string) CAOption {
	return func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
		forServer(c, names)
	}
}

// NewCA makes a root with this common name and a new key. Two of one name have
// the same subject, as after a rotation.
func NewCA(commonName string, options ...CAOption) (*CA, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"nodestead lab"}, CommonName: commonName},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, option := range options {
		option(template)
	}
	ca := &CA{}
	var err error
	if ca.Cert, ca.key, err = sign(template, template, nil); err != nil {
		return nil, fmt.Errorf("make CA %s: %w", commonName, err)
	}
	return ca, nil
}

// PEM is the root as one PEM block.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert.Raw})
}

// Server makes a certificate that is valid for a day, with its key, for a server
// with these DNS names and IP addresses.
func (ca *CA) Server(names ...string) (tls.Certificate, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "lab server"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(0, 0, 1),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	forServer(template, names)
	parent := *ca.Cert
	if ca.NoKeyID {
		parent.SubjectKeyId = nil
	}
	cert, key, err := sign(template, &parent, ca.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a server certificate for %v: %w", names, err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// SelfSigned is the root itself as a server has it.
func (ca *CA) SelfSigned() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{ca.Cert.Raw}, PrivateKey: ca.key, Leaf: ca.Cert}
}

func forServer(c *x509.Certificate, names []string) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
}

// sign makes a key and a certificate for it, signed by the parent's key or, when
// that is nil, by itself.
func sign(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	if parentKey == nil {
		parentKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}
