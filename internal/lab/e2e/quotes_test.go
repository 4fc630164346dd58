//go:build e2e

package e2e

import (
	"fmt"
	"os"
)

// quote notes what an operator would see, in the test's log; and in the file of
// the environment variable NODESTEAD_E2E_QUOTES, if there is one, for the
// documentation.
func (c *cluster) quote(command, output string) {
	c.t.Helper()
	text := fmt.Sprintf("$ %s\n%s\n", command, output)
	c.t.Log(text)
	path := os.Getenv("NODESTEAD_E2E_QUOTES")
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	c.must(err)
	_, err = fmt.Fprintln(file, text)
	c.must(err)
	c.must(file.Close())
}
