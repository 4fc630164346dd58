package anchor

import (
	"crypto/x509"
	"encoding/pem"
)

// Stored reads anchors that were validated before and written by Anchor.PEM, one
// after the other. What is no certificate is left out.
func Stored(blocks []byte, source string) []Anchor {
	var all []Anchor
	for {
		b, rest := pem.Decode(blocks)
		if b == nil {
			return all
		}
		blocks = rest
		cert, err := x509.ParseCertificate(b.Bytes)
		if b.Type != "CERTIFICATE" || err != nil {
			continue
		}
		reason, _ := notCA(cert) // as in judge: without it, what was taken for its name would come back as a CA
		all = append(all, Anchor{Cert: cert, Fingerprint: Fingerprint(cert), Leaf: reason != "", Source: source})
	}
}
