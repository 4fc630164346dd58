package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodestead/nodestead/certsync/host"
)

// What the real daemons tell of themselves; and that to look makes them load no
// roots: they are asked after the CA came, and trust it.
func TestBoxLook(t *testing.T) {
	t.Parallel()
	n := bootNode(t, map[string]string{
		"etc/systemd/system/docker.service.d/requires.conf": "[Unit]\nRequires=containerd.service\nAfter=containerd.service\n",
	})
	registry := n.registry(t, n.stranger, answers(404, "", ""))
	ignore := cmp.Options{
		cmpopts.IgnoreFields(host.Unit{}, "InvocationID", "Started", "MainPID", "RequiredBy"), cmpopts.EquateEmpty(),
	}

	n.run(t, "systemctl", "start", "docker.socket")
	want := Facts{Present: true, CertDirs: []string{"/etc/docker/certs.d"}, Unit: host.Unit{
		Name: "docker.service", ActiveState: "inactive", Result: "success", TriggeredBy: []string{"docker.socket"},
	}}
	if diff := cmp.Diff(want, n.look(t, dockerConfig), ignore); diff != "" {
		t.Errorf("docker is stopped and its socket is there (-want +got)\n%s", diff)
	}
	if got := strings.Fields(n.run(t, "systemctl", "show", "--property=ActiveState,Job", "docker.service")); !slices.Equal(got, []string{"ActiveState=inactive", "Job="}) {
		t.Errorf("to look at it has started it: %s", got)
	}

	n.startDocker(t)
	want = Facts{
		Present: true, Healthy: true, CertDirs: []string{"/etc/docker/certs.d"},
		Unit: host.Unit{Name: "docker.service", ActiveState: "active", Result: "success", TriggeredBy: []string{"docker.socket"}},
	}
	docker := n.look(t, dockerConfig)
	if docker.Version == "" || docker.Unit.InvocationID == "" || docker.Unit.MainPID <= 1 || time.Since(docker.Unit.Started).Abs() > time.Minute {
		t.Errorf("docker is %+v", docker)
	}
	ignoreVersion := cmpopts.IgnoreFields(Facts{}, "Version")
	if diff := cmp.Diff(want, docker, ignore, ignoreVersion); diff != "" {
		t.Errorf("docker (-want +got)\n%s", diff)
	}
	n.container(t, "one")
	n.container(t, "two")
	n.reload(t, true)
	want.Containers, want.LiveRestore = 2, true
	if diff := cmp.Diff(want, n.look(t, dockerConfig), ignore, ignoreVersion); diff != "" {
		t.Errorf("docker with containers and live-restore (-want +got)\n%s", diff)
	}

	n.write(t, "etc/docker/daemon.json", "{\"live-restore\": true,}")
	if got := n.look(t, dockerConfig).BrokenConfig; !strings.HasPrefix(got, "/etc/docker/daemon.json: invalid character") {
		t.Errorf("docker with a broken configuration: %q", got)
	}
	n.write(t, "etc/docker/daemon.json", liveRestore)
	config := n.run(t, "cat", "/etc/containerd/config.toml")
	n.write(t, "etc/containerd/config.toml", config+"[")
	if got := n.look(t, containerdConfig).BrokenConfig; !strings.HasPrefix(got, "/etc/containerd/config.toml: ") {
		t.Errorf("containerd with a broken configuration: %q", got)
	}
	n.write(t, "etc/containerd/config.toml", config)

	containerd := n.look(t, containerdConfig)
	want = Facts{
		Present: true, Healthy: true, StopsDocker: true, CertDirs: []string{"/etc/containerd/certs.d"},
		Unit: host.Unit{Name: "containerd.service", ActiveState: "active", Result: "success"},
	}
	if diff := cmp.Diff(want, containerd, ignore, ignoreVersion); diff != "" {
		t.Errorf("containerd (-want +got)\n%s", diff)
	}

	if f, err := Look(t.Context(), n.host, n.sd, Config{Name: Docker, Unit: "snap.docker.dockerd.service"}, ""); err != nil || f.NoUnit != "no such unit" || !f.Healthy || !f.Present {
		t.Errorf("a unit that is not there: %+v, %v", f, err)
	}
	if f, err := Look(t.Context(), n.host, n.sd, Config{Name: CRIO, Unit: "crio.service"}, ""); err != nil || f.Present || f.Healthy {
		t.Errorf("CRI-O, which is not there: %+v, %v", f, err)
	}

	n.write(t, "etc/ssl/certs/ca-certificates.crt", string(n.trusted.PEM())+string(n.stranger.PEM()))
	for _, d := range []Name{Docker, Containerd} {
		if got := n.ask(t, d, at(registry)); got != Trusted {
			t.Errorf("%s had loaded its roots before the CA came: %s", d, got)
		}
	}

	// As Docker's own packages have it.
	n.write(t, "etc/containerd/config.toml", "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"+config)
	_, containerd = n.renew(t, containerdConfig)
	if !containerd.NoCRI || containerd.CertDirs != nil {
		t.Errorf("containerd without CRI: %+v", containerd)
	}
}

// Which of Go's variables keep the store from a daemon: one alone does not.
func TestBoxOtherStore(t *testing.T) {
	t.Parallel()
	n := bootNode(t, nil)
	registry := at(n.registry(t, n.trusted, answers(404, "", "")))
	if err := n.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		environment, other string
		want               Verdict
	}{
		{"", "", Trusted},
		{"SSL_CERT_FILE=/etc/motd", "", Trusted},
		{"SSL_CERT_DIR=/mnt", "", Trusted},
		{"SSL_CERT_FILE=/etc/motd SSL_CERT_DIR=/mnt", "SSL_CERT_FILE=/etc/motd SSL_CERT_DIR=/mnt", Untrusted},
		{"SSL_CERT_FILE=/etc/motd SSL_CERT_DIR=/mnt:/etc/ssl/certs", "", Trusted},
		{"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt SSL_CERT_DIR=/mnt", "", Trusted},
	} {
		for _, cfg := range []Config{dockerConfig, containerdConfig} {
			n.write(t, "etc/systemd/system/"+cfg.Unit+".d/environment.conf", "[Service]\nEnvironment="+tc.environment+"\n")
		}
		n.run(t, "systemctl", "daemon-reload")
		for _, cfg := range []Config{dockerConfig, containerdConfig} {
			_, after := n.renew(t, cfg)
			if after.OtherStore != tc.other {
				t.Errorf("%s with %q: other store %q", cfg.Name, tc.environment, after.OtherStore)
			}
			if got := n.ask(t, cfg.Name, registry); got != tc.want {
				t.Errorf("%s with %q: %s, want %s", cfg.Name, tc.environment, got, tc.want)
			}
		}
	}
}
