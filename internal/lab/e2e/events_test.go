//go:build e2e

package e2e

import (
	"fmt"
	"strings"
)

// described waits until kubectl describe shows an Event with all of these, and
// returns its part about Events.
func (c *cluster) described(namespace, what string, parts ...string) (events string) {
	c.t.Helper()
	args := []string{"describe", what}
	if namespace != "" {
		args = append(args, "--namespace="+namespace)
	}
	c.until(func() error {
		text := c.kubectl(args...)
		events = text[max(0, strings.LastIndex(text, "\nEvents:")):]
		for l := range strings.Lines(events) {
			if has(l, parts...) {
				return nil
			}
		}
		return fmt.Errorf("kubectl describe %s shows no Event with %q: %s", what, parts, events)
	})
	return events
}

// events proves that a developer sees why a pod's lookups were lost.
func (c *cluster) events() {
	c.quote("kubectl -n ci describe pod "+job, c.described("ci", "pod/"+job, "Warning", "OrphanedAnswer", "nodestead", "DNS lookup lost: git", "Remedy: set sessionAffinity"))
}
