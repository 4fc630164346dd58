package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ProxyMode is how kube-proxy translates the addresses of services.
type ProxyMode string

const (
	// ProxyIPTables is by iptables, kube-proxy's own choice.
	ProxyIPTables ProxyMode = "iptables"
	// ProxyNFTables is by nftables.
	ProxyNFTables ProxyMode = "nftables"
)

// KubeDNS is the address of the service of the cluster's DNS servers.
var KubeDNS = netip.MustParseAddr("10.96.0.10")

// kubeTime is how long a cluster may take until it runs pods. On an idle machine
// it takes ten seconds.
const kubeTime = 3 * time.Minute

// kubeDNSImage is the image of the cluster's DNS servers.
const kubeDNSImage = "localhost/lab/coredns:1"

// KubernetesConfig says what a cluster looks like. The zero value will do.
type KubernetesConfig struct {
	// ProxyMode is ProxyIPTables when it is empty.
	ProxyMode ProxyMode
	// DNS are more plugins of the DNS servers, as "forward . ADDRESS" and "log".
	// Without any, they know only the cluster's own names. CoreDNS runs its
	// plugins in an order of its own: "template" before "kubernetes".
	DNS string
}

// Kubernetes is a real cluster whose only node is a box: etcd, the control plane,
// kubelet and kube-proxy as units of the box's systemd, and two CoreDNS pods
// behind KubeDNS. Its state is in memory and ends with the box. Pods
// have the images that Box.Load loaded, and those that can be pulled.
type Kubernetes struct {
	box *Box
}

// StartKubernetes makes the box the node of a cluster, and waits until that runs
// pods and answers DNS. The first time on a machine it builds Kubernetes, which takes
// minutes: see Lab.KubernetesBinaries. kube-proxy and the services of the lab
// both translate; their addresses should differ.
func (b *Box) StartKubernetes(ctx context.Context, cfg KubernetesConfig) (*Kubernetes, error) {
	switch cfg.ProxyMode {
	case "":
		cfg.ProxyMode = ProxyIPTables
	case ProxyIPTables, ProxyNFTables:
	default:
		return nil, fmt.Errorf("start Kubernetes: unknown mode %q of kube-proxy", cfg.ProxyMode)
	}
	if err := b.lab.KubernetesBinaries(); err != nil {
		return nil, err
	}
	k := &Kubernetes{box: b}
	ctx, cancel := context.WithTimeout(ctx, kubeTime)
	defer cancel()
	if err := k.start(ctx, cfg); err != nil {
		return nil, fmt.Errorf("start Kubernetes: %w\n%s\n%s", err, k.state(), b.journal())
	}
	return k, nil
}

