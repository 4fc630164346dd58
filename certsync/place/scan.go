package place

import (
	"bytes"
	"crypto/x509"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// found is what a file of certificates has in it, as the daemons and OpenSSL see it.
type found struct {
	// certs counts its certificates by their fingerprints.
	certs map[string]int
	// key: it has a private key.
	key bool
}

// scan finds it. With der, a file that is one certificate in DER counts, too.
func scan(data []byte, der bool) found {
	if der && !bytes.Contains(data, []byte("-----BEGIN ")) {
		if cert, err := x509.ParseCertificate(data); err == nil {
			return found{certs: map[string]int{anchor.Fingerprint(cert): 1}}
		}
	}
	certs, key := anchor.Fingerprints(data)
	return found{certs, key}
}

func (f found) has(fingerprint string) bool { return f.certs[fingerprint] > 0 }

// only tells whether a file is good for an anchor by itself: it has that
// certificate, and no other, which would keep the tools from linking it.
func (f found) only(fingerprint string) bool {
	return len(f.certs) == 1 && f.certs[fingerprint] == 1 && !f.key
}
