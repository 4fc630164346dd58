package lab

import (
	"strings"
	"testing"
)

// TestRHEL proves that the daemons of an emulated RHEL trust what its own tool
// puts into its own store, once they have to read it, and nothing else.
func TestRHEL(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	ca := newCA(t, "root")
	r := addRegistry(t, l, registryName, serverCert(t, ca, registryName))
	ref := push(t, r, "team/app:1")
	b := bootDocker(t, l, RHEL())
	count := func() int {
		return strings.Count(runInBox(t, b, "cat", "/etc/pki/tls/certs/ca-bundle.crt"), "-----BEGIN CERTIFICATE-----")
	}
	public := count()
	if public < 100 {
		t.Errorf("the distribution has %d anchors", public)
	}
	const unknown = "x509: certificate signed by unknown authority"
	if err := b.CRIPull(t.Context(), ref); err == nil || !strings.Contains(err.Error(), unknown) {
		t.Errorf("without the CA: %v", err)
	}
	if err := writeFile(b.Root(), "etc/pki/ca-trust/source/anchors/lab.pem", string(ca.PEM()), 0o644); err != nil {
		t.Fatal(err)
	}
	runInBox(t, b, "update-ca-trust", "extract")
	if got := count(); got != public+1 {
		t.Errorf("%d anchors, want %d", got, public+1)
	}
	if err := b.Pull(t.Context(), ref); err != nil {
		t.Errorf("docker, which had asked nobody before: %v", err)
	}
	if err := b.CRIPull(t.Context(), ref); err == nil || !strings.Contains(err.Error(), unknown) {
		t.Errorf("containerd, which had: %v", err)
	}
	runInBox(t, b, "systemctl", "restart", "containerd.service")
	if err := b.CRIPull(t.Context(), ref); err != nil {
		t.Errorf("containerd after a restart: %v", err)
	}
	for _, gone := range []string{"/usr/sbin/update-ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "/usr/local/share/ca-certificates"} {
		if _, err := b.Run(t.Context(), "test", "!", "-e", gone); err != nil {
			t.Errorf("%s is there: %v", gone, err)
		}
	}
	if _, err := b.Run(t.Context(), "update-ca-trust", "nonsense"); err == nil {
		t.Error("update-ca-trust takes anything")
	}
}
