package image

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// checkHalves runs each half of the agent with what the chart gives it, and no
// more: it gets ready, and ends when it is told to.
func (m machine) checkHalves(t *testing.T, image string) {
	for _, test := range []struct {
		half string
		port int
		args []string // of docker
		more []string // of nodestead
	}{
		{"watch", 9853, []string{"--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--cap-add=SYS_PTRACE", "--volume=/:/host:ro,rslave"}, nil},
		{"trust", 9854, []string{"--cap-add=SYS_PTRACE", "--volume=/:/host:rslave"},
			[]string{"--trust.restarts.time_zone=Europe/Berlin"}}, // the image has no zoneinfo
	} {
		t.Run(test.half, func(t *testing.T) {
			args := append([]string{"--name", test.half, "--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}, test.args...)
			if _, err := m.DockerRun(t.Context(), append(append(args, image, test.half), test.more...)...); err != nil {
				t.Fatal(err)
			}
			client := m.lab.Node().HTTPClient()
			for _, path := range []string{"/healthz", "/readyz"} {
				url := fmt.Sprintf("http://127.0.0.1:%d%s", test.port, path)
				if err := lab.Until(t.Context(), time.Minute, func() error { return ok(client, url) }); err != nil {
					t.Errorf("%v\n%s", err, m.run(t, "sh", "-c", "docker logs "+test.half+" 2>&1"))
				}
			}
			m.run(t, "docker", "stop", "--time=20", test.half)
			if got := m.run(t, "docker", "inspect", "--format={{.State.ExitCode}}", test.half); got != "0" {
				t.Errorf("it ended with %s\n%s", got, m.run(t, "sh", "-c", "docker logs "+test.half+" 2>&1"))
			}
		})
	}
}

// checkNobody shows why the image's user is root: any other has no capabilities,
// whatever the container is given.
func (m machine) checkNobody(t *testing.T, image string) {
	_, err := m.Run(t.Context(), "docker", "run", "--rm", "--user=65532", "--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
		"--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--cap-add=SYS_PTRACE", "--volume=/:/host:ro,rslave", image, "watch")
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN is missing") {
		t.Errorf("as nobody: %v", err)
	}
}

// ok asks for a page, which must answer with 200.
func ok(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, answer.Status, text)
	}
	return err
}
