// Package anchor reads CA certificates from directories, and refuses what is
// none, by name and reason. It remembers what each file gave last, so that a
// source that breaks takes no trust away. It never writes, and never logs
// content.
package anchor

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Anchor is one validated certificate. It is a plain value; Cert is not changed.
type Anchor struct {
	Cert *x509.Certificate
	// Fingerprint is the SHA-256 of the certificate's DER, in lower-case hex.
	Fingerprint string
	// Leaf: it is no CA, and is good only for the registries whose name it
	// has. It never goes into a trust store.
	Leaf bool
	// Source is the path of the file that it was found in.
	Source string
}

// PEM is the certificate as one block, without headers or comments.
func (a Anchor) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw})
}

// Fingerprint is the SHA-256 of the certificate's DER, in lower-case hex.
func Fingerprint(cert *x509.Certificate) string { return fingerprint(cert.Raw) }

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// ParseFingerprint reads a SHA-256 fingerprint as people write it, with colons
// and capitals too (openssl x509 -fingerprint -sha256), and returns it in
// lower-case hex.
func ParseFingerprint(text string) (string, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
	if err != nil {
		return "", fmt.Errorf("fingerprint %q: %w", text, err)
	}
	if len(b) != sha256.Size {
		return "", fmt.Errorf("fingerprint %q: %d bytes, a SHA-256 has %d", text, len(b), sha256.Size)
	}
	return hex.EncodeToString(b), nil
}

// Refusal is something in a source that is not taken. It has no content of it.
type Refusal struct {
	Source string // path of the file, or of the directory
	Reason Reason
	Detail string // for people: which block, which limit
}

// Reading is what the sources say, together with what they said before where
// they broke.
type Reading struct {
	Anchors []Anchor // sorted by fingerprint, each once
	Refused []Refusal
	// Warnings are about anchors that are taken, and may disappoint.
	Warnings []Refusal
	// Broken are the source directories that are missing, unreadable, empty or
	// give nothing, with the reason. What they gave last is in Anchors.
	Broken []Refusal
	// Memory is what the next Read wants.
	Memory Memory
}

// Memory is what each file gave last, to be kept on disk: source directory →
// file name → PEM blocks of the anchors. JSON-able.
type Memory map[string]map[string][]string

// Config is what Read reads, and what it takes.
type Config struct {
	Dirs []string
	// Allow are SHA-256 fingerprints, as ParseFingerprint takes them; empty: any
	// valid CA. It holds for what is remembered too.
	Allow []string
	// Registries are host:port of the registries for which a leaf that has
	// their name may be taken.
	Registries []string
	Now        func() time.Time
}

// rules are what of a Config a file is judged by.
type rules struct {
	allow map[string]bool // nil: any
	hosts []string
	now   time.Time
}

func (cfg Config) rules() rules {
	r := rules{now: cfg.Now()}
	if len(cfg.Allow) > 0 {
		r.allow = make(map[string]bool)
	}
	for _, f := range cfg.Allow {
		if plain, err := ParseFingerprint(f); err == nil {
			f = plain
		}
		r.allow[f] = true
	}
	for _, registry := range cfg.Registries {
		host, _, err := net.SplitHostPort(registry)
		if err != nil {
			host = registry // without a port
		}
		r.hosts = append(r.hosts, host)
	}
	return r
}

