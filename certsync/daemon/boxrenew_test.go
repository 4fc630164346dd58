package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

var (
	dockerConfig     = Config{Name: Docker, Unit: "docker.service", Restart: Auto}
	containerdConfig = Config{Name: Containerd, Unit: "containerd.service", Restart: Auto}
)

const liveRestore = `{"live-restore": true}`

// write writes a file of the box while it runs.
func (n *node) write(t *testing.T, name, content string) {
	t.Helper()
	name = filepath.Join(n.Root(), name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (n *node) look(t *testing.T, cfg Config) Facts {
	t.Helper()
	f, err := Look(t.Context(), n.host, n.sd, cfg, dockerConfig.Unit)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (n *node) ask(t *testing.T, name Name, registry string) Verdict {
	t.Helper()
	a := Ask(t.Context(), n.host, name, registry)
	t.Logf("%s of %s: %s: %s", name, registry, a.Verdict, a.Text)
	return a.Verdict
}

// renew restarts a daemon and checks that it is another run of it, and healthy.
func (n *node) renew(t *testing.T, cfg Config) (before, after Facts) {
	t.Helper()
	before = n.look(t, cfg)
	began := time.Now()
	after, err := Renew(t.Context(), n.host, n.sd, cfg, before)
	if err != nil {
		t.Fatalf("%v\n%s", err, n.run(t, "systemctl", "status", "--no-pager", "--full", cfg.Unit))
	}
	t.Logf("%s was restarted in %v", cfg.Unit, time.Since(began))
	if after.Unit.InvocationID == before.Unit.InvocationID || !after.Healthy || !after.Unit.Active() {
		t.Errorf("after the restart it is %+v", after)
	}
	return before, after
}

// startDocker starts docker with the image of a container that does nothing.
func (n *node) startDocker(t *testing.T) {
	t.Helper()
	if err := n.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.run(t, "sh", "-c", "ctr -n k8s.io images export - localhost/lab/pause:1 | docker load")
}

// reload switches docker's live-restore while it runs, and waits until it has: its unit's
// reload is a signal, after which systemctl does not wait.
func (n *node) reload(t *testing.T, on bool) {
	t.Helper()
	want := strconv.FormatBool(on)
	n.write(t, "etc/docker/daemon.json", `{"live-restore": `+want+`}`)
	n.run(t, "systemctl", "reload", "docker.service")
	if err := lab.Until(t.Context(), 20*time.Second, func() error {
		if got := strings.TrimSpace(n.run(t, "docker", "info", "--format", "{{.LiveRestoreEnabled}}")); got != want {
			return fmt.Errorf("docker's live-restore is %s", got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// container runs a container and returns its pid.
func (n *node) container(t *testing.T, name string) string {
	t.Helper()
	n.run(t, "docker", "run", "--detach", "--name", name, "--stop-timeout", "1", "localhost/lab/pause:1")
	return n.pid(t, name)
}

// pid is the pid of a container, 0 when it does not run.
func (n *node) pid(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(n.run(t, "docker", "inspect", "--format", "{{.State.Pid}}", name))
}

// Restarts of the real daemons, with live-restore: the container lives on, and
// docker is never left dead.
func TestBoxRenew(t *testing.T) {
	t.Parallel()
	n := bootNode(t, map[string]string{"etc/docker/daemon.json": liveRestore})
	n.startDocker(t)
	pid := n.container(t, "one")
	alive := func(what string) {
		t.Helper()
		if got := n.pid(t, "one"); got != pid {
			t.Errorf("%s: the container's pid was %s and is %s", what, pid, got)
		}
	}

	n.renew(t, dockerConfig)
	alive("restart of docker")
	n.renew(t, containerdConfig)
	alive("restart of containerd")

	// Somebody else used up the starts of a minute: ours is the fourth.
	usedUp := func() {
		t.Helper()
		n.run(t, "systemctl", "reset-failed", "docker.service")
		for range 3 {
			n.run(t, "systemctl", "restart", "docker.service")
		}
	}
	usedUp()
	n.renew(t, dockerConfig)
	alive("restart after three by somebody else")

	// A fourth that is not ours leaves docker dead, and its socket.
	usedUp()
	if _, err := n.Run(t.Context(), "systemctl", "restart", "docker.service"); err == nil {
		t.Fatal("docker has no start limit")
	}
	got := n.run(t, "sh", "-c", "systemctl show --value --property=ActiveState docker.service docker.socket || true")
	if states := strings.Fields(got); !slices.Equal(states, []string{"failed", "failed"}) {
		t.Fatalf("docker and its socket are %s", states)
	}
	n.renew(t, dockerConfig)
	alive("restart of what was dead")

	// It fails until its start limit is hit, and would not fail again.
	n.write(t, "etc/systemd/system/docker.service.d/fails.conf", "[Service]\nExecStartPre=/bin/sh -c "+
		"'n=$$(cat /run/starts || echo 0); echo $$((n+1)) >/run/starts; test $$n -ge 3'\n")
	n.run(t, "systemctl", "daemon-reload")
	n.renew(t, dockerConfig)
	if got := n.run(t, "cat", "/run/starts"); got != "4\n" {
		t.Errorf("docker was started %s times", got)
	}
	alive("restart that hits the start limit")

	// systemd refuses, and nothing happens.
	n.write(t, "etc/systemd/system/docker.service.d/refuses.conf", "[Unit]\nRefuseManualStart=yes\n")
	n.run(t, "systemctl", "daemon-reload")
	before := n.look(t, dockerConfig)
	if after, err := Renew(t.Context(), n.host, n.sd, dockerConfig, before); err == nil || !strings.Contains(err.Error(), "efused") || !after.Healthy {
		t.Errorf("systemd refuses: %+v, %v", after.Unit, err)
	}
	if after := n.look(t, dockerConfig); after.Unit.InvocationID != before.Unit.InvocationID {
		t.Error("systemd refuses, and it is another run")
	}
	n.write(t, "etc/systemd/system/docker.service.d/refuses.conf", "")

	// One that cannot be brought back, and somebody who does not wait: the error says how it is, and that.
	n.write(t, "etc/systemd/system/docker.service.d/fails.conf", "[Service]\nExecStartPre=/bin/sh -c 'echo >>/run/tries; exit 1'\nRestart=no\n")
	n.run(t, "systemctl", "daemon-reload")
	ctx, cancel := context.WithCancel(t.Context())
	before = n.look(t, dockerConfig)
	var watching sync.WaitGroup
	watching.Go(func() {
		defer cancel()
		err := lab.Until(t.Context(), time.Minute, func() error {
			tries, err := os.ReadFile(filepath.Join(n.Root(), "run/tries"))
			if len(tries) < 2 {
				return fmt.Errorf("docker was started %d times: %w", len(tries), err)
			}
			u, err := n.Unit(t.Context(), "docker.service")
			if err == nil && u.ActiveState != "failed" {
				err = fmt.Errorf("docker is %s", u.ActiveState)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	after, err := Renew(ctx, n.host, n.sd, dockerConfig, before)
	watching.Wait()
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "docker.service is failed (exit-code)") || after.Healthy || after.Unit.ActiveState != "failed" {
		t.Errorf("a docker that cannot start: %+v, %v", after.Unit, err)
	}
}

// docker's unit requires containerd's, so that it is restarted with it.
func TestBoxRenewBoth(t *testing.T) {
	t.Parallel()
	n := bootNode(t, map[string]string{
		"etc/docker/daemon.json":                            liveRestore,
		"etc/systemd/system/docker.service.d/requires.conf": "[Unit]\nRequires=containerd.service\nAfter=containerd.service\n",
	})
	registry := at(n.registry(t, n.stranger, answers(404, "", "")))
	n.startDocker(t)
	pid := n.container(t, "one")
	for _, d := range []Name{Docker, Containerd} {
		if got := n.ask(t, d, registry); got != Untrusted {
			t.Errorf("%s without the CA: %s", d, got)
		}
	}
	n.write(t, "etc/ssl/certs/ca-certificates.crt", string(n.stranger.PEM()))
	docker := n.look(t, dockerConfig)
	n.renew(t, containerdConfig)
	after := n.look(t, dockerConfig)
	if !after.Healthy || after.Unit.InvocationID == docker.Unit.InvocationID {
		t.Errorf("docker was not restarted with it: %+v", after.Unit)
	}
	for _, d := range []Name{Docker, Containerd} {
		if got := n.ask(t, d, registry); got != Trusted {
			t.Errorf("%s after the restart: %s", d, got)
		}
	}
	if got := n.pid(t, "one"); got != pid {
		t.Errorf("the container's pid was %s and is %s", pid, got)
	}

	// Without live-restore, and with a container since the decision.
	n.reload(t, false)
	before := n.look(t, dockerConfig)
	before.Containers = 0
	got, err := Renew(t.Context(), n.host, n.sd, dockerConfig, before)
	if !errors.Is(err, ErrNotSafe) || got.Containers != 1 {
		t.Errorf("with a container that nobody knew of: %d containers, %v", got.Containers, err)
	}
	if now := n.look(t, dockerConfig); now.Unit.InvocationID != before.Unit.InvocationID || n.pid(t, "one") != pid {
		t.Error("it was restarted all the same")
	}
	before.Unit.ActiveState = "active"
	n.run(t, "systemctl", "stop", "containerd.service")
	if got, err := Renew(t.Context(), n.host, n.sd, containerdConfig, before); !errors.Is(err, ErrNotSafe) || got.Unit.ActiveState != "inactive" {
		t.Errorf("somebody stopped it: %+v, %v", got.Unit, err)
	}
	n.run(t, "systemctl", "start", "docker.service")

	// The restart that stops containers is told to.
	n.container(t, "two")
	disruptive := dockerConfig
	disruptive.Disruptive = true
	n.renew(t, disruptive)
	if got := n.pid(t, "two"); got != "0" {
		t.Errorf("the container lives on with pid %s", got)
	}
}
