package certsync

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// TestBoxGate: a restart that may not begin is pending, with the reason, and
// nothing is restarted. As soon as the gate is ready it is made, once, and the
// permission is given back. A node that needs none does not ask.
func TestBoxGate(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	alive := n.sleeper()
	n.refused(n.docker)
	docker := n.unit("docker.service")
	g := newGate(t, false)

	preview := startAgent(t, n.lab.Node(), n.spec("plan", dockerOnly, g.used)).finish().Preview
	if strings.Contains(preview, WaitingForSlot) {
		t.Errorf("without a CA there is nothing to wait for:\n%s", preview)
	}
	n.give(n.ca)
	preview = startAgent(t, n.lab.Node(), n.spec("plan", dockerOnly, g.used)).finish().Preview
	if want := "docker: it would be restarted (started_before), and not at once (waiting_for_slot): node-7 has the slot\n"; !strings.Contains(preview, want) {
		t.Errorf("the preview lacks %q:\n%s", want, preview)
	}
	g.expect("")
	r := n.once(dockerOnly, g.used)
	want := "restart of docker is pending: waiting_for_slot: node-7 has the slot; "
	if len(r.Wrong) != 1 || !strings.HasPrefix(r.Wrong[0], want) {
		t.Errorf("one pass: %v, want %q", r.Wrong, want)
	}
	g.expect("waiting_for_slot")

	agent := startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, g.used, every(time.Hour)))
	// The first pass, and that of the watcher, which says once that it watches.
	agent.until(time.Minute, func(r report) error {
		if _, passes := agent.last(); r.decided(daemon.Docker) != "pending waiting_for_slot" || passes < 2 {
			return fmt.Errorf("%d passes, %s", passes, r.decided(daemon.Docker))
		}
		return nil
	})
	n.same("docker.service", docker)
	n.whole(n.ca) // it is installed all the same
	agent.logs(`msg="a restart is pending" runtime=docker reason=waiting_for_slot detail="node-7 has the slot; `)
	before := g.asked()
	if strings.Contains(before, "enter") {
		t.Errorf("the gate was asked %q", before)
	}
	g.set("open")
	agent.ready()
	r = agent.decides(daemon.Docker, "leave up_to_date")
	r.clean(t)
	if got := r.restarts(daemon.Docker); got != 1 {
		t.Errorf("%d restarts", got)
	}
	n.renewed("docker.service", docker)
	n.pulls()
	if !alive() {
		t.Error("the container is another one")
	}
	once := before + " enter leave"
	g.expect(once)

	// Nothing to do: nobody asks.
	_, passes := agent.last()
	agent.ready()
	agent.passed(passes + 1)
	g.expect(once)
	agent.stop()
}

// ready tells a running agent that its gate may be open.
func (c *child) ready() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(unix.SIGUSR1); err != nil {
		c.t.Fatal(err)
	}
}

// TestBoxWaiting: while a restart waits for its turn, which may take hours among
// thousands of nodes, a pass asks the registry nothing. When the turn comes the daemon
// is asked once more: somebody has helped it meanwhile, and it is not restarted.
func TestBoxWaiting(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	docker := n.unit("docker.service")
	g := newGate(t, false)
	n.give(n.ca)
	agent := startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, named, noCertsD, g.used, every(100*time.Millisecond)))
	agent.decides(daemon.Docker, "pending waiting_for_slot")
	_, passes := agent.last()
	before := n.registry.Connections()
	agent.passed(passes + 10)
	if got := n.registry.Connections() - before; got != 0 {
		t.Errorf("the registry was asked %d times in ten passes", got)
	}
	n.write(map[string]string{"/etc/docker/certs.d/" + n.registry.Host + "/ca.crt": string(n.ca.PEM())})
	n.pulls()
	g.set("open")
	agent.decides(daemon.Docker, "leave trusted").clean(t)
	n.same("docker.service", docker)
	agent.stop()
	if asked := g.asked(); !strings.HasSuffix(asked, "waiting_for_slot enter leave") {
		t.Errorf("the gate was asked %q", asked)
	}
}

