package cluster

import (
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// otherCA is a CA that signed nothing.
func otherCA(t *testing.T) string {
	t.Helper()
	ca, err := lab.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	return string(ca.PEM())
}
