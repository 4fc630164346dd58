//go:build e2e

package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kubeSecret proves that a mounted secret follows the secret within seconds.
func kubeSecret(t *testing.T, b *Box, k *Kubernetes) {
	t.Helper()
	apply(t, k, `
apiVersion: v1
kind: Secret
metadata: {name: ca}
stringData: {ca.crt: one}
---
apiVersion: v1
kind: Pod
metadata: {name: mounted}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: "`+ResolversImage+`"
    imagePullPolicy: Never
    volumeMounts:
    - {name: ca, mountPath: /etc/ca}
  volumes:
  - name: ca
    secret: {secretName: ca, optional: true}
`, "pod/mounted")
	uid := kubectl(t, k, "get", "pod/mounted", "--output=jsonpath={.metadata.uid}")
	// The pod has the same mount, and no program to read it with.
	file := filepath.Join(b.Root(), "var/lib/kubelet/pods", uid, "volumes/kubernetes.io~secret/ca/ca.crt")
	content := func() string {
		got, err := os.ReadFile(file)
		if err := ignoreMissing(err); err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := content(); got != "one" {
		t.Errorf("the secret is mounted as %q", got)
	}
	kubectl(t, k, "patch", "secret/ca", "--patch", `{"stringData": {"ca.crt": "two"}}`)
	start := time.Now()
	waitFor(t, "the new secret", func() bool { return content() == "two" })
	t.Logf("the secret was updated after %v", time.Since(start).Round(100*time.Millisecond))
	kubectl(t, k, "delete", "secret/ca")
	waitFor(t, "the secret to go", func() bool { return content() == "" })
}

// kubePull proves that kubelet's pull from a registry with a private CA fails with
// x509, and that it works without anybody's doing once containerd knows the CA.
func kubePull(t *testing.T, b *Box, k *Kubernetes, ca *CA, registry *Registry, image string) {
	t.Helper()
	if err := k.Apply(t.Context(), `
apiVersion: v1
kind: Pod
metadata: {name: private}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: app, image: "`+image+`", imagePullPolicy: IfNotPresent}
`); err != nil {
		t.Fatal(err)
	}
	const x509 = "x509: certificate signed by unknown authority"
	waitFor(t, "the pull to fail", func() bool {
		return strings.Contains(kubectl(t, k, "describe", "pod/private"), x509)
	})
	if err := writeFile(b.Root(), "etc/containerd/certs.d/"+registry.Host+"/ca.crt", string(ca.PEM()), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := k.WaitReady(ctx, "", "pod/private"); err != nil {
		t.Error(err)
	}
}

// kubeErrors proves that what fails says why, and that waiting in vain shows the
// state of the cluster.
func kubeErrors(t *testing.T, k *Kubernetes) {
	t.Helper()
	if out, err := k.Kubectl(t.Context(), "get", "pod/none"); err == nil || !strings.Contains(err.Error(), `pods "none" not found`) {
		t.Errorf("a pod that is not there: %q, %v", out, err)
	}
	if err := k.Apply(t.Context(), "kind: Nonsense\napiVersion: v1\nmetadata: {name: x}\n"); err == nil || !strings.Contains(err.Error(), `no matches for kind "Nonsense"`) {
		t.Errorf("a manifest of no kind: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := k.WaitReady(ctx, "kube-system", "pod/none")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for pod/none: ") || !strings.Contains(err.Error(), "deployment.apps/coredns") {
		t.Errorf("waiting in vain: %v", err)
	}
	if _, err := k.Resolve(t.Context(), "default", "none", "", MuslStatic, 1, "kubernetes"); err == nil || !strings.Contains(err.Error(), "in pod default/none: ") {
		t.Errorf("in a pod that is not there: %v", err)
	}
}
