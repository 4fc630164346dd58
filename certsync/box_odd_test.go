package certsync

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// running starts an agent and waits until all is well.
func (n *node) running(change ...func(*spec)) *child {
	n.t.Helper()
	agent := startAgent(n.t, n.lab.Node(), n.spec("run", append(change, every(500*time.Millisecond))...))
	agent.until(time.Minute, func(r report) error {
		if len(r.Wrong) > 0 {
			return fmt.Errorf("wrong: %v", r.Wrong)
		}
		return nil
	})
	return agent
}

// decides waits until a running agent has decided this.
func (c *child) decides(name daemon.Name, want string) report {
	c.t.Helper()
	return c.until(time.Minute, func(r report) error {
		if got := r.decided(name); got != want {
			return fmt.Errorf("%s: %s, want %s; wrong: %v", name, got, want, r.Wrong)
		}
		return nil
	})
}

// TestBoxRefused: systemd refuses the restart. It was none, and that is said.
func TestBoxRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	n.write(map[string]string{"/etc/systemd/system/docker.service.d/refuse.conf": "[Unit]\nRefuseManualStart=yes\n"})
	n.run("systemctl", "daemon-reload")
	docker := n.unit("docker.service")
	n.give(n.ca)
	for range 2 {
		r := n.once(dockerOnly)
		if got := r.decided(daemon.Docker); got != "pending restart_failed" {
			t.Errorf("decided: %s", got)
		}
	}
	if got := n.once(dockerOnly, named, noCertsD).decided(daemon.Docker); got != "pending restart_failed" {
		t.Errorf("decided, with the registry: %s", got)
	}
	n.same("docker.service", docker)
}

// TestBoxStateNotKept: a restart that cannot be written down is not made, because
// it could be made again and again.
func TestBoxStateNotKept(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.run("sh", "-c", "mkdir -p /var/lib/nodestead && chown 1000 /var/lib/nodestead")
	n.give(n.ca)
	r := n.once(dockerOnly)
	if got := r.decided(daemon.Docker); got != "pending state_not_kept" {
		t.Errorf("decided: %s", got)
	}
	n.whole(n.ca) // the CA is installed all the same
	n.same("docker.service", docker)
	n.run("chown", "0", "/var/lib/nodestead")
	n.once(dockerOnly).clean(t)
	n.renewed("docker.service", docker)
	n.pulls()
}

// TestBoxFreshFacts: what was known of docker when it was last looked at wholly is
// not what counts when it comes to a restart: containers were started since, or
// its configuration was broken.
func TestBoxFreshFacts(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{Files: map[string]string{
		"etc/systemd/system/docker.service.d/requires.conf": "[Unit]\nRequires=containerd.service\nAfter=containerd.service\n",
	}})
	n.give(n.ca)
	agent := n.running()
	alive := n.sleeper()
	docker := n.unit("docker.service")
	next := newCA(t, "next")
	n.give(n.ca, next)
	agent.decides(daemon.Docker, "pending no_live_restore")
	agent.decides(daemon.Containerd, "pending no_live_restore") // its restart stops docker
	n.same("docker.service", docker)
	if !alive() {
		t.Fatal("the container is gone")
	}
	agent.stop()

	n.run("docker", "rm", "--force", "sleeper")
	agent = n.running()
	docker = n.unit("docker.service")
	n.write(map[string]string{"/etc/docker/daemon.json": `{"live-restore": true,`})
	n.give(n.ca, next, newCA(t, "third"))
	agent.decides(daemon.Docker, "pending config_broken")
	agent.decides(daemon.Containerd, "pending config_broken")
	n.same("docker.service", docker)
	agent.stop()
}

