package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
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

// e2e skips a test that starts a whole Kubernetes, unless it is asked for.
func e2e(t *testing.T) {
	t.Helper()
	if os.Getenv("NODESTEAD_E2E") != "1" {
		t.Skip("it starts Kubernetes: make e2e")
	}
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

// TestKubernetes proves that a cluster is one: what it runs, translates, resolves,
// mounts and pulls, it does as any cluster does, with nothing of it on the machine.
func TestKubernetes(t *testing.T) {
	e2e(t)
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
	t.Run("rules", func(t *testing.T) {
		// Each backend has its rule, all but the last one a probability.
		rules := runInBox(t, b, "iptables-save", "-t", "nat")
		for _, want := range []string{
			`-A KUBE-SERVICES -d 10\.96\.0\.10/32 .*--dport 53 .*-j KUBE-SVC-`,
			`-A KUBE-SVC-\w+ .*kube-system/kube-dns:dns .*--mode random --probability 0\.5\d* -j KUBE-SEP-`,
			`-A KUBE-SEP-\w+ .*-p udp .*-j DNAT --to-destination 10\.244\.7\.\d+:53`,
		} {
			if !regexp.MustCompile(want).MatchString(rules) {
				t.Errorf("no rule %s in\n%s", want, rules)
			}
		}
	})
	t.Run("deployment", func(t *testing.T) { kubeDeployment(t, k) })
	t.Run("secret", func(t *testing.T) { kubeSecret(t, b, k) })
	t.Run("errors", func(t *testing.T) { kubeErrors(t, k) })
	t.Run("helm", func(t *testing.T) { kubeHelm(t, l, k) })
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

// TestKubernetesNFTables proves the same of kube-proxy's other mode.
func TestKubernetesNFTables(t *testing.T) {
	e2e(t)
	t.Parallel()
	l := ForTest(t)
	b, k := kubeTest(t, l, KubernetesConfig{ProxyMode: ProxyNFTables, DNS: "log"})
	apply(t, k, runner, "pod/runner")
	kubeNames(t, k)
	rules := runInBox(t, b, "nft", "list", "table", "ip", "kube-proxy")
	for _, want := range []string{
		`10\.96\.0\.10 \. udp \. 53 (comment "[^"]*" )?: goto service-\w+-kube-system/kube-dns/udp/dns`,
		`numgen random mod 2 vmap \{`,
		`meta l4proto udp dnat to 10\.244\.7\.\d+:53`,
	} {
		if !regexp.MustCompile(want).MatchString(rules) {
			t.Errorf("no rule %s in\n%s", want, rules)
		}
	}
	if rules := runInBox(t, b, "iptables-save", "-t", "nat"); strings.Contains(rules, "KUBE-SERVICES") {
		t.Errorf("there are rules of iptables as well:\n%s", rules)
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

// kubeHelm installs a chart by both versions of helm, and takes it away again.
func kubeHelm(t *testing.T, l *Lab, k *Kubernetes) {
	t.Helper()
	for path, content := range map[string]string{
		"Chart.yaml": "apiVersion: v2\nname: small\nversion: 1.0.0\nkubeVersion: \">=1.25.0\"\n",
		"templates/map.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: \"{{ .Release.Name }}\"}\n" +
			"data: {version: \"{{ .Capabilities.KubeVersion.Version }}\", value: \"{{ .Values.value }}\"}\n",
	} {
		if err := writeFile(l.Dir(), "chart/"+path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for version := range helmModules {
		helm := func(args ...string) {
			t.Helper()
			if out, err := k.Helm(t.Context(), version, args...); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		release := "small" + version
		helm("install", release, filepath.Join(l.Dir(), "chart"), "--set=value=one")
		if got := kubectl(t, k, "get", "configmap", release, "--output=jsonpath={.data.version} {.data.value}"); got != "v1.34.2 one" {
			t.Errorf("helm %s installed %q", version, got)
		}
		helm("uninstall", release)
		if got := kubectl(t, k, "get", "configmap", release, "--ignore-not-found"); got != "" {
			t.Errorf("helm %s left %s", version, got)
		}
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
