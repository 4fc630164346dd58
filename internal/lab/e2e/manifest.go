//go:build e2e

package e2e

import (
	_ "embed"
	"strings"
)

// agentImage is the name of the agent's image.
const agentImage = "localhost/nodestead:e2e"

//go:embed nodestead.yaml
var manifestText string

// manifest is the agent as a DaemonSet, for this registry.
func manifest(registry string) string {
	return strings.NewReplacer("IMAGE", agentImage, "REGISTRY", registry).Replace(manifestText)
}
