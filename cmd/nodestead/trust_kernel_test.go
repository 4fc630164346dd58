package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	if err := lab.Until(n.t.Context(), 30*time.Second, ok); err != nil {
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

// What an operator does on a node: look, plan, install, examine, and take it all
// back; with the exit codes of each.
func TestTrustByHand(t *testing.T) {
	n := newTrustNode(t, lab.BoxConfig{})
	const registry = "--trust.registries=registry.example.test:5000"
	before := n.snapshot()

	// Nothing is there yet: a source that is empty is wrong, and trusts nothing.
	_, stderr := n.does(1, "trust", "--once", registry)
	n.says(stderr, "nodestead: source "+n.source+": empty: ")
	n.give("ca.crt", n.ca)
	empty := n.snapshot() // with a state that knows nothing

	out, _ := n.does(1, "doctor", "--registry=registry.example.test:5000", registry)
	n.says(out, "ok       ca_sources", "CN=Example Root", "finding  ca_store", "store waits: ", "unknown  registry_docker",
		"docker was not asked: anchors wait to be installed", "→ run nodestead trust --once first")
	out, _ = n.does(0, "trust", "--dry-run", registry)
	n.says(out, "CN=Example Root", "write  /usr/local/share/ca-certificates/nodestead-", "update-ca-certificates",
		"write  /etc/docker/certs.d/registry.example.test:5000/nodestead.crt", "docker: asked about registry.example.test:5000 after the installation")
	if n.registry.Connections() != 0 {
		t.Error("somebody has asked the registry")
	}
	if diff := cmp.Diff(empty, n.snapshot()); diff != "" {
		t.Errorf("looking has changed files (-before +after):\n%s", diff)
	}

	// No daemon has made a TLS check: it trusts at once, and nothing restarts.
	docker := n.docker()
	_, stderr = n.does(0, "trust", "--once", registry, "--trust.certs_d=off")
	n.says(stderr, `msg="trust anchors were changed" target=store`)
	if err := n.Pull(t.Context(), n.image); err != nil {
		t.Errorf("the pull after it: %v", err)
	}
	if now := n.docker(); now.InvocationID != docker.InvocationID {
		t.Errorf("docker was restarted: %+v", now)
	}
	out, _ = n.does(2, "doctor", registry, "--trust.certs_d=off") // the box has no nameserver
	n.says(out, "ok       ca_store", "ok       ca_certs_d", "ok       runtime_docker", "ok       registry_docker", "registry.example.test:5000: docker trusts it: ")

	// The registry shows a certificate of a CA that docker has not loaded.
	// Without live-restore the restart is pending, as the exit code says.
	if _, err := n.RunContainer(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	n.give("next.crt", n.serves("Next Root"))
	_, stderr = n.does(1, "trust", "--once", registry, "--trust.certs_d=off")
	n.says(stderr, "nodestead: restart of docker is pending: no_live_restore: ", `msg="a restart is pending" runtime=docker reason=no_live_restore`)
	out, _ = n.does(1, "doctor", "--registry", "registry.example.test:5000", "--trust.certs_d=off")
	n.says(out, "finding  runtime_docker", "a restart is pending: no_live_restore", "finding  registry_docker", "docker does not trust it: ", "x509", "live-restore is off, 1 containers run")
	out, _ = n.does(0, "trust", "--dry-run", registry, "--trust.certs_d=off")
	n.says(out, "if it trusts them: no restart", "if not:            a restart would be pending (no_live_restore)")

	// certs.d needs none.
	n.does(0, "trust", "--once", registry)
	if err := n.Pull(t.Context(), n.image); err != nil {
		t.Errorf("the pull with certs.d: %v", err)
	}

	// With the operator's word it is restarted, once.
	n.give("last.crt", n.serves("Last Root"))
	_, stderr = n.bare(0, "trust", "--once", registry, "--trust.certs_d=off", "--trust.runtimes.docker.disruptive=true")
	n.says(stderr, `msg="a daemon was restarted" runtime=docker result=helped`)
	if err := n.Pull(t.Context(), n.image); err != nil {
		t.Errorf("the pull after a restart: %v", err)
	}
	if now := n.docker(); now.InvocationID == docker.InvocationID || now.ActiveState != "active" {
		t.Errorf("docker was not restarted: %+v", now)
	} else {
		docker = now
	}

	n.does(0, "trust", "--uninstall", registry)
	after := n.snapshot()
	for _, dir := range []string{"/etc/docker/certs.d", "/etc/containerd/certs.d"} {
		delete(after, dir) // whose it is, nobody knows any more; they are empty
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after the uninstallation (-before +after):\n%s", diff)
	}
	if now := n.docker(); now.InvocationID != docker.InvocationID {
		t.Errorf("docker was restarted: %+v", now)
	}
}

// The agent as it runs on a node, one half or both: its pages, its metrics, and
// its end in the middle of a pass.
func TestTrustAgent(t *testing.T) {
	n := newTrustNode(t, lab.BoxConfig{
		LiveRestore: true,
		Files:       map[string]string{"etc/ca-certificates/update.d/slow": "#!/bin/sh\nwhile [ -e /run/slow ]; do touch /run/hangs; sleep 0.1; done\n"},
		Setup:       "chmod 755 /etc/ca-certificates/update.d/slow",
	})
	for _, half := range []struct{ command, port string }{{"trust", "9854"}, {"run", "9853"}} {
		t.Run(half.command, func(t *testing.T) {
			n.t = t
			n.give("ca.crt", n.ca)
			cmd, stderr := start(t, n.lab.Node(), "nodestead", n.args(half.command, "--trust.registries=registry.example.test:5000")...)
			n.until("ready", func() error {
				status, body, err := n.page(half.port, "/readyz")
				if err == nil && status != http.StatusOK {
					err = errors.New(body)
				}
				return err
			})
			n.metrics(half.port,
				`nodestead_trust_in_sync{target="store"} 1`,
				`nodestead_trust_in_sync{target="docker/registry.example.test:5000"} 1`,
				`nodestead_registry_trusted{registry="registry.example.test:5000",runtime="docker"} 1`,
				fmt.Sprintf(`nodestead_ca_source_broken{source=%q} 0`, n.source),
				`nodestead_runtime_restarts_total{result="helped",runtime="docker"} 0`)
			if status, _, err := n.page(half.port, "/api/v1/incidents"); err != nil || (status == http.StatusOK) != (half.command == "run") {
				t.Errorf("/api/v1/incidents gives %d, %v", status, err)
			}

			// The next pass hangs in the distribution's tool.
			slow, hangs := filepath.Join(n.Root(), "run/slow"), filepath.Join(n.Root(), "run/hangs")
			if err := os.WriteFile(slow, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			next, err := lab.NewCA("Next Root for " + half.command)
			if err != nil {
				t.Fatal(err)
			}
			n.give("next.crt", next)
			n.until("the tool hangs", func() error { return os.Remove(hangs) })
			if log := n.stop(cmd, stderr); !strings.Contains(log, `msg="nodestead stopped"`) {
				t.Errorf("no line about the end:\n%s", log)
			}

			// What is left is taken up.
			if err := os.Remove(slow); err != nil {
				t.Fatal(err)
			}
			n.does(0, "trust", "--once", "--trust.registries=registry.example.test:5000")
			n.does(0, "trust", "--uninstall")
		})
	}
}

// The agent as a container of the dockerd that it looks after, by the command that
// docs/trust.md has.
func TestTrustInAContainer(t *testing.T) {
	n := newTrustNode(t, lab.BoxConfig{LiveRestore: true})
	page, err := os.ReadFile("../../docs/trust.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "docker run -d ")
	line, _, ok := strings.Cut(strings.ReplaceAll(rest, "\\\n", ""), "\n")
	if !ok {
		t.Fatal("docs/trust.md has no docker run")
	}
	const image = "localhost/nodestead:1"
	self, err := os.Executable() // which is the command when it has its name
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Load(t.Context(), lab.Image{Name: image, Entrypoint: []string{"/nodestead"}, Files: map[string]string{"nodestead": self}}); err != nil {
		t.Fatal(err)
	}
	if err := n.Pull(t.Context(), n.image); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Fatalf("the pull before: %v", err)
	}
	source := filepath.Join(n.Root(), "etc/nodestead/ca")
	if err := os.MkdirAll(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "ca.crt"), n.ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields(strings.NewReplacer("REGISTRY/nodestead:VERSION", image, "registry.example.de", "registry.example.test").Replace(line))
	pid, err := n.DockerRun(t.Context(), append(args, "--trust.certs_d=off")...)
	if err != nil {
		t.Fatal(err)
	}
	n.metrics("9854", `nodestead_trust_in_sync{target="store"} 1`,
		`nodestead_registry_trusted{registry="registry.example.test:5000",runtime="docker"} 1`,
		`nodestead_runtime_restarts_total{result="helped",runtime="docker"} 1`)
	if err := n.Pull(t.Context(), n.image); err != nil {
		t.Errorf("the pull after: %v", err)
	}
	if now, err := n.ContainerPid(t.Context(), "nodestead"); err != nil || now != pid {
		t.Errorf("the agent was %d, and is %d, %v", pid, now, err)
	}
}
