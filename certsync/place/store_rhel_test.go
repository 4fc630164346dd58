package place

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// testRHEL makes the node look like one of Red Hat's. It is an emulation: the
// directories are theirs and p11-kit is the real one, but update-ca-trust is a
// script of ours which calls it as theirs does.
func testRHEL(t *testing.T, n *node) {
	const bundle = "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
	n.run(t, "sh", "-ec", `mkdir -p /etc/pki/ca-trust/source/anchors /etc/pki/ca-trust/extracted/pem /etc/pki/tls/certs /etc/pkcs11/modules /usr/share/pki/ca-trust-source/anchors
		ln -s /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /etc/pki/tls/certs/ca-bundle.crt
		sed "s|^x-init-reserved:.*|x-init-reserved: paths='/etc/pki/ca-trust/source:/usr/share/pki/ca-trust-source'|" /usr/share/p11-kit/modules/p11-kit-trust.module >/etc/pkcs11/modules/p11-kit-trust.module
		cp /etc/ssl/certs/ca-certificates.crt /usr/share/pki/ca-trust-source/anchors/dist.pem
		rm /etc/os-release`)
	put(t, n.Root(), map[string]string{
		"etc/os-release": "ID=rocky\nID_LIKE=\"rhel centos fedora\"\n",
		"usr/bin/update-ca-trust": `#!/bin/sh
set -eu
[ "$*" = extract ]
exec trust extract --overwrite --format=pem-bundle --filter=ca-anchors --purpose=server-auth --comment /` + bundle + "\n",
	})
	n.run(t, "chmod", "755", "/usr/bin/update-ca-trust")
	n.run(t, "update-ca-trust", "extract")
	read := func() map[string]int {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(n.Root(), bundle))
		if err != nil {
			t.Fatal(err)
		}
		certs, _ := anchor.Fingerprints(content)
		return certs
	}
	before := read()
	if len(before) < 10 {
		t.Fatalf("the emulation's bundle has %d certificates", len(before))
	}
	s := n.open(t)
	a, b := newAnchor(t, "a"), newAnchor(t, "b")
	theirs := newAnchor(t, "theirs")
	put(t, n.Root(), map[string]string{"etc/pki/ca-trust/source/anchors/theirs.der": string(theirs.Cert.Raw)})
	n.run(t, "update-ca-trust", "extract")
	for _, anchors := range [][]anchor.Anchor{sorted(a, theirs), sorted(a, b, theirs), {b}, nil} {
		p := n.plan(t, s, anchors)
		if want := []string{"/usr/bin/update-ca-trust", "extract"}; !slices.Equal(p.Tool, want) {
			t.Errorf("the tool is %v", p.Tool)
		}
		if err := s.Apply(t.Context(), p, anchors); err != nil {
			t.Fatal(err)
		}
		want := maps.Clone(before)
		want[theirs.Fingerprint] = 1
		for _, an := range anchors {
			want[an.Fingerprint] = 1
		}
		if diff := cmp.Diff(want, read()); diff != "" {
			t.Errorf("the bundle (-want +got):\n%s", diff)
		}
		for _, s := range []*Store{s, n.open(t)} {
			if p := n.plan(t, s, anchors); !p.Empty() {
				t.Errorf("there is still something to do: %+v", p)
			}
		}
	}
	n.run(t, "sh", "-c", ": >/"+bundle)
	if p := n.plan(t, s, nil); !p.Empty() {
		t.Errorf("with nothing of ours there, this is planned: %+v", p)
	}
}
