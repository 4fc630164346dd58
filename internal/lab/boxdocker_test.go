package lab

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func bootDocker(t *testing.T, l *Lab, cfg BoxConfig) *Box {
	t.Helper()
	b := boot(t, l, cfg)
	if err := b.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBoxPull proves that dockerd and containerd refuse a registry whose CA they
// don't know, and pull from it as soon as they do. What they pull can be run.
func TestBoxPull(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	ca := newCA(t, "root")
	r := addRegistry(t, l, registryName, serverCert(t, ca, registryName))
	ref := push(t, r, "team/app:1")
	b := bootDocker(t, l, BoxConfig{})
	for _, test := range []struct {
		name, dir string
		pull      func() error
	}{
		{"docker", "etc/docker/certs.d", func() error { return b.Pull(t.Context(), ref) }},
		{"containerd", "etc/containerd/certs.d", func() error { return b.CRIPull(t.Context(), ref) }},
	} {
		if n := r.Requests(); test.name == "docker" && n != 0 {
			t.Errorf("%d requests before anybody was asked", n)
		}
		if err := test.pull(); err == nil || !strings.Contains(err.Error(), "x509: certificate signed by unknown authority") {
			t.Errorf("%s without the CA: %v", test.name, err)
		}
		before := r.Requests()
		if err := writeFile(b.Root(), filepath.Join(test.dir, r.Host, "ca.crt"), string(ca.PEM()), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := test.pull(); err != nil {
			t.Errorf("%s with the CA: %v", test.name, err)
		}
		if r.Requests() == before {
			t.Errorf("%s pulled without a request", test.name)
		}
	}
	pid, err := b.DockerRun(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if got := runInBox(t, b, "cat", "/proc/"+strconv.Itoa(pid)+"/comm"); got != "pause\n" {
		t.Errorf("the container's process is %q", got)
	}
	runPod(t, b, CRIPodConfig{Name: "pulled", Image: ref, Command: []string{"/pause"}})
}

// TestBoxLiveRestore proves what a restart of dockerd does to its containers.
func TestBoxLiveRestore(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{true, false} {
		t.Run(strconv.FormatBool(live), func(t *testing.T) {
			t.Parallel()
			b := bootDocker(t, ForTest(t), BoxConfig{LiveRestore: live})
			pid, err := b.RunContainer(t.Context(), "build")
			if err != nil {
				t.Fatal(err)
			}
			before := unit(t, b, "docker.service")
			runInBox(t, b, "systemctl", "restart", "docker.service")
			want := 0
			if live {
				want = pid
			}
			if got, err := b.ContainerPid(t.Context(), "build"); got != want || err != nil {
				t.Errorf("its pid is %d, %v, want %d; it was %d", got, err, want, pid)
			}
			after := unit(t, b, "docker.service")
			if got := unit(t, b, "docker.socket"); got.ActiveState != "active" || got.MainPID != 0 {
				t.Errorf("docker's socket is %+v", got)
			}
			if got := unit(t, b, "no-such.service"); got.ActiveState != "inactive" || !got.Started.IsZero() {
				t.Errorf("a unit that is not there is %+v", got)
			}
			if after.InvocationID == before.InvocationID || after.MainPID == before.MainPID || !after.Started.After(before.Started) || after.ActiveState != "active" {
				t.Errorf("the restart is not to be seen: %+v, %+v", before, after)
			}
		})
	}
}

func unit(t *testing.T, b *Box, name string) Unit {
	t.Helper()
	u, err := b.Unit(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestParseUnit(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"",
		"ActiveState=\n",
		"ActiveState=active\nMainPID=x\n",
		"ActiveState=active\nNRestarts=\n",
		"ActiveState=active\nActiveEnterTimestamp=yesterday\n",
	} {
		if u, err := parseUnit(text); err == nil {
			t.Errorf("%q: %+v", text, u)
		}
	}
}
