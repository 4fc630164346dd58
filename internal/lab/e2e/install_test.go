//go:build e2e

package e2e

// agentNamespace is where the agent lives.
const agentNamespace = "nodestead"

// install installs the agent as an operator would.
func (c *cluster) install() {
	c.must(c.Apply(c.t.Context(), manifest(c.registry.Host)))
	c.must(c.WaitReady(c.t.Context(), agentNamespace, "daemonset/nodestead"))
}
