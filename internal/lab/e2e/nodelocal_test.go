//go:build e2e

package e2e

import (
	"fmt"
	"strings"

	"github.com/nodestead/nodestead/internal/lab"
)

// nodeLocal is the address that NodeLocal DNSCache has on every node.
const nodeLocal = "169.254.20.10"

// nodeLocalManifest is NodeLocal DNSCache's Corefile and pod, and a pod as kubelet
// makes it when clusterDNS is that address. UPSTREAM and KUBEDNS are filled in.
const nodeLocalManifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: node-local-dns, namespace: kube-system}
data:
  Corefile: |
    cluster.local:53 {
        errors
        cache 30
        bind ` + nodeLocal + `
        forward . KUBEDNS {
            force_tcp
        }
    }
    .:53 {
        errors
        cache 30
        bind ` + nodeLocal + `
        forward . UPSTREAM
    }
---
apiVersion: v1
kind: Pod
metadata: {name: node-local-dns, namespace: kube-system}
spec:
  hostNetwork: true
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  containers:
  - name: node-cache
    image: localhost/lab/coredns:1
    imagePullPolicy: Never
    args: [-conf, /etc/coredns/Corefile]
    volumeMounts:
    - {name: config, mountPath: /etc/coredns, readOnly: true}
  volumes:
  - name: config
    configMap: {name: node-local-dns}
---
apiVersion: v1
kind: Pod
metadata: {name: cached, namespace: ci}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig:
    nameservers: [` + nodeLocal + `]
    searches: [ci.svc.cluster.local, svc.cluster.local, cluster.local]
    options: [{name: ndots, value: "5"}]
  containers:
  - {name: helper, image: "` + lab.ResolversImage + `", imagePullPolicy: Never}
`

// nodeLocalRules has the node's rules and link as NodeLocal DNSCache makes them,
// and takes them away.
func (c *cluster) nodeLocalRules(change string) {
	c.t.Helper()
	var script strings.Builder
	if change == "--append" {
		fmt.Fprintf(&script, "ip link add nodelocaldns type veth peer name nodelocalpeer; ip address add %s/32 dev nodelocaldns; ip link set nodelocaldns up\n", nodeLocal)
	} else {
		fmt.Fprintln(&script, "ip link delete nodelocaldns")
	}
	for _, protocol := range []string{"udp", "tcp"} {
		for _, rule := range []string{"PREROUTING --destination %s --protocol %s --dport", "OUTPUT --destination %s --protocol %s --dport", "OUTPUT --source %s --protocol %s --sport"} {
			fmt.Fprintf(&script, "iptables --wait --table raw "+change+" "+rule+" 53 --jump NOTRACK\n", nodeLocal, protocol)
		}
	}
	c.node(script.String())
}

// nodeLocal has a pod ask NodeLocal DNSCache, whose lookups conntrack never sees. The
// packets still tell what is lost.
func (c *cluster) nodeLocal() {
	t := c.t
	c.nodeLocalRules("--append")
	c.must(c.Apply(t.Context(), strings.NewReplacer("UPSTREAM", c.upstream.Addr4.String(), "KUBEDNS", lab.KubeDNS.String()).Replace(nodeLocalManifest)))
	c.must(c.WaitReady(t.Context(), "kube-system", "pod/node-local-dns"))
	c.must(c.WaitReady(t.Context(), "ci", "pod/cached"))
	c.quote("kubectl -n nodestead logs daemonset/nodestead --container watch", c.logged("watch", "level=WARN", `msg="sensor is blind"`, "sensor=conntrack", "reason=notrack", "remedy="))

	c.until(func() error {
		answers, err := c.Resolve(t.Context(), "ci", "cached", "", lab.MuslStatic, 3, "git.fast.test", "kubernetes.default.svc.cluster.local")
		if err == nil {
			err = quick(answers)
		}
		return err
	})
	_, err := c.Resolve(t.Context(), "ci", "cached", "", lab.MuslStatic, 1, "git.silent.test")
	c.must(err)
	line := c.logged("watch", `msg="dns lookup lost"`, "namespace=ci", "pod=cached", "container=helper", "resolver=musl", "name=git.silent.test.")
	c.quote("kubectl -n nodestead logs daemonset/nodestead --container watch", line)
	if !has(line, "cause=slow_answer", "nameserver="+nodeLocal+":53", "the answer SERVFAIL of "+nodeLocal) {
		t.Error("that is not what happened")
	}

	c.nodeLocalRules("--delete")
	c.kubectl("delete", "pod/node-local-dns", "configmap/node-local-dns", "--namespace=kube-system")
	c.logged("watch", "level=INFO", `msg="sensor sees again"`, "reason=notrack")
}