// TestBoxAdopt: what is installed stays when the state is lost and a source cannot
// be read wholly, if it is ours for sure; and only until a source gives it again.
func TestBoxAdopt(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	evil := newCA(t, "somebody's")
	dir := "/etc/docker/certs.d/any.example.test"
	n.write(map[string]string{dir + "/nodestead.crt": string(evil.PEM())})
	for _, name := range []string{dir, dir + "/nodestead.crt"} {
		if err := os.Chown(filepath.Join(n.Root(), name), 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	secret := func(ca *lab.CA) { n.put(map[string][]byte{"ca.crt": ca.PEM(), "README": []byte("hello")}) }
	secret(n.ca)
	n.once(dockerOnly)
	n.whole(n.ca) // and nothing of somebody else's
	next := newCA(t, "next")
	secret(next)
	n.once(dockerOnly)
	n.whole(next) // a new node is not unsure because of a file that is no certificate

	lose := func() {
		t.Helper()
		if err := os.Remove(filepath.Join(n.Root(), stateFile)); err != nil {
			t.Fatal(err)
		}
	}
	third := newCA(t, "third")
	lose()
	secret(third)
	r := n.once(dockerOnly)
	n.whole(next, third)
	if !strings.Contains(fmt.Sprint(r.Anchors), fingerprintOf(next)) {
		t.Errorf("what stays is not among the anchors: %v", r.Anchors)
	}
	n.once(dockerOnly)
	n.whole(next, third)
	r = n.once(dockerOnly, func(sp *spec) { sp.Config.Allow = []string{fingerprintOf(third)} })
	n.whole(third)
	lose()
	n.give(next)
	r = n.once(dockerOnly)
	if len(r.Wrong) != 1 || !strings.Contains(r.Wrong[0], dir) { // what is somebody else's is left alone
		t.Errorf("wrong: %v", r.Wrong)
	}
	n.whole(next)
}

// TestBoxStartedBetween: the bundle lost our CA while no agent ran, and docker was
// started then. The next agent mends the bundle, and docker is restarted for it.
func TestBoxStartedBetween(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.give(n.ca)
	r := n.once(dockerOnly, named, noCertsD)
	r.clean(t)
	if r.restarts(daemon.Docker) > 0 {
		t.Fatal("docker was restarted, although it had made no check")
	}
	n.write(map[string]string{"/etc/ssl/certs/ca-certificates.crt": strings.Replace(n.bundle(), string(n.ca.PEM()), "", 1)})
	n.run("sh", "-c", "rm -f /etc/ssl/certs/nodestead-*.pem; find /etc/ssl/certs -xtype l -delete")
	n.run("systemctl", "restart", "docker.service")
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.once(dockerOnly).clean(t)
	n.whole(n.ca)
	n.renewed("docker.service", docker)
	n.pulls()
}

// TestBoxToolFails: while the tool fails the daemons are not asked, and what began
// then is not taken to have loaded the anchors.
func TestBoxToolFails(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.run("sh", "-c", "mv /usr/sbin/update-ca-certificates /usr/sbin/real; printf '#!/bin/sh\necho no room; exit 1\n' >/usr/sbin/update-ca-certificates; chmod 755 /usr/sbin/update-ca-certificates")
	n.give(n.ca)
	silent := n.registry.Connections()
	agent := startAgent(t, n.lab.Node(), n.spec("run", named, noCertsD, dockerOnly, every(300*time.Millisecond)))
	r := agent.passed(3)
	if got := r.decided(daemon.Docker); got != "leave store_not_ready" || !strings.Contains(strings.Join(r.Wrong, "\n"), "no room") {
		t.Errorf("decided: %s; wrong: %v", got, r.Wrong)
	}
	if got := n.registry.Connections() - silent; got != 0 {
		t.Errorf("docker was asked %d times before the CA was there", got)
	}
	docker := n.unit("docker.service")
	n.run("mv", "/usr/sbin/real", "/usr/sbin/update-ca-certificates")
	n.run("touch", "/etc/ca-certificates.conf") // so that it is tried again at once
	agent.decides(daemon.Docker, "leave trusted")
	n.same("docker.service", docker)
	agent.stop()
}

// TestBoxOtherDaemon: one daemon that cannot be reached keeps no other from what it
// needs, and is said to be wrong; but for containerd, without which docker might
// not come back.
func TestBoxOtherDaemon(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.run("mv", "/run/containerd/containerd.sock", "/run/containerd/elsewhere.sock")
	n.give(n.ca)
	r := n.once()
	if got := r.decided(daemon.Docker); got != "pending not_made" || !strings.Contains(strings.Join(r.Wrong, "\n"), "containerd could not be looked at") {
		t.Errorf("docker: %s; wrong: %v", got, r.Wrong)
	}
	n.same("docker.service", docker)

	n.run("mv", "/run/containerd/elsewhere.sock", "/run/containerd/containerd.sock")
	n.run("mkdir", "/run/crio")
	if err := unix.Mknod(filepath.Join(n.Root(), "run/crio/crio.sock"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	r = n.once(func(sp *spec) {
		sp.Config.Runtimes = append(sp.Config.Runtimes, daemon.Config{Name: daemon.CRIO, Unit: "crio.service", Restart: daemon.Auto})
	})
	if !strings.Contains(strings.Join(r.Wrong, "\n"), "crio could not be looked at") {
		t.Errorf("wrong: %v", r.Wrong)
	}
	n.renewed("docker.service", docker)
	n.pulls()
}

// TestBoxOldIntent: a docker that somebody stopped is not started because of a
// restart that was written down long ago.
func TestBoxOldIntent(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.give(n.ca)
	n.once(dockerOnly).clean(t)
	intend := func(age time.Duration) {
		t.Helper()
		invocation := n.unit("docker.service").invocation
		n.editState(func(st *state) {
			rt := st.Runtimes[daemon.Docker]
			rt.Intent = &intent{Set: "x", Invocation: invocation, At: time.Now().Add(-age)}
			st.Runtimes[daemon.Docker] = rt
		})
		n.run("systemctl", "stop", "docker.socket", "docker.service")
	}
	intend(time.Hour)
	if got := n.once(dockerOnly).decided(daemon.Docker); got != "leave not_running" {
		t.Errorf("decided: %s", got)
	}
	if out, err := n.Run(t.Context(), "systemctl", "is-active", "docker.service"); err == nil {
		t.Errorf("docker was started: %s", out)
	}
	n.run("systemctl", "start", "docker.socket", "docker.service")
	intend(time.Second)
	n.once(dockerOnly)
	n.unit("docker.service") // it may be us who left it so
}

// TestBoxOwnCertDir: what was written to a certs.d directory of the daemon's own
// is taken back although the daemon is stopped.
func TestBoxOwnCertDir(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{Setup: fewRoots + ` && sed -i 's#/etc/containerd/certs.d#/etc/registries.d#' /etc/containerd/config.toml && mkdir -p /etc/registries.d`})
	n.give(n.ca)
	n.once(named).clean(t)
	if _, err := os.Stat(filepath.Join(n.Root(), "etc/registries.d", registryName+":5000", "nodestead.crt")); err != nil {
		t.Fatal(err)
	}
	n.run("systemctl", "stop", "docker.socket", "docker.service", "containerd.service")
	startAgent(t, n.lab.Node(), n.spec("uninstall", named)).finish()
	if left := n.run("find", "/etc/registries.d", "/etc/docker/certs.d", "/usr/local/share/ca-certificates", "-type", "f"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// editState changes the state on the node.
func (n *node) editState(change func(*state)) {
	n.t.Helper()
	name := filepath.Join(n.Root(), stateFile)
	b, err := os.ReadFile(name)
	if err != nil {
		n.t.Fatal(err)
	}
	st := newState()
	if err := json.Unmarshal(b, &st); err != nil {
		n.t.Fatalf("the state is broken: %v\n%s", err, b)
	}
	change(&st)
	b, err = json.Marshal(st)
	if err := errors.Join(err, os.WriteFile(name, b, 0o600)); err != nil {
		n.t.Fatal(err)
	}
}