// TestBoxWindow: a restart waits for its window, and nobody has to say when that
// opens.
func TestBoxWindow(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	docker := n.unit("docker.service")
	g := newGate(t, false)
	g.set("window")
	n.give(n.ca)
	agent := startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, g.used, every(time.Hour)))
	// The watcher of the source makes a second pass now and then, and nobody
	// more of them.
	agent.until(time.Minute, func(r report) error {
		if _, passes := agent.last(); r.decided(daemon.Docker) != "pending outside_window" || passes < 4 {
			return fmt.Errorf("%d passes, %s", passes, r.decided(daemon.Docker))
		}
		return nil
	})
	n.same("docker.service", docker)
	g.set("open")
	agent.decides(daemon.Docker, "leave up_to_date").clean(t)
	n.renewed("docker.service", docker)
	agent.stop()
	if asked := g.asked(); !strings.HasSuffix(asked, "outside_window enter leave") {
		t.Errorf("the gate was asked %q", asked)
	}
}

// TestBoxKilledHolding: the agent is killed in its restart. The next one finishes
// that without asking, because systemd is at it.
func TestBoxKilledHolding(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	before := n.starts("docker.service")
	n.give(n.ca)
	open, shut := newGate(t, true), newGate(t, false)
	agent := startAgent(t, n.lab.Node(), n.spec("once", dockerOnly, open.used, func(sp *spec) { sp.KillFrom, sp.KillAt = "restart", 1 }))
	if step, killed := agent.killed(); !killed {
		t.Fatalf("it was not killed; the log:\n%s", agent.text())
	} else {
		t.Logf("killed at %s", step)
	}
	open.expect("enter")
	agent = startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, shut.used, every(300*time.Millisecond)))
	agent.decides(daemon.Docker, "leave up_to_date").clean(t)
	agent.stop()
	shut.expect("")
	if got := n.starts("docker.service") - before; got != 1 {
		t.Errorf("docker was started %d times", got)
	}
	n.pulls()

	// One that is dead because of such a restart is brought up, too.
	docker := n.unit("docker.service")
	n.run("systemctl", "stop", "docker.socket", "docker.service")
	n.editState(func(st *state) {
		rt := st.Runtimes[daemon.Docker]
		rt.Intent = &intent{Set: rt.History.Set, Invocation: docker.invocation, At: time.Now()}
		st.Runtimes[daemon.Docker] = rt
	})
	n.once(dockerOnly, shut.used).clean(t)
	shut.expect("")
	n.renewed("docker.service", docker)
}

// TestBoxUnhealthy: docker does not come back from its restart. The permission is
// kept until it is healthy.
func TestBoxUnhealthy(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	const dropIn = "/etc/systemd/system/docker.service.d/broken.conf"
	n.write(map[string]string{dropIn: "[Service]\nExecStartPre=/bin/false\n"})
	n.run("systemctl", "daemon-reload")
	n.give(n.ca)
	g := newGate(t, true)
	agent := startAgent(t, n.lab.Node(), n.spec("run", dockerOnly, g.used, every(300*time.Millisecond)))
	agent.until(3*time.Minute, func(r report) error {
		if got := r.decided(daemon.Docker); got != "pending restart_failed" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	_, passes := agent.last()
	agent.passed(passes + 2)
	g.expect("enter")
	if want := `msg="the restart slot is kept until the daemon is healthy`; strings.Count(agent.text(), want) != 1 {
		t.Errorf("the log does not say once %s:\n%s", want, agent.text())
	}
	n.run("sh", "-c", "rm "+dropIn+" && systemctl daemon-reload && systemctl reset-failed docker.service docker.socket; systemctl start docker.service")
	err := lab.Until(t.Context(), time.Minute, func() error {
		if got := g.asked(); got != "enter leave" {
			return fmt.Errorf("the gate was asked %q", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	agent.stop()
}
