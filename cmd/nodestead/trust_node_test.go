package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// trustNode is a node with dockerd and a private registry, as an operator who
// has the binary sees it.
type trustNode struct {
	*lab.Box
	t        *testing.T
	lab      *lab.Lab
	ca       *lab.CA
	registry *lab.Registry
	image    string
	source   string
}

func newTrustNode(t *testing.T, cfg lab.BoxConfig) *trustNode {
	t.Helper()
	n := &trustNode{t: t, lab: lab.ForTest(t), source: t.TempDir()}
	var err error
	check := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n.ca, err = lab.NewCA("Example Root")
	check()
	cert, err := n.ca.Server("registry.example.test")
	check()
	n.registry, err = n.lab.AddRegistry("registry.example.test", cert)
	check()
	n.image, err = n.registry.Push(t.Context(), "team/app:1")
	check()
	n.Box, err = n.lab.Boot(t.Context(), cfg)
	check()
	err = n.StartDocker(t.Context())
	check()
	return n
}

// give puts a CA into the source.
func (n *trustNode) give(name string, ca *lab.CA) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.source, name), ca.PEM(), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// args are those of a command about trust on this node.
func (n *trustNode) args(command string, more ...string) []string {
	return append([]string{command, "--host_root=" + n.Root(), "--trust.sources=" + n.source, "--trust.interval=2s"}, more...)
}

// does runs a command to its end, which must have this exit code.
func (n *trustNode) does(code int, command string, more ...string) (stdout, stderr string) {
	n.t.Helper()
	return n.runs(code, exec.Command("nodestead", n.args(command, more...)...))
}

// bare does it as root with the one capability that docs/trust.md asks for, by
// which a test finds its way into the box as well.
func (n *trustNode) bare(code int, command string, more ...string) (stdout, stderr string) {
	n.t.Helper()
	const only = "-all,+sys_ptrace"
	return n.runs(code, exec.Command("setpriv", append([]string{"--bounding-set=" + only, "--inh-caps=" + only, "nodestead"}, n.args(command, more...)...)...))
}

func (n *trustNode) runs(code int, cmd *exec.Cmd) (stdout, stderr string) {
	n.t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.lab.Node().Start(cmd); err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != code {
		n.t.Errorf("%q ends with %v, want exit code %d:\n%s%s", cmd.Args, err, code, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// says fails the test unless a text has all parts.
func (n *trustNode) says(text string, parts ...string) {
	n.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			n.t.Errorf("it does not say %q:\n%s", p, text)
		}
	}
}

// page gives a page of the agent that runs.
func (n *trustNode) page(port, path string) (int, string, error) {
	resp, err := n.lab.Node().HTTPClient().Get("http://127.0.0.1:" + port + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// until waits until ok gives no error.
func (n *trustNode) until(what string, ok func() error) {
	n.t.Helper()
	if err := lab.Until(n.t.Context(), time.Minute, ok); err != nil {
		n.t.Fatalf("%s: %v", what, err)
	}
}

// metrics waits until /metrics has these lines.
func (n *trustNode) metrics(port string, lines ...string) {
	n.t.Helper()
	n.until("/metrics", func() error {
		_, body, err := n.page(port, "/metrics")
		for _, line := range lines {
			if err == nil && !strings.Contains(body, "\n"+line+"\n") {
				err = errors.New("it lacks " + line)
			}
		}
		return err
	})
}

// stop ends an agent by SIGTERM, within five seconds, and gives what it logged.
func (n *trustNode) stop(cmd *exec.Cmd, stderr *bytes.Buffer) string {
	n.t.Helper()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	late := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		n.t.Fatal("it did not end within five seconds")
	}
	if err != nil {
		n.t.Errorf("it ended with %v:\n%s", err, stderr)
	}
	return stderr.String()
}

// docker is docker's unit.
func (n *trustNode) docker() lab.Unit {
	n.t.Helper()
	u, err := n.Unit(n.t.Context(), "docker.service")
	if err != nil {
		n.t.Fatal(err)
	}
	return u
}

// serves has the registry show a certificate of a new CA, which it gives.
func (n *trustNode) serves(name string) *lab.CA {
	n.t.Helper()
	ca, err := lab.NewCA(name)
	if err != nil {
		n.t.Fatal(err)
	}
	cert, err := ca.Server("registry.example.test")
	if err != nil {
		n.t.Fatal(err)
	}
	n.registry.Serve(cert)
	return ca
}

func (n *trustNode) snapshot() map[string]lab.FileState {
	n.t.Helper()
	s, err := n.Snapshot("etc/docker", "etc/containerd", "usr/local/share", "etc/ssl", "var/lib/nodestead")
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}
