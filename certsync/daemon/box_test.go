package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

// The registries have ports of this address, which is no loopback one: those
// docker takes for insecure.
const serverAddr = "172.18.0.3"

// node is a box with the registries that its daemons are asked about.
type node struct {
	*lab.Box
	host *host.Host
	sd   *host.Systemd
	// trusted is in the box's bundle, stranger is not, and twin has the
	// subject of trusted and another key.
	trusted, stranger, twin *lab.CA
	lab                     *lab.Lab
}

// newCA makes a CA.
func newCA(t *testing.T, name string, options ...lab.CAOption) *lab.CA {
	t.Helper()
	ca, err := lab.NewCA(name, options...)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// bootNode boots a box whose bundle has only the trusted CA and the further
// ones, with these files.
func bootNode(t *testing.T, files map[string]string, more ...*lab.CA) *node {
	t.Helper()
	n := &node{lab: lab.ForTest(t), trusted: newCA(t, "root"), stranger: newCA(t, "stranger"), twin: newCA(t, "root")}
	var bundle strings.Builder
	bundle.WriteString(string(n.trusted.PEM()))
	for _, ca := range more {
		bundle.WriteString(string(ca.PEM()))
	}
	all := map[string]string{
		"etc/ssl/certs/ca-certificates.crt": bundle.String(),
		"etc/hosts":                         "127.0.0.1 localhost\n172.18.0.2 node\n" + serverAddr + " registry.test\n",
		"etc/resolv.conf":                   "nameserver " + serverAddr + "\n",
	}
	maps.Copy(all, files)
	b, err := n.lab.Boot(t.Context(), lab.BoxConfig{Files: all})
	if err != nil {
		t.Fatal(err)
	}
	n.Box = b
	if n.host, err = host.Open(b.Root()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.host.Close(); err != nil {
			t.Error(err)
		}
	})
	if n.sd, err = n.host.Systemd(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.sd.Close)
	return n
}

