package certsync

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// TestBoxCertsD: with the registry configured, both daemons trust it with no
// restart, although both have made a check before. The CA is rotated, and at each
// step the registry's certificate of that time is trusted. The registry is taken
// out of the configuration, and all of it is gone.
func TestBoxCertsD(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{})
	n.sleeper()
	n.refused(n.docker)
	n.refused(n.cri)
	docker, containerd := n.unit("docker.service"), n.unit("containerd.service")
	trusted := func(r report) {
		t.Helper()
		r.clean(t)
		for _, name := range []daemon.Name{daemon.Docker, daemon.Containerd} {
			if got := r.decided(name); got != "leave trusted" {
				t.Errorf("%s: %s", name, got)
			}
		}
		n.pulls()
		if err := n.cri(); err != nil {
			t.Error(err)
		}
		n.same("docker.service", docker)
		n.same("containerd.service", containerd)
	}
	n.give(n.ca)
	trusted(n.once(named))

	next := newCA(t, "private root") // the same subject
	n.give(n.ca, next)
	trusted(n.once(named))
	n.registry.Serve(n.server(next))
	n.run("ctr", "--namespace=k8s.io", "images", "rm", n.image)
	trusted(n.once(named))
	n.give(next)
	trusted(n.once(named))
	n.whole(next)
	n.registry.Serve(n.server(n.ca))
	n.refused(n.docker)
	n.refused(n.cri)
	n.registry.Serve(n.server(next))

	trusted(n.once(named, func(sp *spec) { sp.Config.NoStore = true }))
	n.whole()

	gone := func(certsD string) bool {
		_, err := os.Stat(filepath.Join(n.Root(), certsD, registryName+":5000"))
		return errors.Is(err, os.ErrNotExist)
	}
	// Daemons that are stopped keep what is for them.
	n.run("systemctl", "stop", "docker.socket", "docker.service", "containerd.service")
	r := n.once(named)
	if gone("etc/containerd/certs.d") || gone("etc/docker/certs.d") {
		t.Error("what is for a daemon went when the daemon was stopped")
	}
	if got := r.decided(daemon.Docker); got != "leave not_running" {
		t.Errorf("docker, stopped: %s", got)
	}
	n.run("systemctl", "start", "containerd.service", "docker.socket", "docker.service")
	n.once(named, dockerOnly).clean(t)
	if !gone("etc/containerd/certs.d") || gone("etc/docker/certs.d") {
		t.Error("with containerd left alone: what was for it is still there, or what is for docker is not")
	}
	r = n.once()
	if !gone("etc/docker/certs.d") {
		t.Error("without the registry: what was for it is still there")
	}
	if r.Changes["docker/"+registryName+":5000 changed"] != 1 {
		t.Errorf("changes: %v", r.Changes)
	}
}

// TestBoxRotation: by the store alone, docker is restarted once for each set of
// anchors that it does not know, and not when one goes.
func TestBoxRotation(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	alive := n.sleeper()
	n.refused(n.docker)
	steps := func(step string, restarts int, change ...func(*spec)) {
		t.Helper()
		before := n.unit("docker.service")
		r := n.once(append([]func(*spec){dockerOnly}, change...)...)
		r.clean(t)
		if got := r.restarts(daemon.Docker); got != restarts {
			t.Errorf("%s: %d restarts, want %d (%s)", step, got, restarts, r.decided(daemon.Docker))
		}
		if restarts == 0 {
			n.same("docker.service", before)
		}
		n.pulls()
	}
	n.give(n.ca)
	steps("the first CA", 1)
	next := newCA(t, "private root")
	n.give(n.ca, next)
	steps("the second beside it", 1)
	n.registry.Serve(n.server(next))
	steps("the registry's new certificate", 0, named, noCertsD)
	overlap := func(sp *spec) { sp.Config.Overlap = time.Hour }
	n.give(next)
	steps("the first is dropped, and stays a while", 0, overlap)
	n.whole(n.ca, next)
	steps("no longer", 0)
	n.whole(next)
	links := n.run("find", "/etc/ssl/certs", "-xtype", "l")
	if links != "" {
		t.Errorf("dangling links: %s", links)
	}

	// A source that breaks takes nothing away, whatever was known before.
	before := n.unit("docker.service")
	n.put(map[string][]byte{"ca0.crt": []byte("-----BEGIN CERTIFICATE-----\nbroken")})
	for _, state := range []string{"known", "lost"} {
		if state == "lost" {
			if err := os.Remove(filepath.Join(n.Root(), stateFile)); err != nil {
				t.Fatal(err)
			}
		}
		r := n.once(dockerOnly)
		if len(r.Wrong) == 0 || r.restarts(daemon.Docker) > 0 {
			t.Errorf("with the state %s: wrong %v, restarts %d", state, r.Wrong, r.restarts(daemon.Docker))
		}
		n.whole(next)
	}
	n.same("docker.service", before)
	if !alive() {
		t.Error("the container is another one")
	}

	// But what the settings forbid goes, whatever the source gives.
	r := n.once(dockerOnly, func(sp *spec) { sp.Config.Allow = []string{fingerprintOf(n.ca)} })
	if got := r.Changes["store changed"]; got != 1 {
		t.Errorf("forbidden: changes %v", r.Changes)
	}
	n.whole()
}

