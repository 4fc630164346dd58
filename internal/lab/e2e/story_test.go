//go:build e2e

package e2e

import (
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// TestStory is the story of nodestead, as an operator tells it: the chart is
// installed; a CI job loses lookups, and the agent says whose, why, and what to do;
// a registry's CA comes by a Secret, and what could not be pulled is pulled; and in
// the end nothing is left. All is seen from outside: by kubectl, by Prometheus, on
// the status page.
func TestStory(t *testing.T) {
	t.Parallel()
	c := start(t, lab.ProxyIPTables, "4")
	c.tell("image", c.realImage)
	c.tell("install", c.install)
	c.prometheus()
	c.tell("collisions", c.collisions)
	c.tell("a DNS pod is gone", func() { c.gone(false) })
	c.tell("NodeLocal DNSCache", c.nodeLocal)
	c.tell("trust", c.trust)
	c.tell("Prometheus", c.scraped)
	c.tell("status page", c.pages)
	c.tell("Events", c.events)
	c.tell("slots", c.slots)
	c.tell("capabilities", c.capabilities)
	c.tell("uninstall", c.uninstall)
}

// TestStoryNFTables: lookups are lost and explained alike when kube-proxy
// translates by nftables, and helm 3 or kubectl alone installs the agent.
func TestStoryNFTables(t *testing.T) {
	t.Parallel()
	c := start(t, lab.ProxyNFTables, "3")
	c.tell("image", c.quickImage)
	c.tell("install", c.install)
	c.tell("collisions", c.collisions)
	c.tell("a DNS pod is gone", func() { c.gone(true) })
	c.tell("Events", c.events)
	c.tell("uninstall", c.uninstall)
	c.tell("manifest", c.manifest)
}