// run runs a command in the box.
func (n *node) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// listen listens on a port of the servers' address, 0 for any.
func (n *node) listen(t *testing.T, port int) net.Listener {
	t.Helper()
	var l net.Listener
	err := n.lab.Remote().Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("%s:%d", serverAddr, port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve serves HTTP, or HTTPS with a certificate, and returns the port.
func (n *node) serve(t *testing.T, port int, cert *tls.Certificate, handler http.HandlerFunc) int {
	t.Helper()
	l := n.listen(t, port)
	ctx, cancel := context.WithCancel(context.Background()) // of the test that has ended, for those who hang
	s := &http.Server{
		Handler:     handler,
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		var err error
		if cert != nil {
			s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}}
			err = s.ServeTLS(l, "", "")
		} else {
			err = s.Serve(l)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// registry serves a registry whose certificate is that CA's.
func (n *node) registry(t *testing.T, ca *lab.CA, handler http.HandlerFunc) int {
	t.Helper()
	cert, err := ca.Server(serverAddr, "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	return n.serve(t, 0, &cert, handler)
}

// serveDNS answers all questions with NXDOMAIN, and those for servfail.test
// with SERVFAIL.
func (n *node) serveDNS(t *testing.T) {
	t.Helper()
	var conn net.PacketConn
	err := n.lab.Remote().Do(func() (err error) {
		conn, err = net.ListenPacket("udp", serverAddr+":53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		rcode := dns.RcodeNameError
		if strings.HasPrefix(q.Question[0].Name, "servfail.") {
			rcode = dns.RcodeServerFailure
		}
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode))
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.ActivateAndServe() })
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
}

// at is the registry of a port.
func at(port int) string { return fmt.Sprintf("%s:%d", serverAddr, port) }

func answers(code int, header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		if name, value, ok := strings.Cut(header, ": "); ok {
			w.Header().Set(name, value)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func hangs(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

const proxyDropIn = "[Service]\nEnvironment=HTTPS_PROXY=http://" + serverAddr + ":3128\nEnvironment=NO_PROXY=" + serverAddr +
	",registry.test,nosuch.test,servfail.test\n"

// What the real daemons say, in all the cases, and what it is taken for.
func TestBoxAsk(t *testing.T) {
	t.Parallel()
	old := newCA(t, "leaf", lab.Leaf(serverAddr), lab.Expired)
	n := bootNode(t, map[string]string{
		"etc/systemd/system/docker.service.d/proxy.conf":     proxyDropIn,
		"etc/systemd/system/containerd.service.d/proxy.conf": proxyDropIn,
	}, old)
	n.serveDNS(t)
	if err := n.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	stranger := n.registry(t, n.stranger, answers(404, "", ""))
	other, err := n.trusted.Server("other.test")
	if err != nil {
		t.Fatal(err)
	}
	expiredCert := old.SelfSigned()
	silent := n.listen(t, 0)                 // takes connections and says nothing
	t.Cleanup(func() { _ = silent.Close() }) // a defer would be before the parallel ones
	token := n.registry(t, n.trusted, answers(401, "", `{"details":"incorrect username or password"}`))
	n.serve(t, 3128, nil, func(w http.ResponseWriter, r *http.Request) {
		code := map[string]int{"forbidden": 403, "missing": 404, "password": 407}[strings.Split(r.Host, ".")[0]]
		if code == 0 {
			code = 503
		}
		w.WriteHeader(code)
	})
	const manifestUnknown = `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"latest"}}]}`
	trusted := func(code int, header, body string) string {
		return at(n.registry(t, n.trusted, answers(code, header, body)))
	}
	for name, tc := range map[string]struct {
		registry string
		want     Verdict
	}{
		"unknown authority":              {at(stranger), Untrusted},
		"a CA of the same subject":       {at(n.registry(t, n.twin, answers(404, "", ""))), Untrusted},
		"certificate for another name":   {at(n.serve(t, 0, &other, answers(404, "", ""))), Unclear},
		"certificate for another domain": {fmt.Sprintf("registry.test:%d", n.serve(t, 0, &other, answers(404, "", ""))), Unclear},
		"expired":                        {at(n.serve(t, 0, &expiredCert, answers(404, "", ""))), Unclear},
		"404":                            {trusted(404, "", "404 page not found"), Trusted},
		"404 by name":                    {fmt.Sprintf("registry.test:%d", n.registry(t, n.trusted, answers(404, "", ""))), Trusted},
		"404 of a registry":              {trusted(404, "Content-Type: application/json", manifestUnknown), Trusted},
		"401 for a password":             {trusted(401, `WWW-Authenticate: Basic realm="x"`, ""), Trusted},
		"401 without a challenge":        {trusted(401, "", ""), Trusted},
		"401 of the token server":        {trusted(401, fmt.Sprintf(`WWW-Authenticate: Bearer realm="https://%s/token",service="s"`, at(token)), ""), Trusted},
		"token server of a stranger":     {trusted(401, fmt.Sprintf(`WWW-Authenticate: Bearer realm="https://%s/token",service="s"`, at(stranger)), ""), Untrusted},
		"403":                            {trusted(403, "", ""), Trusted},
		"403 of a registry":              {trusted(403, "Content-Type: application/json", `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`), Trusted},
		"429":                            {trusted(429, "", ""), Unclear},
		"500":                            {trusted(500, "", ""), Unclear},
		"500 that says 404 Not Found":    {trusted(500, "", "404 Not Found: manifest unknown"), Unclear},
		"503":                            {trusted(503, "", "<html>Service Unavailable</html>"), Unclear},
		"redirect to a stranger":         {trusted(307, "Location: https://"+at(stranger)+"/v2/", ""), Untrusted},
		"closed port":                    {at(1), Unclear}, // which nobody who wants any port gets
		"no such host":                   {"nosuch.test:5000", Unclear},
		"broken DNS":                     {"servfail.test:5000", Unclear},
		"plain HTTP":                     {at(n.serve(t, 0, nil, answers(404, "", ""))), Unclear},
		"hangs after the handshake":      {at(n.registry(t, n.trusted, hangs)), Unclear},
		"hangs before the handshake":     {at(silent.Addr().(*net.TCPAddr).Port), Unclear},
		"proxy that forbids":             {"forbidden.proxied.test:443", Unclear},
		"proxy that finds nothing":       {"missing.proxied.test:443", Unclear},
		"proxy that wants a password":    {"password.proxied.test:443", Unclear},
		"proxy that has a broken uplink": {"broken.proxied.test:443", Unclear},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var both sync.WaitGroup // ten seconds where it hangs
			for _, d := range []Name{Docker, Containerd} {
				both.Go(func() {
					got := Ask(t.Context(), n.host, d, tc.registry)
					t.Logf("%s: %s: %s", d, got.Verdict, got.Text)
					if got.Verdict != tc.want {
						t.Errorf("%s: %s, want %s: %s", d, got.Verdict, tc.want, got.Text)
					}
				})
			}
			both.Wait()
		})
	}
}
