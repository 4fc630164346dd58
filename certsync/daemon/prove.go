package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"
)

// proveTime is how long our own handshake may take.
const proveTime = 3 * time.Second

// Proves shakes hands with a registry (host:port, or host for 443) and tells
// whether these roots lead to its certificate. Those of the node's bundle are
// what a restarted daemon would load: when they do not, no restart can help. It
// sends no request. A registry that cannot be reached from here, or whose certificate is
// wrong in another way, is Unclear: then the daemon's word counts alone. The
// daemon's proxy and its certs.d are not known here.
func Proves(ctx context.Context, registry string, roots *x509.CertPool) Verdict {
	name, address := hostPort(registry)
	if roots == nil { // crypto/tls would take our own system's
		return Unclear
	}
	ctx, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: name}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close() // all is known
		return Trusted
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return Untrusted
	}
	return Unclear
}

// hostPort gives the name that the certificate must have, and where to dial.
func hostPort(registry string) (name, address string) {
	name, _, err := net.SplitHostPort(registry)
	if err == nil {
		return name, registry
	}
	name = strings.Trim(registry, "[]")
	return name, net.JoinHostPort(name, "443")
}
