package certsync

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// TestBoxStory is the story: dockerd does not trust the registry, the CA comes
// into the Secret, and dockerd trusts it, after one restart by which no container
// is lost.
func TestBoxStory(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true, Setup: "true"}) // with all roots
	alive := n.sleeper()
	n.refused(n.docker)
	n.refused(n.cri)
	docker, containerd := n.unit("docker.service"), n.unit("containerd.service")
	agent := startAgent(t, n.lab.Node(), n.spec("run"))
	agent.until(time.Minute, func(r report) error { return nil })

	begin := time.Now()
	n.give(n.ca)
	err := lab.Until(t.Context(), time.Minute, n.docker)
	took := time.Since(begin)
	if err != nil {
		t.Fatal(err)
	}
	r := agent.until(time.Minute, func(r report) error {
		if r.restarts(daemon.Docker) == 0 || r.restarts(daemon.Containerd) == 0 {
			return fmt.Errorf("restarts: %v", r.Runtimes)
		}
		return nil
	})
	t.Logf("from the source to a pull: %v", took.Round(time.Millisecond))
	agent.parts(t, begin)
	r.clean(t)
	if err := n.cri(); err != nil {
		t.Error(err)
	}
	n.renewed("docker.service", docker)
	n.renewed("containerd.service", containerd)
	if r.restarts(daemon.Docker) != 1 || r.restarts(daemon.Containerd) != 1 {
		t.Errorf("restarts: %v", r.Runtimes)
	}
	if !alive() {
		t.Error("the container is another one")
	}
	n.whole(n.ca)

	// And never again: not in another pass, not by another agent.
	docker, containerd = n.unit("docker.service"), n.unit("containerd.service")
	agent.stop()
	for range 2 {
		r := n.once()
		r.clean(t)
		if r.restarts(daemon.Docker)+r.restarts(daemon.Containerd) > 0 {
			t.Errorf("restarted again: %v", r.Runtimes)
		}
	}
	n.same("docker.service", docker)
	n.same("containerd.service", containerd)

	// What somebody took away is put back, and no daemon is restarted for it: the
	// running ones have loaded it.
	n.run("sh", "-c", "rm /usr/local/share/ca-certificates/nodestead-*; update-ca-certificates --fresh")
	if n.has(n.ca) {
		t.Fatal("the CA is still there")
	}
	r = n.once()
	r.clean(t)
	n.whole(n.ca)
	n.same("docker.service", docker)
	n.same("containerd.service", containerd)
}

// TestBoxAskedAfter: a daemon that has made no TLS check yet is asked once the CA
// is in, never before, and needs no restart. One that has made one needs it.
func TestBoxAskedAfter(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	docker, containerd := n.unit("docker.service"), n.unit("containerd.service")
	agent := startAgent(t, n.lab.Node(), n.spec("run", named, noCertsD, every(time.Second)))
	silent := n.registry.Connections()
	agent.passed(3)
	if got := n.registry.Connections() - silent; got != 0 {
		t.Errorf("the daemons were asked %d times before the CA was there", got)
	}
	n.give(n.ca)
	r := agent.until(time.Minute, func(r report) error {
		if len(r.Runtimes[daemon.Docker].Answers) == 0 || len(r.Runtimes[daemon.Containerd].Answers) == 0 {
			return fmt.Errorf("not asked: %v", r.Wrong)
		}
		return nil
	})
	r.clean(t)
	if n.registry.Connections() == silent {
		t.Error("the daemons say that they trust, and were not asked")
	}
	n.pulls()
	n.same("docker.service", docker)
	n.same("containerd.service", containerd)
	agent.stop()

	// The counterpart: another CA, and daemons that have made their check.
	other := newCA(t, "second root")
	n.registry.Serve(n.server(other))
	n.refused(n.docker)
	n.give(n.ca, other)
	r = n.once(named, noCertsD)
	r.clean(t)
	if r.restarts(daemon.Docker) != 1 || r.restarts(daemon.Containerd) != 1 {
		t.Errorf("restarts: %v", r.Runtimes)
	}
	n.pulls()
}

// TestBoxWithoutLiveRestore: a restart would kill containers. It is pending, and
// everybody is told; allowed to be disruptive, it is made once.
func TestBoxWithoutLiveRestore(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{})
	alive := n.sleeper()
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.give(n.ca)
	sp := n.spec("once", dockerOnly)
	agent := startAgent(t, n.lab.Node(), sp)
	r := agent.finish()
	if got := r.decided(daemon.Docker); got != "pending no_live_restore" {
		t.Errorf("decided: %s", got)
	}
	if log := agent.text(); !strings.Contains(log, "a restart is pending") || !strings.Contains(log, "live-restore") {
		t.Errorf("the log does not say so: %s", log)
	}
	if len(r.Wrong) == 0 {
		t.Error("nothing is said to be wrong")
	}
	examined := startAgent(t, n.lab.Node(), n.spec("examine", dockerOnly)).finish()
	if got := examined.decided(daemon.Docker); got != "pending no_live_restore" {
		t.Errorf("examined: %s", got)
	}
	n.same("docker.service", docker)
	if !alive() {
		t.Fatal("the container is gone")
	}

	// Live-restore can be switched on without a restart.
	if err := os.MkdirAll(filepath.Join(n.Root(), "etc/docker"), 0o755); err != nil {
		t.Fatal(err)
	}
	running := startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, every(time.Second)))
	running.until(time.Minute, func(r report) error {
		if got := r.decided(daemon.Docker); got != "pending no_live_restore" {
			return fmt.Errorf("decided: %s", got)
		}
		return nil
	})
	config, err := json.Marshal(map[string]any{"live-restore": true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Root(), "etc/docker/daemon.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	n.run("systemctl", "reload", "docker.service")
	r = running.until(time.Minute, func(r report) error {
		if r.restarts(daemon.Docker) == 0 {
			return fmt.Errorf("decided: %s", r.decided(daemon.Docker))
		}
		return nil
	})
	r.clean(t)
	n.renewed("docker.service", docker)
	if !alive() {
		t.Error("the container is gone")
	}
	n.pulls()
	running.stop()
}

// TestBoxDisruptive: allowed to be disruptive, docker is restarted once without
// live-restore.
func TestBoxDisruptive(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{})
	alive := n.sleeper()
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.give(n.ca)
	r := n.once(dockerOnly, disruptive)
	r.clean(t)
	if got := r.Runtimes[daemon.Docker].Restarts[healthy]; got != 1 {
		t.Errorf("restarts: %v", r.Runtimes[daemon.Docker].Restarts)
	}
	docker = n.renewed("docker.service", docker)
	if alive() {
		t.Error("docker kept its container, so the test proves nothing")
	}
	n.pulls()
	n.once(dockerOnly, disruptive).clean(t)
	n.same("docker.service", docker)
}
