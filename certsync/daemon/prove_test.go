package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// handshakes listens with a certificate, and fails the test when anything is sent
// over a connection.
func handshakes(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if n, _ := conn.Read(make([]byte, 1)); n > 0 {
				t.Error("something was sent")
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

func TestProves(t *testing.T) {
	right, twin := newCA(t, "root"), newCA(t, "root")
	cert, err := right.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := right.Server("other.test")
	if err != nil {
		t.Fatal(err)
	}
	expired := newCA(t, "leaf", lab.Leaf("127.0.0.1"), lab.Expired)
	pool := func(list ...*lab.CA) *x509.CertPool {
		roots := x509.NewCertPool()
		for _, ca := range list {
			roots.AddCert(ca.Cert)
		}
		return roots
	}
	for _, tc := range []struct {
		name     string
		registry string
		roots    *x509.CertPool
		want     Verdict
	}{
		{"the right CA", handshakes(t, cert), pool(right), Trusted},
		{"among others", handshakes(t, cert), pool(twin, right), Trusted},
		{"none", handshakes(t, cert), pool(), Untrusted},
		{"one of the same subject", handshakes(t, cert), pool(twin), Untrusted},
		{"another name", handshakes(t, other), pool(right), Unclear},
		{"expired", handshakes(t, expired.SelfSigned()), pool(expired), Unclear},
		{"closed", "127.0.0.1:1", pool(right), Unclear}, // which nobody who wants any port gets
		{"no roots given", handshakes(t, cert), nil, Unclear},
	} {
		if got := Proves(t.Context(), tc.registry, tc.roots); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestHostPort(t *testing.T) {
	for registry, want := range map[string][2]string{
		"reg.test:5000": {"reg.test", "reg.test:5000"},
		"reg.test":      {"reg.test", "reg.test:443"},
		"10.0.0.1":      {"10.0.0.1", "10.0.0.1:443"},
		"[fd00::1]:50":  {"fd00::1", "[fd00::1]:50"},
		"[fd00::1]":     {"fd00::1", "[fd00::1]:443"},
	} {
		if name, address := hostPort(registry); name != want[0] || address != want[1] {
			t.Errorf("%s: %s, %s", registry, name, address)
		}
	}
}

// A root that was renewed with the same key: who has loaded the old one says that
// a certificate has expired, and who loads both says nothing. That is what
// staleRoot rests on.
func TestExpiredRoot(t *testing.T) {
	old := newCA(t, "root", lab.Expired)
	cert, err := old.Server("reg.test")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(old.Cert)
	_, err = cert.Leaf.Verify(x509.VerifyOptions{DNSName: "reg.test", Roots: roots})
	if err == nil || Judge(`Get "https://reg.test/v2/": `+err.Error()) != Unclear {
		t.Fatalf("with the old root: %v", err)
	}
	c := dockerCase()
	c.Answers = []Answer{{Registry: "reg.test", Verdict: Unclear, Text: err.Error()}}
	c.Own = map[string]Verdict{"reg.test": Trusted}
	if d := Decide(c); d.Action != Restart {
		t.Errorf("%s %s with %v", d.Action, d.Reason, err)
	}
}