func (k *Kubernetes) start(ctx context.Context, cfg KubernetesConfig) error {
	files, err := kubeFiles(cfg)
	if err != nil {
		return err
	}
	for path, content := range files {
		if err := writeFile(k.box.Root(), path, content, 0o600); err != nil {
			return err
		}
	}
	if err := k.copyBinaries(); err != nil {
		return err
	}
	// As in every box of its own mounts: nothing of it leaves the box.
	for name := range kubeTunables {
		if _, err := k.box.Run(ctx, "mount", "--bind", filepath.Join(kubeDir, "tunables", name), "/proc/sys/"+name); err != nil {
			return fmt.Errorf("hide a setting of the machine: %w", err)
		}
	}
	if _, err := k.box.Run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	var names []string
	for _, u := range kubeUnits(cfg.ProxyMode) {
		names = append(names, u.name+".service")
	}
	// The image is loaded while they start.
	if _, err := k.box.Run(ctx, append([]string{"systemctl", "start", "--no-block"}, names...)...); err != nil {
		return err
	}
	image, err := k.box.lab.kubeDNSArchive()
	if err != nil {
		return err
	}
	if err := k.box.load(ctx, image, []string{kubeDNSImage}); err != nil {
		return fmt.Errorf("load the image of CoreDNS: %w", err)
	}
	// To ask again and again would slow it down. When it has failed, systemd tries
	// again, and who asks is told.
	_, _ = k.box.Run(ctx, "systemctl", "start", "kube-apiserver.service")
	err = Until(ctx, kubeTime, func() error {
		_, err := k.Kubectl(ctx, "get", "--raw=/readyz")
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the API server: %w", err)
	}
	if err := k.applyDNS(ctx, cfg.DNS); err != nil {
		return err
	}
	if err := k.WaitReady(ctx, "", "node/"+nodeName); err != nil {
		return err
	}
	return k.WaitReady(ctx, "kube-system", "deployment/coredns")
}

// copyBinaries gives the box its programs.
func (k *Kubernetes) copyBinaries() error {
	dir, err := k.box.lab.kubernetesBinaries()
	if err != nil {
		return err
	}
	etcd, err := k.box.lab.etcdBinary()
	if err != nil {
		return err
	}
	paths := []string{etcd}
	for _, c := range kubernetesCommands {
		paths = append(paths, filepath.Join(dir, c))
	}
	for _, from := range paths {
		to := filepath.Join(k.box.Root(), "usr/local/bin", filepath.Base(from))
		if err := copyProgram(from, to); err != nil {
			return err
		}
	}
	return nil
}

// copyProgram copies a program.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// applyDNS installs the cluster's DNS servers.
func (k *Kubernetes) applyDNS(ctx context.Context, more string) error {
	b, err := kubeSources.ReadFile("kube/coredns.yaml")
	if err != nil {
		return err
	}
	text, err := json.Marshal(corefile(more)) // which is YAML, too
	if err != nil {
		return err
	}
	manifest := strings.NewReplacer("Corefile: COREFILE", "Corefile: "+string(text), "image: IMAGE", "image: "+kubeDNSImage).Replace(string(b))
	return k.Apply(ctx, manifest)
}

// Kubeconfig is the path, as the machine sees it, of the configuration of a
// client that may do everything. The client must run in the node's namespace.
func (k *Kubernetes) Kubeconfig() string {
	return filepath.Join(k.box.Root(), kubeDir, "admin.conf")
}

// Kubectl runs kubectl in the box and returns what it prints to standard output.
func (k *Kubernetes) Kubectl(ctx context.Context, args ...string) (stdout string, err error) {
	return k.kubectl(ctx, nil, args...)
}

func (k *Kubernetes) kubectl(ctx context.Context, stdin *os.File, args ...string) (string, error) {
	return k.box.run(ctx, stdin, append([]string{"kubectl", "--kubeconfig", kubeDir + "/admin.conf"}, args...)...)
}

// Apply applies manifests, which are YAML.
func (k *Kubernetes) Apply(ctx context.Context, manifests string) error {
	file, err := os.CreateTemp(k.box.dir, "manifests-*.yaml")
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err = file.WriteString(manifests); err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = k.kubectl(ctx, file, "apply", "--filename=-")
	}
	if err = errors.Join(err, os.Remove(file.Name())); err != nil {
		return fmt.Errorf("apply manifests: %w", err)
	}
	return nil
}

// WaitReady waits until each of the resources of a namespace ("" is that called
// default) is ready: "deployment/coredns", "daemonset/nodestead", "pod/runner",
// "node/node". One that is not there yet is waited for.
func (k *Kubernetes) WaitReady(ctx context.Context, namespace string, resources ...string) error {
	for _, r := range resources {
		kind, _, _ := strings.Cut(r, "/")
		args := []string{"wait", "--for=condition=Ready", "--timeout=5s", r}
		if slices.Contains([]string{"deployment", "daemonset", "statefulset"}, kind) {
			args = []string{"rollout", "status", "--timeout=5s", r}
		}
		if namespace != "" {
			args = append(args, "--namespace="+namespace)
		}
		err := Until(ctx, kubeTime, func() error {
			_, err := k.Kubectl(ctx, args...)
			return err
		})
		if err != nil {
			return fmt.Errorf("wait for %s: %w\n%s", r, err, k.state())
		}
	}
	return nil
}

// Resolve is CRIPod.Resolve in a container of a pod of the cluster; "" is its
// first one. Its image must have the programs of the resolvers, as ResolversImage has.
func (k *Kubernetes) Resolve(ctx context.Context, namespace, pod, container string, r Resolver, count int, names ...string) ([]Answer, error) {
	args := []string{"exec", pod, "--namespace=" + namespace}
	if container != "" {
		args = append(args, "--container="+container)
	}
	out, err := k.Kubectl(ctx, slices.Concat(args, []string{"--", ClientPath(r)}, clientArgs(count, names))...)
	if err != nil {
		return nil, fmt.Errorf("resolve by %s in pod %s/%s: %w", r, namespace, pod, err)
	}
	return parseAnswers(strings.NewReader(out))
}

// state is what an operator would look at first.
func (k *Kubernetes) state() string {
	// As in Box.journal.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.box.lab.ctx), 10*time.Second)
	defer cancel()
	var out strings.Builder
	for _, args := range [][]string{
		{"get", "nodes,pods,deployments,daemonsets", "--all-namespaces", "--output=wide"},
		{"get", "events", "--all-namespaces", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"},
	} {
		text, err := k.Kubectl(ctx, args...)
		fmt.Fprintln(&out, tail([]byte(text)))
		if err != nil {
			fmt.Fprintln(&out, err)
		}
	}
	return out.String()
}
