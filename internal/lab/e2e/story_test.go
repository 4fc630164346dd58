//go:build e2e

package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	registryName     = "registry.example.test"
	unknownAuthority = "x509: certificate signed by unknown authority"
)

// patience is how long what must happen may take, on a machine with far too much to do.
const patience = 3 * time.Minute

// cluster is a Kubernetes on which the agent runs, with a private registry whose
// CA the node does not know, and slow names outside the cluster.
type cluster struct {
	*lab.Kubernetes
	t        *testing.T
	lab      *lab.Lab
	box      *lab.Box
	ca       *lab.CA
	registry *lab.Registry
}

// start starts a cluster with the agent on it, and kube-proxy in this mode.
func start(t *testing.T, mode lab.ProxyMode) *cluster {
	t.Helper()
	c := &cluster{t: t, lab: lab.ForTest(t)}
	agent := build(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Later than the second that conntrack keeps what collided, and soon enough
	// for CoreDNS and for musl.
	upstream, err := c.lab.AddServer(lab.Rule{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Delay: 1500 * time.Millisecond})
	must(err)
	c.ca, err = lab.NewCA("Example private root")
	must(err)
	cert, err := c.ca.Server(registryName)
	must(err)
	c.registry, err = c.lab.AddRegistry(registryName, cert)
	must(err)
	c.box, err = c.lab.Boot(t.Context(), lab.BoxConfig{LiveRestore: true})
	must(err)
	must(c.box.StartDocker(t.Context()))
	c.Kubernetes, err = c.box.StartKubernetes(t.Context(), lab.KubernetesConfig{ProxyMode: mode, DNS: "forward . " + upstream.Addr4.String()})
	must(err)
	must(c.box.Load(t.Context(), lab.Image{Name: agentImage, Entrypoint: []string{"/nodestead"}, Files: map[string]string{"nodestead": agent}}))
	must(c.Apply(t.Context(), manifest(c.registry.Host)))
	must(c.WaitReady(t.Context(), "nodestead", "daemonset/nodestead"))
	return c
}

// build builds the agent as its image has it.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nodestead")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/nodestead/nodestead/cmd/nodestead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build nodestead: %v: %s", err, out)
	}
	return path
}