// Read reads all sources. It never fails as a whole: what could not be read is
// in Refused or Broken.
//
// What a source gave before stays, or goes, by these rules:
//
//	a directory is missing, unreadable, empty, over a limit,   Broken: all that it gave last stays,
//	or no file in it gives an anchor now                       of files that are gone too
//	a file is there, and is refused or unreadable, as a whole  what it gave last stays, in addition
//	or in part                                                 to what is good in it now
//	… only for not_allowed                                     only what is good in it now
//	a file gives servers' certificates now, and gave CAs       the CAs stay: it is a mistake, as a rule
//	a file is gone, others in the directory give anchors       its anchors go
//	an anchor that was given before has expired since, or      it stays, and is reported as refused
//	seems not yet valid (a wrong clock)
//	an anchor is no longer in Allow, or a leaf has no          it goes, from everywhere
//	configured registry's name any more
//	a directory is no longer in Dirs                           its anchors go
//
// A file that is given back whole ends this: what is in it then is what counts.
// A source has at most 20 certificates, old and new; with more it is refused as
// a whole, because it is somebody's public bundle.
func Read(cfg Config, last Memory) Reading {
	r := Reading{Memory: Memory{}}
	rules := cfg.rules()
	for _, dir := range cfg.Dirs {
		dir = filepath.Clean(dir)
		if _, twice := r.Memory[dir]; !twice {
			r.add(dir, readSource(dir, rules, last[dir]))
		}
	}
	slices.SortStableFunc(r.Anchors, func(a, b Anchor) int { return cmp.Compare(a.Fingerprint, b.Fingerprint) })
	r.Anchors = slices.CompactFunc(r.Anchors, func(a, b Anchor) bool { return a.Fingerprint == b.Fingerprint })
	r.warn()
	return r
}

func (r *Reading) add(dir string, s source) {
	files := make(map[string][]string)
	for name, anchors := range s.taken {
		for _, a := range anchors {
			files[name] = append(files[name], string(a.PEM()))
		}
	}
	r.Memory[dir] = files
	for _, name := range sortedKeys(s.taken) {
		r.Anchors = append(r.Anchors, s.taken[name]...)
	}
	r.Refused = append(r.Refused, s.refused...)
	r.Warnings = append(r.Warnings, s.warnings...)
	if s.broken != nil {
		r.Broken = append(r.Broken, *s.broken)
	}
}

// warn looks at what is taken, from all sources together.
func (r *Reading) warn() {
	for i, a := range r.Anchors {
		say := func(reason Reason, format string, args ...any) {
			r.Warnings = append(r.Warnings, Refusal{a.Source, reason, a.Fingerprint[:16] + ": " + fmt.Sprintf(format, args...)})
		}
		if a.Leaf {
			say(ServerCert, "a server's certificate, good for certs.d of that registry alone; give the CA that signed it, if there is one")
			continue
		}
		switch self, checked, _ := selfSigned(a.Cert); {
		case !self:
			say(NotSelfSigned, "an intermediate CA; OpenSSL (curl, git) wants its root as well")
		case !checked:
			say(WeakSignature, "its own signature (%v) is too old to be checked; its fingerprint is all that vouches for it", a.Cert.SignatureAlgorithm)
		}
		if constrained(a.Cert) {
			say(NameConstraints, "it vouches only for the names in its name constraints")
		}
		for _, b := range r.Anchors[:i] {
			if !b.Leaf && bytes.Equal(a.Cert.RawSubject, b.Cert.RawSubject) && !bytes.Equal(a.Cert.RawSubjectPublicKeyInfo, b.Cert.RawSubjectPublicKeyInfo) {
				say(SameSubject, "another key under the subject of %s; OpenSSL may try the wrong one for certificates without an AuthorityKeyIdentifier", b.Fingerprint[:16])
				break
			}
		}
	}
}

// selfSigned tells whether a certificate is signed with its own key, and whether
// that signature could be checked: nobody checks those of MD5 and SHA-1 any
// more. The error is that of a signature that should be its own, and is not. (A
// certificate of the old key for the new one has the same name twice, too, but
// then the key identifiers differ.)
func selfSigned(c *x509.Certificate) (self, checked bool, err error) {
	if !bytes.Equal(c.RawIssuer, c.RawSubject) {
		return false, false, nil
	}
	if len(c.AuthorityKeyId) > 0 && len(c.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId) {
		return false, false, nil
	}
	err = c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
	var insecure x509.InsecureAlgorithmError
	if errors.As(err, &insecure) || errors.Is(err, x509.ErrUnsupportedAlgorithm) {
		return true, false, nil
	}
	sha1 := c.SignatureAlgorithm == x509.SHA1WithRSA || c.SignatureAlgorithm == x509.ECDSAWithSHA1
	return true, !sha1, err
}

func constrained(c *x509.Certificate) bool {
	return len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+len(c.ExcludedIPRanges)+
		len(c.PermittedURIDomains)+len(c.ExcludedURIDomains)+len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses) > 0
}
