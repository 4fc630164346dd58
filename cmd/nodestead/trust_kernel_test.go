package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/internal/lab"
)

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
			if err := os.RemoveAll(hangs); err != nil { // of the half before
				t.Fatal(err)
			}
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
	if f, err := elf.Open(self); err != nil || f.Section(".interp") != nil {
		t.Fatalf("%s is not static, %v: run the test with CGO_ENABLED=0, as make test does", self, err)
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