// kubectl returns what kubectl prints.
func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.Kubectl(c.t.Context(), args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// log is what a container of the agent has logged.
func (c *cluster) log(container string) string {
	c.t.Helper()
	return c.kubectl("logs", "--namespace=nodestead", "daemonset/nodestead", "--container="+container)
}

// until waits for something, and says with its failure what the agent logged.
func (c *cluster) until(ok func() error) {
	c.t.Helper()
	if err := lab.Until(c.t.Context(), patience, ok); err != nil {
		c.t.Fatalf("%v\nwatch:\n%s\ntrust:\n%s", err, c.log("watch"), c.log("trust"))
	}
}

// pod is a pod that waits forever.
func pod(namespace, name, container, image, policy string) string {
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
`, namespace, name, container, image, policy)
}

// TestStory is the story of nodestead: a CI job loses lookups, and the agent's log
// says whose, why, and what to do; a registry's CA comes by a Secret, and what
// could not be pulled is pulled.
func TestStory(t *testing.T) {
	c := start(t, lab.ProxyIPTables)
	c.names()
	c.trust()
}

// TestStoryNFTables: lookups are lost and explained alike when kube-proxy
// translates by nftables.
func TestStoryNFTables(t *testing.T) { start(t, lab.ProxyNFTables).names() }

// names loses lookups of a musl pod: the questions of a pair collide when they go to
// different CoreDNS pods, and the name is slow.
func (c *cluster) names() {
	t := c.t
	const job = "runner-x7-project-42"
	if err := c.Apply(t.Context(), pod("ci", job, "helper", lab.ResolversImage, "Never")); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context(), "ci", "pod/"+job); err != nil {
		t.Fatal(err)
	}
	holder, err := c.lab.Hold(2, 0)
	if err != nil {
		t.Fatal(err)
	}
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
		for l := range strings.Lines(c.log("watch")) {
			if strings.Contains(l, `msg="dns lookup lost" cause=orphaned_answer`) && strings.Contains(l, " name=git") {
				line = strings.TrimSpace(l)
				return nil
			}
		}
		return fmt.Errorf("no line about a lost lookup after %d lookups, the last one %+v, %d pairs held", tries, answers, holder.Full())
	})
	t.Logf("after %d lookups: %s", tries, line)
	for _, want := range []string{
		"level=WARN", "namespace=ci", "pod=" + job, "container=helper", "resolver=musl",
		"nameserver=" + lab.KubeDNS.String() + ":53", "backend=10.244.7.", "remedy=",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("it does not say %s", want)
		}
	}
}

// trust has node-level dockerd and kubelet pull from the registry, while its CA
// comes by the Secret, is exchanged there, and goes with it.
func (c *cluster) trust() {
	t := c.t
	private := c.push("private")
	if err := c.box.Pull(t.Context(), private); !refused(err) {
		t.Errorf("docker pull before: %v", err)
	}
	if err := c.Apply(t.Context(), pod("ci", "private", "app", private, "IfNotPresent")); err != nil {
		t.Fatal(err)
	}
	c.until(func() error {
		if text := c.kubectl("describe", "pod/private", "--namespace=ci"); !strings.Contains(text, unknownAuthority) {
			return fmt.Errorf("kubelet's pull does not fail: %s", text)
		}
		return nil
	})

	begin := time.Now()
	c.secret(c.ca)
	c.until(func() error { return c.box.Pull(t.Context(), private) })
	t.Logf("docker pull works %v after the Secret came", time.Since(begin).Round(100*time.Millisecond))
	if err := c.WaitReady(t.Context(), "ci", "pod/private"); err != nil {
		t.Errorf("%v\n%s", err, c.log("trust"))
	}
	t.Logf("the pod runs %v after the Secret came", time.Since(begin).Round(100*time.Millisecond))

	// The new CA comes, and the old one goes.
	next, err := lab.NewCA("Example private root of the next year")
	if err != nil {
		t.Fatal(err)
	}
	c.serve(next)
	rotated := c.push("rotated")
	if err := c.box.Pull(t.Context(), rotated); !refused(err) {
		t.Errorf("docker pull before the new CA came: %v", err)
	}
	c.secret(next)
	c.until(func() error { return c.box.Pull(t.Context(), rotated) })
	c.serve(c.ca)
	c.until(func() error {
		if refused(c.box.Pull(t.Context(), rotated)) {
			return nil
		}
		return errors.New("the old CA is still trusted")
	})
	c.serve(next)

	// A Secret that is gone takes no trust away. The agent said the same before it came.
	const gone = `msg="a source of trust is broken, what it gave last stays" dir=/etc/nodestead/ca reason=empty`
	said := strings.Count(c.log("trust"), gone)
	c.kubectl("delete", "secret/ca", "--namespace=nodestead")
	c.until(func() error {
		if got := strings.Count(c.log("trust"), gone); got != said+1 {
			return fmt.Errorf("the agent has said %d times, and not %d, that there is nothing in the Secret", got, said+1)
		}
		return nil
	})
	if err := c.box.Pull(t.Context(), c.push("later")); err != nil {
		t.Errorf("after the Secret has gone: %v", err)
	}
}

// refused reports whether a pull failed because the CA is unknown.
func refused(err error) bool { return err != nil && strings.Contains(err.Error(), unknownAuthority) }

// push puts an image into the registry, and returns what to pull it by.
func (c *cluster) push(name string) string {
	c.t.Helper()
	image, err := c.registry.Push(c.t.Context(), "team/"+name+":1")
	if err != nil {
		c.t.Fatal(err)
	}
	return image
}

// serve gives the registry a certificate of this CA.
func (c *cluster) serve(ca *lab.CA) {
	c.t.Helper()
	cert, err := ca.Server(registryName)
	if err != nil {
		c.t.Fatal(err)
	}
	c.registry.Serve(cert)
}

// secret makes or changes the Secret.
func (c *cluster) secret(ca *lab.CA) {
	c.t.Helper()
	err := c.Apply(c.t.Context(), fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: ca, namespace: nodestead}
data: {ca.crt: %s}
`, base64.StdEncoding.EncodeToString(ca.PEM())))
	if err != nil {
		c.t.Fatal(err)
	}
}
