package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodestead/nodestead/certsync/host"
)

// root makes a node's root with these files, and opens it.
func root(t *testing.T, files map[string]string) *host.Host {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return open(t, dir)
}

func open(t *testing.T, dir string) *host.Host {
	t.Helper()
	h, err := host.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Go reads the first of its files and all of its directories, and each variable
// takes the place of one of them only.
func TestOtherStore(t *testing.T) {
	for _, tc := range []struct {
		environ []string
		want    string
	}{
		{nil, ""},
		{[]string{"PATH=/bin", "LANG=C"}, ""},
		{[]string{"SSL_CERT_FILE=/x.pem"}, ""},
		{[]string{"SSL_CERT_DIR=/x"}, ""},
		{[]string{"SSL_CERT_FILE=", "SSL_CERT_DIR="}, ""},
		{[]string{"SSL_CERT_FILE=/x.pem", "SSL_CERT_DIR="}, ""},
		{[]string{"SSL_CERT_FILE=/x.pem", "A=b", "SSL_CERT_DIR=/x"}, "SSL_CERT_FILE=/x.pem SSL_CERT_DIR=/x"},
		{[]string{"SSL_CERT_FILE=/x.pem", "SSL_CERT_DIR=/x:/y"}, "SSL_CERT_FILE=/x.pem SSL_CERT_DIR=/x:/y"},
		{[]string{"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "SSL_CERT_DIR=/x"}, ""},
		{[]string{"SSL_CERT_FILE=/x.pem", "SSL_CERT_DIR=/x:/etc/ssl/certs/"}, ""},
		{[]string{"SSL_CERT_FILE=/link.pem", "SSL_CERT_DIR=/x"}, ""},
		{[]string{"XSSL_CERT_FILE=/x.pem", "SSL_CERT_DIR=/x"}, ""},
	} {
		h := root(t, map[string]string{
			"proc/7/environ":                    strings.Join(tc.environ, "\x00") + "\x00",
			"etc/ssl/certs/ca-certificates.crt": "",
			"x.pem":                             "",
			"x/a.pem":                           "",
		})
		if err := os.Symlink("/etc/ssl/certs/ca-certificates.crt", h.Socket("/link.pem")); err != nil {
			t.Fatal(err)
		}
		if got := otherStore(h, 7); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.environ, got, tc.want)
		}
	}
	h := root(t, map[string]string{"proc/0/environ": "SSL_CERT_FILE=/x\x00SSL_CERT_DIR=/x\x00"})
	for _, pid := range []int{0, -1, 8} {
		if got := otherStore(h, pid); got != "" {
			t.Errorf("pid %d, of which nothing can be read: %q", pid, got)
		}
	}
}

func FuzzCertVariables(f *testing.F) {
	f.Add("PATH=/bin\x00SSL_CERT_FILE=/x\x00SSL_CERT_DIR=/a:/b\x00")
	f.Add("")
	f.Add("\x00\x00=SSL_CERT_FILE=")
	f.Fuzz(func(t *testing.T, environ string) {
		file, dirs := certVariables(environ)
		if strings.Contains(file+dirs, "\x00") {
			t.Errorf("%q, %q", file, dirs)
		}
		if file != "" && !strings.Contains(environ, "SSL_CERT_FILE="+file) || dirs != "" && !strings.Contains(environ, "SSL_CERT_DIR="+dirs) {
			t.Errorf("%q, %q", file, dirs)
		}
	})
}
