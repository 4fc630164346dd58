package place

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

// TestCertsOnNode proves on a real dockerd and containerd what plans take for
// granted: which files and directories they read, and what makes them refuse.
func TestCertsOnNode(t *testing.T) {
	l := lab.ForTest(t)
	ca, err := lab.NewCA("root")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Server("registry.example.test")
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.AddRegistry("registry.example.test", cert)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push(t.Context(), "team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Boot(t.Context(), lab.BoxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, err := host.Open(b.Root())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	anchors := []anchor.Anchor{{Cert: ca.Cert, Fingerprint: anchor.Fingerprint(ca.Cert)}}
	const (
		x509    = "x509: certificate signed by unknown authority"
		unread  = "no such file or directory"
		caFile  = "the/ca.pem"
		hosts   = "registry.example.test:5000/hosts.toml"
		portDir = "registry.example.test_5000_/"
	)
	for _, tt := range []struct {
		name, runtime string
		files         map[string]string // in certs.d
		without, with string            // what the daemon says without our file, and with it; empty: it pulls
		reason        string            // of the problem in the plan
	}{
		{"alone", "docker", nil, x509, "", ""},
		{"junk", "docker", map[string]string{"registry.example.test:5000/x.crt": "junk"}, x509, "", ""},
		{"theirs", "docker", map[string]string{"registry.example.test:5000/x.crt": string(ca.PEM())}, "", "", ""},
		{"a link to nothing", "docker", map[string]string{"registry.example.test:5000/x.crt": "->nothing"}, unread, unread, "foreign_unreadable"},
		{"no key", "docker", map[string]string{"registry.example.test:5000/x.cert": "junk"}, "missing key", "missing key", "foreign_client_key_missing"},
		{"_port_", "docker", map[string]string{portDir: ""}, x509, "", ""},

		{"alone", "containerd", nil, x509, "", ""},
		{"junk", "containerd", map[string]string{"registry.example.test:5000/x.crt": "junk"}, "unable to load CA cert", "unable to load CA cert", "foreign_no_certificate"},
		{"theirs", "containerd", map[string]string{"registry.example.test:5000/x.crt": string(ca.PEM())}, "", "", ""},
		{"a link to nothing", "containerd", map[string]string{"registry.example.test:5000/x.crt": "->nothing"}, unread, unread, "foreign_unreadable"},
		{"hosts.toml", "containerd", map[string]string{hosts: "server = \"https://registry.example.test:5000\"\n[host]\n"}, x509, x509, "foreign_hosts_toml"},
		{"hosts.toml switches theirs off", "containerd", map[string]string{hosts: "server = \"https://registry.example.test:5000\"\n[host]\n",
			"registry.example.test:5000/x.crt": string(ca.PEM())}, x509, x509, "foreign_hosts_toml"},
		{"hosts.toml names ours", "containerd", map[string]string{hosts: "server = \"https://registry.example.test:5000\"\nca = \"nodestead.crt\"\n[host]\n"}, unread, "", ""},
		{"hosts.toml names theirs", "containerd", map[string]string{hosts: "ca = \"../" + caFile + "\"\n[host]\n", caFile: string(ca.PEM())}, "", "", ""},
		// As containerd 1.6 has it.
		{"hosts.toml without hosts", "containerd", map[string]string{hosts: "server = \"https://registry.example.test:5000\"\n"}, x509, "", "ambiguous_hosts_toml"},
		{"hosts.toml without hosts names theirs", "containerd", map[string]string{hosts: "ca = \"../" + caFile + "\"\n", caFile: string(ca.PEM())},
			x509, "", "ambiguous_hosts_toml"},
		{"an empty hosts.toml", "containerd", map[string]string{hosts: ""}, x509, "", ""},
		{"a broken hosts.toml", "containerd", map[string]string{hosts: "ca = ["}, x509, "", "broken_hosts_toml"},
		{"_port_", "containerd", map[string]string{portDir: ""}, x509, "", ""},
		{"a default", "containerd", map[string]string{"_default/hosts.toml": "ca = \"../" + caFile + "\"\n[host]\n", caFile: string(ca.PEM())}, "", "", ""},
		{"a default without it", "containerd", map[string]string{"_default/hosts.toml": "[host]\n"}, x509, x509, "would_be_hidden"},
	} {
		t.Run(tt.runtime+" "+tt.name, func(t *testing.T) {
			dir := filepath.Join("/etc", tt.runtime, "certs.d")
			files := map[string]string{dir + "/": ""}
			for name, content := range tt.files {
				files[dir+"/"+name] = content
			}
			put(t, b.Root(), files)
			defer func() {
				if err := os.RemoveAll(filepath.Join(b.Root(), dir)); err != nil {
					t.Fatal(err)
				}
			}()
			pull := map[string]func(context.Context, string) error{"docker": b.Pull, "containerd": b.CRIPull}[tt.runtime]
			check := func(when, want string) {
				t.Helper()
				err := pull(t.Context(), ref)
				if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s our file it says: %v", when, err)
				}
			}
			check("without", tt.without)
			c := NewCerts(h, tt.runtime, dir, "registry.example.test:5000")
			p, _ := c.Plan(anchors)
			err := c.Apply(t.Context(), p, anchors)
			if blocked := p.Blocked() != ""; (err != nil) != blocked {
				t.Errorf("blocked: %v; to apply it gives %v", blocked, err)
			}
			if tt.reason == "" && len(p.Problems) > 0 || tt.reason != "" && !slices.Contains(reasons(p), tt.reason) {
				t.Errorf("problems: %+v", p.Problems)
			}
			check("with", tt.with)
		})
	}
	// What a default loses by a directory of the registry's own.
	put(t, b.Root(), map[string]string{
		"etc/containerd/certs.d/_default/hosts.toml": "ca = \"../ca.pem\"\n[host]\n", "etc/containerd/certs.d/ca.pem": string(ca.PEM()),
		"etc/containerd/certs.d/registry.example.test:5000/": "",
	})
	if err := b.CRIPull(t.Context(), ref); err == nil || !strings.Contains(err.Error(), x509) {
		t.Errorf("beside an empty directory of the registry, the default still counts: %v", err)
	}
}
