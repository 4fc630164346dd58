//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// agentNamespace is where the agent lives.
const agentNamespace = "nodestead"

// chart is where the chart is.
func (c *cluster) chart() string {
	c.t.Helper()
	path, err := filepath.Abs("../../../deploy/chart")
	c.must(err)
	return path
}

// helm runs helm of the version of this story.
func (c *cluster) helm(args ...string) string {
	c.t.Helper()
	out, err := c.Helm(c.t.Context(), c.helmVersion, args...)
	if err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// upgrade is helm's words to install the chart, or to change what is installed, as
// docs/install.md has them.
func (c *cluster) upgrade(verb string, more ...string) {
	c.t.Helper()
	c.helm(append([]string{
		verb, "nodestead", c.chart(), "--namespace=" + agentNamespace,
		"--set=config.trust.registries={" + c.registry.Host + "}",
		"--set=config.trust.interval=5s", // not to wait a minute for a repair
	}, more...)...)
	c.kubectl("rollout", "status", "daemonset/nodestead", "--namespace="+agentNamespace, "--timeout="+patience.String())
}

// install installs the chart as an operator would.
func (c *cluster) install() {
	c.kubectl("create", "namespace", agentNamespace)
	c.kubectl("label", "namespace", agentNamespace, "pod-security.kubernetes.io/enforce=privileged")
	begin := time.Now()
	c.upgrade("install")
	c.t.Logf("helm %s: all pods run %v after the install", c.helmVersion, time.Since(begin).Round(100*time.Millisecond))
	if got := c.kubectl("exec", "daemonset/nodestead", "--namespace="+agentNamespace, "--container=watch", "--", "/nodestead", "version"); !strings.HasPrefix(got, "nodestead ") {
		c.t.Errorf("it says that it is %s", got)
	}
}

// uninstall takes all of it away: the chart, and then what trust has installed on the
// node, by a pod that anybody can make who may do all in the cluster.
func (c *cluster) uninstall() {
	t := c.t
	c.helm("uninstall", "nodestead", "--namespace="+agentNamespace, "--wait")
	kinds := func(namespaced string) string {
		return strings.Join(strings.Fields(c.kubectl("api-resources", "--verbs=list", "--output=name", "--namespaced="+namespaced)), ",")
	}
	c.until(func() error { // the pods go a moment later
		for l := range strings.FieldsSeq(c.kubectl("get", kinds("true"), "--namespace="+agentNamespace, "--output=name", "--ignore-not-found")) {
			// What each namespace has, what the cluster notes of each pod, and the
			// CA, which is not the chart's.
			if !strings.HasPrefix(l, "event") && !slices.Contains([]string{"configmap/kube-root-ca.crt", "serviceaccount/default", "secret/ca"}, l) {
				return fmt.Errorf("helm uninstall leaves %s", l)
			}
		}
		return nil
	})
	for l := range strings.FieldsSeq(c.kubectl("get", kinds("false"), "--output=name", "--ignore-not-found")) {
		if strings.Contains(l, "nodestead") && l != "namespace/"+agentNamespace {
			t.Errorf("helm uninstall leaves %s", l)
		}
	}

	c.kubectl("debug", "node/node", "--image="+agentImage, "--profile=sysadmin", "--", "/nodestead", "trust", "--uninstall")
	const debugger = "--selector=app.kubernetes.io/managed-by=kubectl-debug"
	c.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod", debugger, "--timeout="+patience.String())
	t.Log(c.kubectl("logs", debugger))
	c.kubectl("delete", "pod", debugger)
	if got := c.node(`find / -xdev -path /proc -prune -o -path /var/lib/containerd -prune -o -path /run -prune -o -path /var/log -prune -o -path /var/lib/kubelet -prune -o -path /srv -prune -o -name '*nodestead*' -print`); got != "" {
		t.Errorf("the node still has %s", got)
	}
}

// manifest installs the agent by kubectl alone.
func (c *cluster) manifest() {
	t := c.t
	text, err := os.ReadFile("../../../deploy/nodestead.yaml")
	c.must(err)
	c.must(c.Apply(t.Context(), string(text)))
	c.kubectl("rollout", "status", "daemonset/nodestead", "--namespace="+agentNamespace, "--timeout="+patience.String())
	const other = "another-node/4f1c"
	c.hold(other)
	c.must(c.Apply(t.Context(), string(text)))
	if got := c.holder(); got != other {
		t.Errorf("after another kubectl apply the slot is held by %q", got)
	}
	c.logged("trust", `msg="nodestead started"`, "node=node", "events=true", "restart_slots=1")
}
