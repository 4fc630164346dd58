package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
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
	name, _, err := net.SplitHostPort(registry)
	if err != nil {
		name, registry = registry, net.JoinHostPort(registry, "443")
	}
	if roots == nil { // crypto/tls would take our own system's
		return Unclear
	}
	ctx, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: name}}
	conn, err := dialer.DialContext(ctx, "tcp", registry)
	if err == nil {
		_ = conn.Close() // all is known
		return Trusted
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return Untrusted
	}
	return Unclear
}
