//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// job is the pod that loses lookups.
const job = "runner-x7-project-42"

// collisions loses lookups of a musl pod: the questions of a pair collide when they go to
// different CoreDNS pods, and the name is slow.
func (c *cluster) collisions() {
	t := c.t
	// A pod needs its namespace's service account, which comes a moment later.
	c.until(func() error { return c.Apply(t.Context(), pod("ci", job, "helper", lab.ResolversImage, "Never", "")) })
	c.must(c.WaitReady(t.Context(), "ci", "pod/"+job))
	holder, err := c.lab.Hold(2, 0)
	c.must(err)
	defer func() {
		if err := holder.Close(); err != nil {
			t.Error(err)
		}
	}()
	tries := 0
	var line string
	c.until(func() error {
		// A new name each time, which no cache has.
		tries++
		name := fmt.Sprintf("git%d.example.test", tries)
		answers, err := c.Resolve(t.Context(), "ci", job, "", lab.MuslStatic, 1, name)
		if err != nil {
			return err
		}
		if line = c.line("watch", `msg="dns lookup lost" cause=orphaned_answer`, " name=git"); line == "" {
			return fmt.Errorf("no line about a lost lookup after %d lookups, the last one %+v, %d pairs held", tries, answers, holder.Full())
		}
		return nil
	})
	t.Logf("after %d lookups", tries)
	c.quote("kubectl -n nodestead logs daemonset/nodestead --container watch", line)
	for _, want := range []string{
		"level=WARN", "namespace=ci", "pod=" + job, "container=helper", "resolver=musl",
		"nameserver=" + lab.KubeDNS.String() + ":53", "backend=10.244.7.", "remedy=",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("it does not say %s", want)
		}
	}
}

// gone takes one of the two CoreDNS pods away while kube-proxy does not look, so
// that half of the questions go to an address behind which nobody is. What becomes
// of them there is the CNI's doing. Calico has a route for the node's block that
// leads nowhere, so that they vanish on the node; AWS's VPC CNI has none, so
// that they leave it, and vanish somewhere else.
func (c *cluster) gone(vpc bool) {
	t := c.t
	const dnsPods = "--selector=k8s-app=kube-dns"
	cause, says := "dropped_on_node", []string{"was not seen leaving the node"}
	victim := strings.Fields(c.kubectl("get", "pods", "--namespace=kube-system", dnsPods, "--output=jsonpath={.items[0].metadata.name} {.items[0].status.podIP}"))
	if vpc {
		cause, says = "stale_backend", []string{"backend=" + victim[1] + ":53"}
		c.node("ip -4 route delete blackhole 10.244.7.0/24")
		c.must(c.lab.Remote().Start(exec.Command("ip", "route", "add", "blackhole", victim[1]+"/32")))
	}
	c.node("systemctl stop kube-proxy.service")
	c.kubectl("delete", "pod", victim[0], "--namespace=kube-system")

	tries := 0
	var line string
	c.until(func() error {
		tries++
		if _, err := c.Resolve(t.Context(), "ci", job, "", lab.MuslStatic, 1, fmt.Sprintf("gone%d.fast.test", tries)); err != nil {
			return err
		}
		if line = c.line("watch", `msg="dns lookup lost" cause=`+cause, "pod="+job, " name=gone"); line == "" {
			return fmt.Errorf("no line about %s after %d lookups", cause, tries)
		}
		return nil
	})
	t.Logf("after %d lookups", tries)
	c.quote("kubectl -n nodestead logs daemonset/nodestead --container watch", line)
	if !has(line, says...) {
		t.Errorf("it does not say %q", says)
	}

	// Many at once, which is worth an alert.
	c.kubectl("exec", job, "--namespace=ci", "--", lab.ClientPath(lab.MuslStatic), "-n", "1", "-t", "16", "many.fast.test.")

	c.node("systemctl start kube-proxy.service")
	c.must(c.WaitReady(t.Context(), "kube-system", "deployment/coredns"))
	c.until(func() error {
		tries++
		answers, err := c.Resolve(t.Context(), "ci", job, "", lab.MuslStatic, 5, fmt.Sprintf("back%d.fast.test", tries))
		if err == nil {
			err = quick(answers)
		}
		return err
	})
}

// quick is an error when one of the lookups failed or had to be asked again.
func quick(answers []lab.Answer) error {
	for _, a := range answers {
		if a.Err != "" || a.Took > time.Second {
			return fmt.Errorf("lookups are still lost: %+v", a)
		}
	}
	return nil
}
