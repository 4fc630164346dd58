package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/internal/lab"
)

// Passwords as htpasswd -nbB -C 4 hashes them.
const (
	hashOfSecret = "$2a$04$rxdfv2AfOZJ2YSRHlFrRuOiUOOsNOP9cEyax9SjsbCXd3hgl.35CC"
	hashOfOther  = "$2a$04$s4eoZL1/OExl/UOzu56.G.Vm.6bK9w75x.3quLU6qGJJD9x.aMiMm"
)

// The sections of a web configuration.
const (
	withTLS   = "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n"
	withUsers = "basic_auth_users: {prometheus: " + hashOfSecret + "}\n"
)

// webFiles is a directory with a web configuration, and a certificate that it may
// name.
func webFiles(t *testing.T, config string) (file string, ca *lab.CA) {
	t.Helper()
	ca, err := lab.NewCA("web")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	newServerFiles(t, dir, ca)
	file = filepath.Join(dir, "web.yml")
	put(t, file, config)
	return file, ca
}

// newServerFiles puts a new certificate and its key there.
func newServerFiles(t *testing.T, dir string, ca *lab.CA) {
	t.Helper()
	server, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "tls.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]})))
	put(t, filepath.Join(dir, "tls.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startWeb runs an agent with a web configuration.
func startWeb(t *testing.T, file string, logs *logs) (r *running, address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	fake := newFakeSensor()
	r = &running{sensor: fake, logs: logs, cancel: cancel, result: make(chan error, 1)}
	cfg := Default()
	cfg.HTTP.Watch, cfg.HTTP.WebConfig = "127.0.0.1:0", WebConfig(file)
	go func() {
		r.result <- watch(ctx, cfg, NewLogger(logs, cfg.Log), Version{"v1", "abc", "go1"}, bound(&address), fake.rim())
	}()
	select {
	case <-fake.running:
	case err := <-r.result:
		t.Fatal(err)
	}
	return r, address
}

// ask gets a page, with a password unless it is empty.
func ask(t *testing.T, ca *lab.CA, method, url, password string) (status int, body string, err error) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	client := http.Client{Transport: transport, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if password != "" {
		request.SetBasicAuth("prometheus", password)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text), nil
}

func TestWebConfig(t *testing.T) {
	const open, closed = http.StatusOK, http.StatusUnauthorized
	for _, tt := range []struct {
		name, config, scheme string
		without, wrong       int // status without a password, and with a wrong one
	}{
		{"nothing", "", "http", open, open},
		{"TLS", withTLS, "https", open, open},
		{"TLS, HTTP/1.1 alone", withTLS + "http_server_config: {http2: false}\n", "https", open, open},
		{"password", withUsers, "http", closed, closed},
		{"both", withTLS + withUsers, "https", closed, closed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file, ca := webFiles(t, tt.config)
			logs := &logs{}
			r, address := startWeb(t, file, logs)
			check := func(method, path, password string, want int) string {
				t.Helper()
				status, body, err := ask(t, ca, method, tt.scheme+"://"+address+path, password)
				if err != nil || status != want {
					t.Errorf("%s %s with the password %q gives %d and the error %v, want %d", method, path, password, status, err, want)
				}
				return body
			}
			for _, path := range []string{"/", "/metrics", "/api/v1/incidents"} {
				check(http.MethodGet, path, "", tt.without)
				check(http.MethodGet, path, "wrong", tt.wrong)
				check(http.MethodGet, path, "secret", open)
			}
			for _, path := range []string{"/healthz", "/readyz"} {
				if body := check(http.MethodGet, path, "", open); body != "ok\n" {
					t.Errorf("%s gives %q", path, body)
				}
			}
			// Only exactly these two, and only to read.
			for _, path := range []string{"/healthz/", "/healthz/x", "/readyz?/", "/%2e%2e/metrics"} {
				want := closed
				switch {
				case strings.HasPrefix(path, "/readyz?"):
					want = open
				case tt.without == open:
					want = http.StatusNotFound
				}
				check(http.MethodGet, path, "", want)
			}
			if tt.without == closed {
				check(http.MethodPost, "/healthz", "", closed)
			}
			page := check(http.MethodGet, "/", "secret", open)
			if has := strings.Contains(page, "the certificate of this page ends in 23 hours"); has != (tt.scheme == "https") {
				t.Errorf("the page tells of its certificate: %v", has)
			}
			if tt.scheme == "https" {
				// A client that does not speak TLS gets no page.
				if status, _, err := ask(t, ca, http.MethodGet, "http://"+address+"/metrics", "secret"); err == nil && status != http.StatusBadRequest {
					t.Errorf("without TLS /metrics gives %d", status)
				}
			}
			r.cancel()
			if err := <-r.result; err != nil {
				t.Errorf("run gives %v", err)
			}
			if log := logs.String(); strings.Contains(log, "handshake") || strings.Contains(log, "level=ERROR") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
}

// TestWebConfigIsReadAgain: a renewed certificate and a changed password hold
// without a restart, and so does a file that has become bad.
func TestWebConfigIsReadAgain(t *testing.T) {
	file, ca := webFiles(t, withTLS+withUsers)
	logs := &logs{}
	r, address := startWeb(t, file, logs)
	expect := func(ca *lab.CA, password string, want int) {
		t.Helper()
		if status, _, err := ask(t, ca, http.MethodGet, "https://"+address+"/metrics", password); err != nil || status != want {
			t.Errorf("/metrics with %q gives %d and the error %v, want %d", password, status, err, want)
		}
	}
	expect(ca, "secret", http.StatusOK)

	other, err := lab.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	newServerFiles(t, filepath.Dir(file), other)
	expect(other, "secret", http.StatusOK)
	if _, _, err := ask(t, ca, http.MethodGet, "https://"+address+"/metrics", "secret"); err == nil {
		t.Error("the old certificate is still served")
	}

	put(t, file, withTLS+"basic_auth_users: {prometheus: "+hashOfOther+"}\n")
	expect(other, "secret", http.StatusUnauthorized)
	expect(other, "other", http.StatusOK)

	// A file that cannot be read any more opens nothing.
	put(t, file, "rubbish")
	if _, _, err := ask(t, other, http.MethodGet, "https://"+address+"/metrics", "other"); err == nil {
		t.Error("with a bad file /metrics is served")
	}
	r.cancel()
	if err := <-r.result; err != nil {
		t.Errorf("run gives %v", err)
	}
}

// TestWebConfigAtTheStop: the end of HTTP comes last with TLS as well, and is not
// held up by a client that keeps its connection.
func TestWebConfigAtTheStop(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	logs := &logs{gate: func(line string) {
		if strings.Contains(line, "dns lookup lost") {
			close(reached)
			<-release
		}
	}}
	file, ca := webFiles(t, withTLS+withUsers)
	r, address := startWeb(t, file, logs)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	idle, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()

	r.sensor.emit(orphan())
	<-reached
	r.cancel()
	status, body, err := ask(t, ca, http.MethodGet, "https://"+address+"/metrics", "secret")
	const last = `nodestead_dns_lookup_timeouts_total{cause="orphaned_answer",namespace="",pod="",resolver=""} 1` + "\n"
	if err != nil || status != http.StatusOK || !strings.Contains(body, last) {
		t.Errorf("at the stop /metrics gives %d and the error %v, or not the last counts", status, err)
	}
	began := time.Now()
	close(release)
	if err := <-r.result; err != nil {
		t.Errorf("run gives %v", err)
	}
	if took := time.Since(began); took > stopWithin {
		t.Errorf("the stop took %v", took)
	}
}

func TestBadWebConfig(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"unknown key", "tls: {}\n", "DIR/web.yml): yaml: unmarshal errors: line 1: field tls not found in type web.Config"},
		{"no YAML", "\t{", "DIR/web.yml): yaml: found character that cannot start any token"},
		{"no key", "tls_server_config: {cert_file: tls.crt}\n", "DIR/web.yml): missing one of key or key_file"},
		{"no file of the key", "tls_server_config: {cert_file: tls.crt, key_file: none}\n", "DIR/web.yml): failed to read key_file (DIR/none): open DIR/none: no such file or directory"},
		{"no file of the certificate", "tls_server_config: {cert_file: none, key_file: tls.key}\n", "DIR/web.yml): failed to read cert_file (DIR/none): open DIR/none: no such file or directory"},
		{"key of another", "tls_server_config: {cert_file: tls.crt, key_file: web.yml}\n", "DIR/web.yml): failed to load X509KeyPair: tls: failed to find any PEM data in key input"},
		{"password in plain text", "basic_auth_users: {prometheus: secret}\n", "DIR/web.yml): crypto/bcrypt: hashedSecret too short to be a bcrypted password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file, _ := webFiles(t, tt.config)
			badWeb(t, file, "http.web_config ("+strings.ReplaceAll(tt.want, "DIR", filepath.Dir(file)))
		})
	}
	missing := filepath.Join(t.TempDir(), "none.yml")
	badWeb(t, missing, "http.web_config ("+missing+"): open "+missing+": no such file or directory")
}

// badWeb: the agent ends with this one problem before it has opened anything.
func badWeb(t *testing.T, file, want string) {
	t.Helper()
	cfg := Default()
	cfg.HTTP.Watch, cfg.HTTP.WebConfig = "127.0.0.1:0", WebConfig(file)
	pipes := newPipes()
	err := watch(t.Context(), cfg, slog.New(slog.DiscardHandler), Version{}, pipes.listen, rim{
		conntrack: func(conntrack.Config) (sensor, error) {
			t.Error("the sensor was opened")
			return nil, errors.New("not here")
		},
	})
	problems, ok := errors.AsType[Problems](err)
	if !ok || len(problems) != 1 {
		t.Fatalf("run gives %v, want one problem", err)
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	select {
	case <-pipes.closed:
	default:
		t.Error("the listener was not closed")
	}
}

func TestServerLog(t *testing.T) {
	logs := &logs{}
	w := serverLog(NewLogger(logs, Default().Log))
	for _, line := range []string{"http: TLS handshake error from 192.0.2.1:1: EOF\n", "http: panic serving 192.0.2.1:1: no\n"} {
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, logs.take(), `level=WARN msg="http server" err="http: panic serving 192.0.2.1:1: no"`)
}

func TestWebConfigPath(t *testing.T) {
	for text, good := range map[string]bool{"": true, "/etc/nodestead/web.yml": true, "web.yml": false, "./web.yml": false, " ": false} {
		var w WebConfig
		if err := w.UnmarshalText([]byte(text)); (err == nil) != good || good && string(w) != text {
			t.Errorf("web config %q: %q and the error %v, want good: %v", text, w, err, good)
		}
	}
}
