package certsync

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// TestBoxKilled kills the agent at every step of a pass that brings a new CA,
// takes an old one away and restarts docker. The next agent ends in the same good
// state, docker is restarted once in all, and no half of a file is ever visible.
func TestBoxKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	alive := n.sleeper()
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() { n.watchFiles(stop) })
	defer reading.Wait()
	defer close(stop)

	n.give(n.ca)
	n.once(dockerOnly).clean(t)
	restarts, points := 0, map[string]int{}
	for at := 1; ; at++ {
		next := newCA(t, fmt.Sprintf("root %d", at))
		n.registry.Serve(n.server(next))
		n.give(next)
		n.forgetTimes()
		n.run("systemctl", "reset-failed", "docker.service", "docker.socket")
		before := n.starts("docker.service")
		agent := startAgent(t, n.lab.Node(), n.spec("once", dockerOnly, named, func(sp *spec) { sp.KillAt = at }))
		step, killed := agent.killed()
		if !killed {
			agent.finish().clean(t)
		}
		r := n.once(dockerOnly, named)
		if len(r.Wrong) > 0 {
			t.Errorf("killed at step %d (%s): %s", at, step, strings.Join(r.Wrong, "\n"))
		}
		n.whole(next)
		if got := n.starts("docker.service") - before; got > 1 {
			t.Errorf("killed at step %d (%s): docker was started %d times", at, step, got)
		} else {
			restarts += got
		}
		if left := n.run("find", "/usr/local/share/ca-certificates", "/etc/docker/certs.d", "/var/lib/nodestead", "-name", ".nodestead-*"); left != "" {
			t.Errorf("killed at step %d (%s): left: %s", at, step, left)
		}
		if t.Failed() {
			t.Fatalf("the logs:\n%s", agent.text())
		}
		if !killed {
			break
		}
		points[step]++
	}
	total := 0
	for _, n := range points {
		total += n
	}
	t.Logf("killed at %d points: %v; %d restarts", total, points, restarts)
	if total < 20 {
		t.Errorf("only %d points", total)
	}
	if restarts > 0 {
		t.Errorf("docker was restarted %d times, although certs.d has the registry", restarts)
	}
	if !alive() {
		t.Error("the container is another one")
	}
}

// TestBoxKilledRestarting kills the agent at every step around a restart: docker
// is restarted exactly once for the new CA, and trusts it.
func TestBoxKilledRestarting(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	alive := n.sleeper()
	n.give(n.ca)
	n.once(dockerOnly).clean(t)
	steps := 0
	for at := 1; ; at++ {
		next := newCA(t, fmt.Sprintf("root %d", at))
		n.registry.Serve(n.server(next))
		n.refused(n.docker)
		n.give(n.ca, next)
		n.forgetTimes()
		n.run("systemctl", "reset-failed", "docker.service", "docker.socket")
		before := n.starts("docker.service")
		agent := startAgent(t, n.lab.Node(), n.spec("once", dockerOnly, func(sp *spec) { sp.KillFrom, sp.KillAt = "tool done", at }))
		step, killed := agent.killed()
		if !killed {
			agent.finish().clean(t)
		}
		r := n.once(dockerOnly)
		if err := lab.Until(t.Context(), time.Minute, func() error {
			if len(r.Wrong) == 0 {
				return nil
			}
			err := fmt.Errorf("%s", strings.Join(r.Wrong, "\n"))
			r = n.once(dockerOnly) // systemd was still at it
			return err
		}); err != nil {
			t.Errorf("killed at %s: %v", step, err)
		}
		if got := n.starts("docker.service") - before; got != 1 {
			t.Errorf("killed at %s: docker was started %d times", step, got)
		}
		n.pulls()
		if t.Failed() {
			t.Fatalf("step %d (%s); the log:\n%s", at, step, agent.text())
		}
		if !killed {
			break
		}
		steps++
		t.Logf("killed at %s: fine", step)
	}
	if steps < 8 {
		t.Errorf("only %d steps", steps)
	}
	if !alive() {
		t.Error("the container is another one")
	}
}

// forgetTimes takes the times of restarts out of the state, so that the limit of
// an hour does not count.
func (n *node) forgetTimes() {
	n.t.Helper()
	n.editState(func(st *state) {
		rt := st.Runtimes[daemon.Docker]
		rt.History.Times = nil
		st.Runtimes[daemon.Docker] = rt
	})
}

// watchFiles reads all the time what daemons and tools would read: each file that
// counts is whole.
func (n *node) watchFiles(stop <-chan struct{}) {
	for {
		for _, pattern := range []string{"usr/local/share/ca-certificates/*.crt", "etc/docker/certs.d/*/*.crt"} {
			files, err := filepath.Glob(filepath.Join(n.Root(), pattern))
			if err != nil {
				n.t.Error(err)
			}
			for _, name := range files {
				b, err := os.ReadFile(name)
				if err != nil {
					continue // removed since
				}
				if begin, end := strings.Count(string(b), "BEGIN CERT"), strings.Count(string(b), "END CERTIFICATE-----\n"); begin != 1 || end != 1 {
					n.t.Errorf("%s has %d beginnings and %d ends", name, begin, end)
				}
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// TestBoxOwnContainer: the agent is a container of the very docker that it
// restarts, and dies of it. It comes back, finishes, and does not restart again.
func TestBoxOwnContainer(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Load(t.Context(), lab.Image{Name: "localhost/lab/agent:1", Entrypoint: []string{"/agent"}, Files: map[string]string{"agent": self}}); err != nil {
		t.Fatal(err)
	}
	n.refused(n.docker)
	n.run("mkdir", "-p", "/srv/ca")
	sp := n.spec("run", dockerOnly, disruptive, every(time.Second))
	sp.Config.HostRoot, sp.Config.Sources = "/host", []string{"/ca"}
	text, err := json.Marshal(sp)
	if err != nil {
		t.Fatal(err)
	}
	first, err := n.DockerRun(t.Context(), "--name", "agent", "--restart=always", "--network=host", "--env", specVariable+"="+string(text),
		"--volume=/:/host:rslave", "--volume=/srv/ca:/ca:ro", "localhost/lab/agent:1")
	if err != nil {
		t.Fatal(err)
	}
	before := n.starts("docker.service")
	docker := n.unit("docker.service")
	if err := os.WriteFile(filepath.Join(n.Root(), "srv/ca/ca.crt"), n.ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	logs := func() string {
		out, err := n.Run(t.Context(), "sh", "-c", "docker logs agent 2>&1")
		if err != nil {
			return err.Error()
		}
		return out
	}
	err = lab.Until(t.Context(), time.Minute, func() error {
		if log := logs(); !strings.Contains(log, "a daemon was restarted") {
			return fmt.Errorf("it has not finished: %s", log)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	docker = n.renewed("docker.service", docker)
	n.pulls()
	pid, err := n.ContainerPid(t.Context(), "agent")
	if err != nil || pid == first || pid == 0 {
		t.Errorf("the agent is process %d, and was %d: %v", pid, first, err)
	}
	// Two more passes change nothing.
	passes := strings.Count(logs(), `"Changes"`)
	err = lab.Until(t.Context(), time.Minute, func() error {
		if now := strings.Count(logs(), `"Changes"`); now < passes+2 {
			return fmt.Errorf("%d passes, then %d", passes, now)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	n.same("docker.service", docker)
	if got := n.starts("docker.service") - before; got != 1 {
		t.Errorf("docker was started %d times:\n%s", got, logs())
	}
}
