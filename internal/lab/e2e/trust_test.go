//go:build e2e

package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	registryName     = "registry.example.test"
	unknownAuthority = "x509: certificate signed by unknown authority"
)

// trust has node-level dockerd and kubelet pull from the registry, while its CA
// comes by the Secret, is exchanged there, and goes with it.
func (c *cluster) trust() {
	t := c.t
	private := c.push("private")
	if err := c.box.Pull(t.Context(), private); !refused(err) {
		t.Errorf("docker pull before: %v", err)
	}
	if err := c.Apply(t.Context(), pod("ci", "private", "app", private, "IfNotPresent", "")); err != nil {
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

	// A Secret that is gone takes no trust away, and is a fault; that there was none yet was none.
	const gone = `msg="a source of trust is broken, what it gave last stays" dir=/etc/nodestead/ca reason=empty`
	const none = `level=INFO msg="no CA is given yet, so that nothing is installed" dir=/etc/nodestead/ca reason=empty`
	if log := c.log("trust"); !strings.Contains(log, none) || strings.Contains(log, gone) {
		t.Errorf("before there was a Secret the agent did not say\n%s\nor it said\n%s\nthe log:\n%s", none, gone, log)
	}
	c.kubectl("delete", "secret/ca", "--namespace=nodestead")
	c.until(func() error {
		if got := strings.Count(c.log("trust"), gone); got != 1 {
			return fmt.Errorf("the agent has said %d times, and not once, that there is nothing in the Secret", got)
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