// TestBoxFaults: no fault of the network or of a server makes for a restart,
// although docker does not know the CA.
func TestBoxFaults(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	docker, containerd := n.unit("docker.service"), n.unit("containerd.service")
	n.give(n.ca)
	other, err := n.ca.Server("other.example.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.registry.Down(); err != nil {
		t.Fatal(err)
	}
	agent := startAgent(t, n.lab.Node(), n.spec("run", named, every(300*time.Millisecond), noCertsD, func(sp *spec) {
		sp.Config.Registries = []string{registryName + ":5000", "nowhere.example.test:5000"}
	}))
	check := func(fault string) {
		t.Helper()
		_, from := agent.last()
		agent.until(time.Minute, func(r report) error {
			_, now := agent.last()
			if now < from+2 {
				return fmt.Errorf("%s: no pass has ended since", fault)
			}
			for name, rt := range r.Runtimes {
				if len(rt.Answers) != 2 {
					return fmt.Errorf("%s: %s was not asked", fault, name)
				}
			}
			return nil
		})
		r, _ := agent.last()
		for name, rt := range r.Runtimes {
			for _, a := range rt.Answers {
				if a.Verdict != daemon.Unclear {
					t.Errorf("%s: %s says of %s: %s %s", fault, name, a.Registry, a.Verdict, a.Text)
				}
			}
			if got := r.decided(name); got != "leave unclear" {
				t.Errorf("%s: %s: %s", fault, name, got)
			}
		}
		n.same("docker.service", docker)
		n.same("containerd.service", containerd)
	}
	check("registry down, DNS broken")
	n.registry.Serve(other)
	if err := n.registry.Up(); err != nil {
		t.Fatal(err)
	}
	check("certificate for another name")
	agent.stop()

	// HTTP 500: docker knows the CA from here on.
	n.registry.Serve(n.server(n.ca))
	n.run("systemctl", "restart", "docker.service", "containerd.service")
	docker, containerd = n.unit("docker.service"), n.unit("containerd.service")
	n.registry.Fail(http.StatusInternalServerError)
	agent = startAgent(t, n.lab.Node(), n.spec("run", noCertsD, every(300*time.Millisecond), func(sp *spec) {
		sp.Config.Registries = []string{registryName + ":5000", "nowhere.example.test:5000"}
	}))
	check("HTTP 500")
	agent.stop()
}

// TestBoxDidNotHelp: a registry whose certificate comes from another CA. Docker
// is restarted once at most, the agent says that it did not help, and leaves it.
func TestBoxDidNotHelp(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.registry.Serve(n.server(newCA(t, "somebody else's")))
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.give(n.ca)
	agent := startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, named, noCertsD, every(300*time.Millisecond)))
	agent.until(time.Minute, func(r report) error {
		if got := r.decided(daemon.Docker); got != "leave did_not_help" {
			return errors.New(got)
		}
		return nil
	})
	docker = n.renewed("docker.service", docker)
	_, from := agent.last()
	r := agent.passed(from + 3)
	n.same("docker.service", docker)
	if got := r.Runtimes[daemon.Docker].Restarts; got[daemon.DidNotHelp] != 1 || r.restarts(daemon.Docker) != 1 {
		t.Errorf("restarts: %v", got)
	}
	if len(r.Wrong) == 0 || !strings.Contains(agent.text(), "does not trust") {
		t.Errorf("it says nothing of it: %v", r.Wrong)
	}
	agent.stop()

	// Another agent does not try again either; with the right CA, it does.
	r = n.once(dockerOnly, named, noCertsD)
	if r.restarts(daemon.Docker) != 0 {
		t.Error("another agent tried again")
	}
	n.same("docker.service", docker)
}

// TestBoxStartLimit: others have used up docker's start limit. Our restart does
// not leave it dead; and one that they left dead is not ours to start.
func TestBoxStartLimit(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	alive := n.sleeper()
	n.refused(n.docker)
	// Three starts in a minute are allowed, and the first was the boot's.
	n.run("systemctl", "restart", "docker.service")
	n.run("systemctl", "restart", "docker.service")
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.give(n.ca)
	r := n.once(dockerOnly)
	r.clean(t)
	if r.restarts(daemon.Docker) != 1 {
		t.Errorf("restarts: %v, %s", r.Runtimes[daemon.Docker].Restarts, r.decided(daemon.Docker))
	}
	n.renewed("docker.service", docker)
	n.pulls()
	if !alive() {
		t.Error("the container is another one")
	}

	// Now they leave it dead.
	out, err := n.Run(t.Context(), "sh", "-c", "for i in 1 2 3 4; do systemctl restart docker.service || exit 7; done")
	if err == nil {
		t.Fatalf("docker's start limit was not hit: %s", out)
	}
	next := newCA(t, "next root")
	n.give(n.ca, next)
	r = n.once(dockerOnly)
	if got := r.decided(daemon.Docker); got != "leave not_running" {
		t.Errorf("decided: %s", got)
	}
	n.whole(n.ca, next)
}
