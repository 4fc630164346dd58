//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// slot is the Lease that a node has to hold while it restarts a daemon.
const slot = "lease/nodestead-restart-0"

// holder is who holds the slot.
func (c *cluster) holder() string {
	c.t.Helper()
	return c.kubectl("get", slot, "--namespace="+agentNamespace, "--output=jsonpath={.spec.holderIdentity}")
}

// hold has somebody hold the slot, or nobody ("").
func (c *cluster) hold(who string) {
	c.t.Helper()
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
	c.kubectl("patch", slot, "--namespace="+agentNamespace, "--type=merge",
		fmt.Sprintf(`--patch={"spec": {"holderIdentity": %q, "leaseDurationSeconds": 300, "acquireTime": %q, "renewTime": %[2]q}}`, who, now))
}

// slots has docker need a restart while another node holds the cluster's only slot,
// and takes the API server away meanwhile: docker waits, and all else goes on.
func (c *cluster) slots() {
	t := c.t
	const other = "another-node/4f1c"
	c.hold(other)
	// What makes docker trust the registry without a restart goes.
	c.upgrade("upgrade", "--set=config.trust.certs_d=off", "--set=config.trust.runtimes.containerd.enabled=off")
	if got := c.holder(); got != other {
		t.Errorf("after helm upgrade the slot is held by %q", got)
	}
	c.quote("kubectl -n nodestead logs daemonset/nodestead --container trust", c.logged("trust", "level=WARN", `msg="a restart is pending"`, "runtime=docker", "reason=waiting_for_slot", "remedy="))
	const pending = `nodestead_runtime_restart_pending{runtime="docker", reason="waiting_for_slot", node="node"} == 1`
	c.measured(pending)
	c.quote("kubectl describe node node", c.described("", "node/node", "RestartPendingWaitingForSlot", "nodestead"))
	image := c.push("waits")
	if err := c.box.Pull(t.Context(), image); !refused(err) {
		t.Errorf("docker pull while the restart is pending: %v", err)
	}

	container := strings.TrimPrefix(c.kubectl("get", "pod/"+job, "--namespace=ci", "--output=jsonpath={.status.containerStatuses[0].containerID}"), "containerd://")
	before := c.value(`sum(nodestead_dns_lookup_timeouts_total{pod="` + job + `", cause="orphaned_answer"}) or vector(0)`)
	// Killed: to stop, it takes a minute.
	c.node("systemctl stop --no-block kube-apiserver.service; systemctl kill --signal=KILL kube-apiserver.service")
	c.withoutAPI(container, before)
	c.measured(pending) // without the API server; a scrape may have been too late
	c.node("systemctl start kube-apiserver.service")
	c.until(func() error {
		_, err := c.Kubectl(t.Context(), "get", "--raw=/readyz")
		return err
	})
	if got := c.holder(); got != other {
		t.Errorf("after the API server's restart the slot is held by %q", got)
	}
	if line := c.line("trust", "msg=", "restart"); strings.Contains(line, "restarted") {
		t.Errorf("docker was restarted without a slot: %s", line)
	}

	begin := time.Now()
	c.hold("")
	c.until(func() error { return c.box.Pull(t.Context(), image) })
	t.Logf("docker pull works %v after the slot was freed", time.Since(begin).Round(100*time.Millisecond))
	c.measured(`nodestead_runtime_restarts_total{runtime="docker", result="helped", node="node"} == 1`)
	c.until(func() error {
		if got := c.holder(); got != "" {
			return fmt.Errorf("after the restart the slot is held by %q", got)
		}
		return nil
	})
}

// withoutAPI proves that the agent explains lookups and repairs the trust store
// while there is no API server.
func (c *cluster) withoutAPI(container string, before float64) {
	t := c.t
	holder, err := c.lab.Hold(2, 0)
	c.must(err)
	defer func() {
		if err := holder.Close(); err != nil {
			t.Error(err)
		}
	}()
	c.node("rm /usr/local/share/ca-certificates/nodestead-*.crt")
	tries := 0
	c.must(lab.Until(t.Context(), patience, func() error {
		tries++
		// As kubectl exec does, which needs the API server.
		c.node(fmt.Sprintf("ctr --namespace k8s.io tasks exec --exec-id e2e-%[1]d %[2]s %[3]s -n 1 alone%[1]d.example.test", tries, container, lab.ClientPath(lab.MuslStatic)))
		now := c.value(`sum(nodestead_dns_lookup_timeouts_total{pod="` + job + `", cause="orphaned_answer"}) or vector(0)`)
		if now <= before {
			return fmt.Errorf("no lost lookup is explained after %d of them", tries)
		}
		return nil
	}))
	c.must(lab.Until(t.Context(), patience, func() error {
		files, err := filepath.Glob(filepath.Join(c.box.Root(), "usr/local/share/ca-certificates/nodestead-*.crt"))
		if err == nil && len(files) == 0 {
			err = os.ErrNotExist
		}
		return err
	}))
}
