//go:build e2e

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// kubeTest boots a box and makes it the node of a cluster.
func kubeTest(t *testing.T, l *Lab, cfg KubernetesConfig) (*Box, *Kubernetes) {
	t.Helper()
	b := boot(t, l, BoxConfig{})
	start := time.Now()
	k, err := b.StartKubernetes(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Kubernetes with kube-proxy's %s after %v", cfg.ProxyMode, time.Since(start).Round(100*time.Millisecond))
	return b, k
}

func kubectl(t *testing.T, k *Kubernetes, args ...string) string {
	t.Helper()
	out, err := k.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func apply(t *testing.T, k *Kubernetes, manifests string, ready ...string) {
	t.Helper()
	if err := k.Apply(t.Context(), manifests); err != nil {
		t.Fatal(err)
	}
	if err := k.WaitReady(t.Context(), "", ready...); err != nil {
		t.Fatal(err)
	}
}

// runner is a pod with the programs of the resolvers.
const runner = `
apiVersion: v1
kind: Pod
metadata: {name: runner}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: job, image: "` + ResolversImage + `", imagePullPolicy: Never}
`

// TestKubernetes proves that a cluster is one: what it runs, resolves, mounts and
// pulls, it does as any cluster does, with nothing of it on the machine. How it
// translates, in both modes, and that helm installs there, is proven with the agent, in
// e2e.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	machine := tunables(t)
	ca := newCA(t, "root")
	registry := addRegistry(t, l, registryName, serverCert(t, ca, registryName))
	image := push(t, registry, "team/app:1")
	b, k := kubeTest(t, l, KubernetesConfig{ProxyMode: ProxyIPTables, DNS: "log"})
	inside := processesOf(t, b)

	if got := kubectl(t, k, "get", "nodes", "-o", `jsonpath={.items[*].metadata.name} {.items[0].status.nodeInfo.kubeletVersion}`); got != "node v1.34.2" {
		t.Errorf("the nodes are %s", got)
	}
	apply(t, k, runner, "pod/runner")

	t.Run("names", func(t *testing.T) { kubeNames(t, k) })
	t.Run("deployment", func(t *testing.T) { kubeDeployment(t, k) })
	t.Run("secret", func(t *testing.T) { kubeSecret(t, b, k) })
	t.Run("errors", func(t *testing.T) { kubeErrors(t, k) })
	t.Run("pull", func(t *testing.T) { kubePull(t, b, k, ca, registry, image) })

	for _, u := range kubeUnits(ProxyIPTables) {
		if got := unit(t, b, u.name+".service"); got.ActiveState != "active" || got.NRestarts > 0 {
			t.Errorf("%s is %s after %d restarts", u.name, got.ActiveState, got.NRestarts)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	left(t, l, inside)
	if diff := cmp.Diff(machine, tunables(t)); diff != "" {
		t.Errorf("the machine was changed (-before +after):\n%s", diff)
	}
}

// kubeNames has musl look up the API server by a short name and by its full one,
// which its search list comes before, and proves that both DNS servers are asked.
func kubeNames(t *testing.T, k *Kubernetes) {
	t.Helper()
	const name = "kubernetes.default.svc.cluster.local"
	got, err := k.Resolve(t.Context(), "default", "runner", "", MuslStatic, 20, name, "kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range got {
		if a.Err != "" || !slices.Equal(a.Addrs, []netip.Addr{netip.MustParseAddr(kubeAPI)}) {
			t.Errorf("%s is %v %s", a.Name, a.Addrs, a.Err)
		}
	}
	pods := strings.Fields(kubectl(t, k, "get", "pods", "--namespace=kube-system", "--selector=k8s-app=kube-dns", "--output=name"))
	if len(pods) != 2 {
		t.Errorf("the DNS servers are %v", pods)
	}
	for _, pod := range pods {
		waitFor(t, "the log of "+pod, func() bool {
			log := kubectl(t, k, "logs", "--namespace=kube-system", pod)
			return strings.Contains(log, " "+name+". ") && strings.Contains(log, " "+name+".default.svc.cluster.local. ")
		})
	}
}

// kubeDeployment proves that a deployment has the pods that it should have, and
// its service their addresses.
func kubeDeployment(t *testing.T, k *Kubernetes) {
	t.Helper()
	apply(t, k, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: app, image: "`+ResolversImage+`", imagePullPolicy: IfNotPresent}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec:
  clusterIP: None
  selector: {app: app}
`, "deployment/app")
	for _, replicas := range []int{3, 1} {
		kubectl(t, k, "scale", "deployment/app", fmt.Sprintf("--replicas=%d", replicas))
		waitFor(t, fmt.Sprintf("%d pods", replicas), func() bool {
			pods := kubectl(t, k, "get", "pods", "--selector=app=app", "--output=jsonpath={.items[*].status.podIP}")
			addrs := kubectl(t, k, "get", "endpointslices", "--selector=kubernetes.io/service-name=app",
				"--output=jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}")
			return len(strings.Fields(pods)) == replicas && len(strings.Fields(addrs)) == replicas
		})
	}
}

// tunables are the machine's settings that kubelet and kube-proxy would change.
func tunables(t *testing.T) map[string]string {
	t.Helper()
	values := make(map[string]string)
	paths := []string{"/sys/module/nf_conntrack/parameters/hashsize"}
	for name := range kubeTunables {
		paths = append(paths, filepath.Join("/proc/sys", name))
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		values[path] = string(b)
	}
	return values
}
