//go:build e2e

package e2e

import (
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// TestStory is the story of nodestead, as an operator tells it: the chart is
// installed; a CI job loses lookups, and the agent says whose, why, and what to do;
// a registry's CA comes by a Secret, and what could not be pulled is pulled. All is
// seen from outside: by kubectl, by Prometheus, on the status page.
func TestStory(t *testing.T) {
	c := start(t, lab.ProxyIPTables)
	c.tell("install", c.install)
	c.prometheus()
	c.tell("collisions", c.collisions)
	c.tell("a DNS pod is gone", func() { c.gone(false) })
	c.tell("NodeLocal DNSCache", c.nodeLocal)
	c.tell("trust", c.trust)
	c.tell("Prometheus", c.scraped)
	c.tell("status page", c.pages)
}

// TestStoryNFTables: lookups are lost and explained alike when kube-proxy
// translates by nftables.
func TestStoryNFTables(t *testing.T) {
	c := start(t, lab.ProxyNFTables)
	c.tell("install", c.install)
	c.tell("collisions", c.collisions)
	c.tell("a DNS pod is gone", func() { c.gone(true) })
}
