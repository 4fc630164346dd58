//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/internal/lab"
)

// patience is how long what must happen may take, on a machine with far too much
// to do.
const patience = 3 * time.Minute

// cluster is a Kubernetes on which the agent runs, with a private registry whose
// CA the node does not know, and slow names outside the cluster.
type cluster struct {
	*lab.Kubernetes
	t        *testing.T // the part of the story that is told
	lab      *lab.Lab
	box      *lab.Box
	upstream *lab.Server
	ca       *lab.CA
	registry *lab.Registry

	helmVersion string // that installs the chart
}

// agentImage is the image's name that the chart has by itself.
const agentImage = "nodestead/nodestead:0.1.0"

// start starts a cluster with dockerd on its node, and kube-proxy in this mode.
func start(t *testing.T, mode lab.ProxyMode, helmVersion string) *cluster {
	t.Helper()
	c := &cluster{t: t, lab: lab.ForTest(t), helmVersion: helmVersion}
	somewhere := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	var err error
	c.upstream, err = c.lab.AddServer(
		lab.Rule{Name: "*.fast.test", Addrs: somewhere},
		lab.Rule{Name: "*.silent.test", Drop: true},
		// Later than the second that conntrack keeps what collided, and soon enough
		// for CoreDNS and for musl.
		lab.Rule{Name: "*.example.test", Addrs: somewhere, Delay: 1500 * time.Millisecond},
		lab.Rule{Rcode: dns.RcodeNameError})
	c.must(err)
	c.ca, err = lab.NewCA("Example private root")
	c.must(err)
	cert, err := c.ca.Server(registryName)
	c.must(err)
	c.registry, err = c.lab.AddRegistry(registryName, cert)
	c.must(err)
	c.box, err = c.lab.Boot(t.Context(), lab.BoxConfig{LiveRestore: true})
	c.must(err)
	c.must(c.box.StartDocker(t.Context()))
	c.Kubernetes, err = c.box.StartKubernetes(t.Context(), lab.KubernetesConfig{ProxyMode: mode, DNS: "forward . " + c.upstream.Addr4.String()})
	c.must(err)
	c.until(func() error { return c.translates(mode) })
	return c
}

// rules are how kube-proxy spreads DNS over the servers, for each of its modes: each
// server has its rule, which is taken by chance.
var rules = map[lab.ProxyMode]struct {
	list string
	want []string
}{
	lab.ProxyIPTables: {"iptables-save --table nat", []string{
		`-A KUBE-SERVICES -d 10\.96\.0\.10/32 .*--dport 53 .*-j KUBE-SVC-`,
		`-A KUBE-SVC-\w+ .*kube-system/kube-dns:dns .*--mode random --probability 0\.5\d* -j KUBE-SEP-`,
		`-A KUBE-SEP-\w+ .*-p udp .*-j DNAT --to-destination 10\.244\.7\.\d+:53`,
	}},
	lab.ProxyNFTables: {"! iptables-save --table nat | grep KUBE-SERVICES; nft list table ip kube-proxy", []string{
		`10\.96\.0\.10 \. udp \. 53 (comment "[^"]*" )?: goto service-\w+-kube-system/kube-dns/udp/dns`,
		`numgen random mod 2 vmap \{`,
		`meta l4proto udp dnat to 10\.244\.7\.\d+:53`,
	}},
}

// translates is an error unless kube-proxy does its work in this mode.
func (c *cluster) translates(mode lab.ProxyMode) error {
	text, err := c.box.Run(c.t.Context(), "sh", "-euc", rules[mode].list)
	if err != nil {
		return err
	}
	for _, want := range rules[mode].want {
		if !regexp.MustCompile(want).MatchString(text) {
			return fmt.Errorf("no rule %s in\n%s", want, text)
		}
	}
	return nil
}

// realImage builds the agent's image as whoever publishes it does, and gives it to
// the node, which can't pull it.
func (c *cluster) realImage() {
	c.must(c.box.BuildImage(c.t.Context(), "../../..", agentImage))
	c.must(c.box.ShareImages(c.t.Context(), agentImage))
}

// quickImage is one of the same binary, made in no time.
func (c *cluster) quickImage() {
	path := filepath.Join(c.t.TempDir(), "nodestead")
	cmd := exec.CommandContext(c.t.Context(), "go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/nodestead/nodestead/cmd/nodestead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("build nodestead: %v: %s", err, out)
	}
	c.must(c.box.Load(c.t.Context(), lab.Image{Name: agentImage, Entrypoint: []string{"/nodestead"}, Files: map[string]string{"nodestead": path}}))
}

// tell tells a part of the story. What comes after it rests on it.
func (c *cluster) tell(name string, part func()) {
	whole := c.t
	defer func() { c.t = whole }()
	ok := whole.Run(name, func(t *testing.T) {
		c.t = t
		part()
	})
	if !ok {
		whole.FailNow()
	}
}

// must ends this part of the story at an error.
func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// kubectl returns what kubectl prints.
func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.Kubectl(c.t.Context(), args...)
	c.must(err)
	return out
}

// node runs a script on the node, as its administrator would.
func (c *cluster) node(script string) string {
	c.t.Helper()
	out, err := c.box.Run(c.t.Context(), "sh", "-euc", script)
	c.must(err)
	return out
}

// log is what a container of the agent has logged.
func (c *cluster) log(container string) string {
	c.t.Helper()
	return c.kubectl(logOf(container)...)
}

// logOf are the words by which kubectl shows a container's log.
func logOf(container string) []string {
	return []string{"logs", "daemonset/nodestead", "--namespace=" + agentNamespace, "--container=" + container, "--tail=-1"}
}

// line is the first line of a container of the agent that has all of these, or
// "".
func (c *cluster) line(container string, parts ...string) string {
	c.t.Helper()
	for l := range strings.Lines(c.log(container)) {
		if has(l, parts...) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

// logged waits for a line of a container of the agent that has all of these.
func (c *cluster) logged(container string, parts ...string) (line string) {
	c.t.Helper()
	c.until(func() error {
		if line = c.line(container, parts...); line == "" {
			return fmt.Errorf("%s does not log %q", container, parts)
		}
		return nil
	})
	return line
}

// has reports whether all of these are in a text.
func has(text string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// until waits for something, and says with its failure what the agent logged.
func (c *cluster) until(ok func() error) {
	c.t.Helper()
	if err := lab.Until(c.t.Context(), patience, ok); err != nil {
		var logs [2]string
		for i, container := range []string{"watch", "trust"} {
			var failed error
			if logs[i], failed = c.Kubectl(c.t.Context(), logOf(container)...); failed != nil {
				logs[i] = failed.Error()
			}
		}
		c.t.Fatalf("%v\nwatch:\n%s\ntrust:\n%s", err, logs[0], logs[1])
	}
}

// pod is a pod that waits forever.
func pod(namespace, name, container, image, policy, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {namespace: %[1]s, name: %[2]s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: %[3]s, image: "%[4]s", imagePullPolicy: %[5]s}
%[6]s`, namespace, name, container, image, policy, more)
}
