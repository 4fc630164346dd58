package anchor

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Limits of RSA keys in bits. Debian's OpenSSL (security level 2) trusts no
// smaller root; to check a signature with a much larger one takes a node minutes.
const (
	minRSA = 2048
	maxRSA = 16384
)

// judge tells whether a certificate would do as an anchor, whatever the time is,
// and sets Leaf. What only Go or only OpenSSL refuses is refused: the daemons
// are Go, and what runs in their containers is not.
func (r rules) judge(a *Anchor) (reason Reason, detail string) {
	c := a.Cert
	if r.allow != nil && !r.allow[a.Fingerprint] {
		return NotAllowed, "not in the list of allowed fingerprints"
	}
	if c.Version < 3 {
		return Version1, "X.509 before version 3 cannot say that it is a CA"
	}
	switch key := c.PublicKey.(type) {
	case nil:
		return UnsupportedKey, "an algorithm that Go does not verify"
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSA {
			return WeakKey, fmt.Sprintf("RSA with %d bits, less than %d", bits, minRSA)
		} else if bits > maxRSA {
			return UnsupportedKey, fmt.Sprintf("RSA with %d bits, more than %d", bits, maxRSA)
		}
	}
	if c.PublicKeyAlgorithm == x509.DSA {
		return UnsupportedKey, "DSA, which Go does not verify"
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return CriticalExt, fmt.Sprintf("%v is critical and unknown to Go", c.UnhandledCriticalExtensions[0])
	}
	if reason, detail := notCA(c); reason != "" {
		named := slices.ContainsFunc(r.hosts, func(host string) bool { return c.VerifyHostname(host) == nil })
		if !named {
			return reason, detail
		}
		a.Leaf = true
	}
	if !servesTLS(c) {
		return NoServerAuth, "its extended key usages leave TLS servers out"
	}
	if _, _, err := selfSigned(c); err != nil {
		return BadSignature, "its signature is not its own: damaged, or not what it says"
	}
	return "", ""
}

// notCA tells why a certificate cannot vouch for others.
func notCA(c *x509.Certificate) (reason Reason, detail string) {
	switch {
	case !c.BasicConstraintsValid:
		return NotCA, "it has no basicConstraints, and is no configured registry's"
	case !c.IsCA:
		return NotCA, "it says CA:FALSE, and is no configured registry's"
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return NoCertSign, "its key usage leaves out signing certificates"
	}
	return "", ""
}

// servesTLS tells whether the extended key usages, which hold for what a CA
// signs too, let TLS servers be.
func servesTLS(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func (r rules) clock(c *x509.Certificate) (reason Reason, detail string) {
	switch {
	case r.now.After(c.NotAfter):
		return Expired, "since " + c.NotAfter.UTC().Format(time.RFC3339)
	case r.now.Before(c.NotBefore):
		return NotYetValid, "before " + c.NotBefore.UTC().Format(time.RFC3339) + "; is the clock right?"
	}
	return "", ""
}
