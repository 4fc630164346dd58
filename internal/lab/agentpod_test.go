package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// agentImage is an image with a shell and chroot of this machine, for something
// that works on its node as an agent does.
func agentImage(t *testing.T, l *Lab) Image {
	t.Helper()
	img := Image{Name: "localhost/lab/agent:1", Entrypoint: []string{"/bin/sh"}, Files: map[string]string{}}
	for name, path := range map[string]string{"bin/sh": "/bin/sh", "bin/chroot": "/usr/sbin/chroot"} {
		img.Files[name] = path
		libraries, err := libraries(l.ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, library := range libraries {
			img.Files[library[1:]] = library
		}
	}
	return img
}

// TestAgentPod proves that a privileged pod of an image of one's own can work on
// the node, and has no more than it was given.
func TestAgentPod(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	b := boot(t, l, BoxConfig{Files: map[string]string{"srv/ca/root.pem": "a root\n"}})
	img := agentImage(t, l)
	if err := b.Load(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	cfg := CRIPodConfig{
		Name: "agent", Image: img.Name,
		Command:    []string{"/bin/sh", "-c", "echo started; echo to standard error >&2; exec /bin/chroot /host sleep 1000"},
		Mounts:     []Mount{{Host: "/", Container: "/host", Follow: true}, {Host: "/srv/ca", Container: "/ca", ReadOnly: true}},
		Privileged: true,
	}
	agent := runPod(t, b, cfg)
	waitFor(t, "its log", func() bool {
		log, err := agent.Log("")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(log, "started\n") && strings.Contains(log, "to standard error\n")
	})
	if _, err := agent.Log("other"); err == nil {
		t.Error("a container that is not there has a log")
	}
	cfg.Name, cfg.Privileged = "plain", false
	plain := runPod(t, b, cfg)

	runInBox(t, b, "sh", "-c", "mkdir /srv/later; mount -t tmpfs tmpfs /srv/later; echo later >/srv/later/file")
	for _, test := range []struct {
		name string
		pod  *CRIPod
		run  string
		want string // what it prints; none: it fails
	}{
		{"reads what is mounted", agent, "read x </ca/root.pem; echo $x", "a root\n"},
		{"does not write there", agent, "echo x >/ca/new && echo done", ""},
		{"writes to the node", agent, "echo x >/host/etc/new && echo done", "done\n"},
		{"sees what is mounted later", agent, "read x </host/srv/later/file; echo $x", "later\n"},
		{"is privileged", agent, "/bin/chroot /host mount -t tmpfs tmpfs /mnt && echo done", "done\n"},
		{"is not privileged", plain, "/bin/chroot /host mount -t tmpfs tmpfs /mnt && echo done", ""},
	} {
		out, err := test.pod.Exec(t.Context(), "", "/bin/sh", "-c", test.run)
		if out != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: %q, %v", test.name, out, err)
		}
	}
	if got := runInBox(t, b, "cat", "/etc/new"); got != "x\n" {
		t.Errorf("the node got %q", got)
	}
}

// TestAgentContainer proves that a container of dockerd, with no more rights than
// any, can have the node's systemd restart the dockerd that it runs under, and
// comes back after that.
func TestAgentContainer(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	b := bootDocker(t, l, BoxConfig{})
	img := agentImage(t, l)
	if err := b.Load(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	before := unit(t, b, "docker.service")
	_, err := b.DockerRun(t.Context(), "--name", "agent", "--restart", "always", "-v", "/:/host", img.Name, "-c", `
trap exit TERM
echo start >>/host/srv/starts
while [ ! -e /host/srv/go ]; do /bin/chroot /host sleep 0.1; done # docker answers who ran this
if [ -e /host/srv/once ]; then
	/bin/chroot /host sleep 1000 &
	wait
fi
: >/host/srv/once
exec /bin/chroot /host dbus-send --system --print-reply --dest=org.freedesktop.systemd1 /org/freedesktop/systemd1 \
	org.freedesktop.systemd1.Manager.RestartUnit string:docker.service string:replace`)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(b.Root(), "srv/go", "", 0o644); err != nil {
		t.Fatal(err)
	}
	starts := func() int {
		content, err := os.ReadFile(filepath.Join(b.Root(), "srv/starts"))
		if err := ignoreMissing(err); err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(content), "\n")
	}
	waitFor(t, "its second start", func() bool { return starts() > 1 })
	waitFor(t, "docker's restart", func() bool {
		u := unit(t, b, "docker.service")
		return u.ActiveState == "active" && u.InvocationID != before.InvocationID
	})
	waitFor(t, "the container", func() bool {
		pid, err := b.ContainerPid(t.Context(), "agent")
		return err == nil && pid != 0
	})
}

func TestParseLog(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0).UTC().Format(time.RFC3339Nano)
	text := fmt.Sprintf("%[1]s stdout F one\n%[1]s stderr P two \n%[1]s stderr F and  more\n%[1]s stdout F \n%[1]s std", now)
	if diff := cmp.Diff("one\ntwo and  more\n\n", parseLog(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
