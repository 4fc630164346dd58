package lab

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const registryName = "registry.example.test"

func addRegistry(t *testing.T, l *Lab, name string, cert tls.Certificate) *Registry {
	t.Helper()
	r, err := l.AddRegistry(name, cert)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func push(t *testing.T, r *Registry, name string) string {
	t.Helper()
	ref, err := r.Push(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestRegistry proves that a registry does what it is told at once, and counts
// what it is asked.
func TestRegistry(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	ca, other := newCA(t, "root"), newCA(t, "root")
	cert := serverCert(t, ca, registryName)
	r := addRegistry(t, l, registryName, cert)
	if got, want := push(t, r, "team/app:1"), registryName+":5000/team/app:1"; got != want {
		t.Errorf("pushed %s, want %s", got, want)
	}
	if _, err := r.Push(t.Context(), "untagged"); err == nil {
		t.Error("an image without a tag was pushed")
	}
	second := addRegistry(t, l, "second.example.test", cert)

	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	// Connections are kept if the registry keeps them.
	transport := &http.Transport{
		DialContext:       l.Node().DialContext,
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: registryName},
		ForceAttemptHTTP2: true,
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	t.Cleanup(client.CloseIdleConnections)
	get := func(path string) (int, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.Addr4.String()+":5000"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", manifestType)
		answer, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		if answer.ProtoMajor != 1 {
			t.Errorf("it speaks %s, whose connections have many requests", answer.Proto)
		}
		_, err = io.Copy(io.Discard, answer.Body) // else the client itself closes the connection
		return answer.StatusCode, errors.Join(err, answer.Body.Close())
	}
	const manifest = "/v2/team/app/manifests/1"
	unknown := new(x509.UnknownAuthorityError)
	// Its socket, as a child has it that is just being started.
	held, err := r.listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for _, step := range []struct {
		name        string
		do          func() error
		path        string
		status      int
		err         func(error) bool
		connections int // in all
		requests    int
	}{
		{name: "as it is", path: manifest, status: http.StatusOK, connections: 1, requests: 1},
		{name: "no such image", path: "/v2/team/app/manifests/2", status: http.StatusNotFound, connections: 2, requests: 2},
		{
			name: "another certificate", do: func() error { r.Serve(serverCert(t, other, registryName)); return nil },
			path: manifest, err: func(err error) bool { return errors.As(err, unknown) }, connections: 3, requests: 2,
		},
		{name: "the first one again", do: func() error { r.Serve(cert); return nil }, path: manifest, status: http.StatusOK, connections: 4, requests: 3},
		{
			name: "failing", do: func() error { r.Fail(http.StatusBadGateway); return nil },
			path: manifest, status: http.StatusBadGateway, connections: 5, requests: 4,
		},
		{name: "no longer failing", do: func() error { r.Fail(0); return nil }, path: manifest, status: http.StatusOK, connections: 6, requests: 5},
		{
			name: "down", do: func() error { return errors.Join(r.Down(), r.Down()) },
			path: manifest, err: func(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }, connections: 6, requests: 5,
		},
		{name: "up", do: func() error { return errors.Join(r.Up(), r.Up()) }, path: manifest, status: http.StatusOK, connections: 7, requests: 6},
	} {
		if step.do != nil {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		status, err := get(step.path)
		if status != step.status || step.err == nil && err != nil || step.err != nil && !step.err(err) {
			t.Errorf("%s: status %d, want %d, error %v", step.name, status, step.status, err)
		}
		if r.Connections() != step.connections || r.Requests() != step.requests {
			t.Errorf("%s: %d connections and %d requests, want %d and %d", step.name, r.Connections(), r.Requests(), step.connections, step.requests)
		}
	}
	if second.Connections() != 0 || second.Addr4 == r.Addr4 {
		t.Errorf("the second registry (%v) was asked %d times", second.Addr4, second.Connections())
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
