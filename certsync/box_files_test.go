package certsync

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// owned are the places that an agent may change.
var owned = []string{"/usr/local/share/ca-certificates", "/etc/ssl/certs", "/etc/ca-certificates.conf", "/etc/docker", "/etc/containerd", "/var/lib/nodestead"}

func (n *node) snapshot(paths ...string) map[string]lab.FileState {
	n.t.Helper()
	s, err := n.Snapshot(paths...)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// write puts files on the node.
func (n *node) write(files map[string]string) {
	n.t.Helper()
	for name, content := range files {
		name = filepath.Join(n.Root(), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestBoxForeignFiles: what others have put into the store and into certs.d is
// byte for byte what it was, after an installation, a rotation and the end of it,
// and the end leaves nothing of ours.
func TestBoxForeignFiles(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	theirs, shared := newCA(t, "somebody else's"), newCA(t, "known to both")
	host := registryName + ":5000"
	n.write(map[string]string{
		"/usr/local/share/ca-certificates/theirs.crt":           string(theirs.PEM()),
		"/usr/local/share/ca-certificates/deep/shared one.crt":  string(shared.PEM()),
		"/usr/local/share/ca-certificates/nodestead.crt":        string(newCA(t, "not ours by its name").PEM()),
		"/usr/local/share/ca-certificates/README":               "not a certificate",
		"/etc/docker/certs.d/" + host + "/theirs.crt":           string(theirs.PEM()),
		"/etc/docker/certs.d/other.example.test:5000/ca.crt":    string(theirs.PEM()),
		"/etc/containerd/certs.d/other.example.test/hosts.toml": "server = \"https://other.example.test\"\n",
		"/etc/containerd/certs.d/_default/note":                 "z",
		"/var/lib/nodestead/somebody-elses":                     "w",
	})
	n.run("update-ca-certificates", "--fresh")
	before := n.snapshot(owned...)
	bundle := n.bundle()

	// containerd reads _default for a registry without a directory of its own:
	// there is something of others in it, so that it is left alone.
	n.give(n.ca, shared)
	r := n.once(named)
	if got := r.Targets["containerd/"+host]; got.InSync || !strings.Contains(got.Err, "would_be_hidden") {
		t.Errorf("containerd: %+v", got)
	}
	if !n.has(n.ca) || strings.Count(n.bundle(), "BEGIN") != strings.Count(bundle, "BEGIN")+1 {
		t.Error("the bundle does not have one more")
	}
	n.pulls()
	n.give(newCA(t, "next"), shared)
	n.once(named)
	now := n.snapshot(owned...)
	for name, was := range before {
		if strings.HasPrefix(name, "/etc/ssl/certs") && !strings.HasSuffix(name, "theirs.pem") {
			continue // the distribution's tool's
		}
		if is := now[name]; is != was && was.Mode.IsRegular() {
			t.Errorf("%s is %+v, was %+v", name, is, was)
		}
	}

	if r := startAgent(t, n.lab.Node(), n.spec("uninstall", named)).finish(); len(r.Wrong) > 0 {
		t.Errorf("uninstalled: %v", r.Wrong)
	}
	if diff := cmp.Diff(before, n.snapshot(owned...)); diff != "" {
		t.Errorf("after it all (-before +after):\n%s", diff)
	}
}

// TestBoxPlanted plants links and files with odd owners where the agent writes.
// Nothing is written elsewhere, and what is in the way is said.
func TestBoxPlanted(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{})
	host := registryName + ":5000"
	root := n.Root()
	n.write(map[string]string{"/srv/precious/nodestead.crt": "precious", "/srv/precious/trust.json": "precious", "/srv/victim": "precious"})
	precious := n.snapshot("/srv", "/etc/passwd", "/etc/shadow", "/root", "/var/spool")
	fp := fingerprintOf(n.ca)
	own := filepath.Join("usr/local/share/ca-certificates", "nodestead-"+fp+".crt")
	link := func(target, name string) error {
		name = filepath.Join(root, name)
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name))
	}
	for _, tt := range []struct {
		name  string
		plant func() error
		clear []string
		// says is what must be wrong; nothing: it is written over.
		says string
	}{
		{"a link at our file in the store", func() error { return link("/srv/victim", own) }, []string{own}, ""},
		{"a dangling link at our file", func() error { return link("/srv/nothing", own) }, []string{own}, ""},
		{"a FIFO at our file", func() error { return unix.Mkfifo(filepath.Join(root, own), 0o644) }, []string{own}, own},
		{"a directory at our file", func() error { return os.Mkdir(filepath.Join(root, own), 0o755) }, []string{own}, own},
		{"a link at our file in certs.d", func() error { return link("/srv/victim", "etc/docker/certs.d/"+host+"/nodestead.crt") }, []string{"etc/docker/certs.d"}, ""},
		{"a link at the registry's directory", func() error { return link("/srv/precious", "etc/docker/certs.d/"+host) }, []string{"etc/docker/certs.d"}, "unsafe_directory"},
		{"a registry's directory of somebody else", func() error {
			dir := filepath.Join(root, "etc/docker/certs.d", host)
			return errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, 1000, 1000))
		}, []string{"etc/docker/certs.d"}, "unsafe_directory"},
		{"a registry's directory for everybody", func() error {
			dir := filepath.Join(root, "etc/docker/certs.d", host)
			return errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o777))
		}, []string{"etc/docker/certs.d"}, "unsafe_directory"},
		{"the state is a link", func() error { return link("/srv/precious/trust.json", "var/lib/nodestead/trust.json") }, []string{"var/lib/nodestead"}, ""},
		{"the state's directory is a link", func() error { return link("/srv/precious", "var/lib/nodestead") }, []string{"var/lib/nodestead"}, "nodestead"},
		{"the state's directory is somebody's", func() error {
			dir := filepath.Join(root, "var/lib/nodestead")
			return errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, 1000, 1000))
		}, []string{"var/lib/nodestead"}, "nodestead"},
		{"the state is nonsense", func() error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "var/lib/nodestead"), 0o755), os.WriteFile(filepath.Join(root, stateFile), []byte("{"), 0o600))
		}, []string{"var/lib/nodestead"}, ""},
		{"the lock is a link", func() error {
			_ = os.Remove(filepath.Join(root, lockFile)) // of the run before
			return link("/srv/victim", lockFile)
		}, []string{lockFile}, "lock"},
		{"the store is everybody's", func() error { return os.Chmod(filepath.Join(root, "usr/local/share/ca-certificates"), 0o777) },
			[]string{"usr/local/share/ca-certificates"}, "unsafe_directory"},
	} {
		n.give(n.ca)
		if err := tt.plant(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		agent := startAgent(t, n.lab.Node(), n.spec("once", named, dockerOnly))
		r := agent.finish()
		wrong := strings.Join(r.Wrong, "\n")
		if tt.says == "" && wrong != "" || !strings.Contains(wrong, filepath.Base(tt.says)) && tt.says != "" {
			t.Errorf("%s: wrong: %q, want %q", tt.name, wrong, tt.says)
		}
		if tt.says == "" && !n.has(n.ca) {
			t.Errorf("%s: the CA is not in the bundle", tt.name)
		}
		if got := r.decided(daemon.Docker); strings.HasPrefix(tt.name, "the store") && got != "leave trusted" {
			t.Errorf("%s: docker, by certs.d: %s", tt.name, got)
		}
		if diff := cmp.Diff(precious, n.snapshot("/srv", "/etc/passwd", "/etc/shadow", "/root", "/var/spool")); diff != "" {
			t.Fatalf("%s: something was written elsewhere (-before +after):\n%s", tt.name, diff)
		}
		for _, name := range append(tt.clear, "var/lib/nodestead", own, "etc/docker/certs.d") {
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
		n.run("update-ca-certificates", "--fresh")
	}
}

func fingerprintOf(ca *lab.CA) string { return fingerprints(stored(ca))[0] }

// TestBoxTwoAgents: two agents at work at once, round after round, with CAs that
// come and go. The bundle is whole at the end of each, and the daemons are
// restarted once.
func TestBoxTwoAgents(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true})
	n.give(n.ca)
	n.once().clean(t)
	for round := range 20 {
		cas := []*lab.CA{newCA(t, fmt.Sprintf("root %d", round))}
		if round%2 == 1 {
			cas = append(cas, n.ca)
		}
		n.give(cas...)
		n.forgetTimes()
		n.run("systemctl", "reset-failed", "docker.service", "docker.socket")
		before := n.starts("docker.service")
		agents := []*child{startAgent(t, n.lab.Node(), n.spec("once", dockerOnly)), startAgent(t, n.lab.Node(), n.spec("once", dockerOnly))}
		restarts := 0
		for _, a := range agents {
			r := a.finish()
			r.clean(t)
			restarts += r.restarts(daemon.Docker)
		}
		n.whole(cas...)
		if got := n.starts("docker.service") - before; got != 1 || restarts != 1 {
			t.Errorf("round %d: docker was started %d times, the agents say %d", round, got, restarts)
		}
		if t.Failed() {
			t.Fatalf("round %d:\n%s\n%s", round, agents[0].text(), agents[1].text())
		}
	}
}

// TestBoxSteady: a minute in which nothing changes. The agent starts no process,
// writes nothing, and hardly takes any time of the processor.
func TestBoxSteady(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{LiveRestore: true, Setup: "true"})
	n.give(n.ca)
	n.once(named).clean(t)
	// Sixty passes in this minute, not one.
	agent := startAgent(t, n.lab.Node(), n.spec("run", named, every(time.Second)))
	passes := func(more int) {
		t.Helper()
		_, from := agent.last()
		agent.until(5*time.Minute, func(r report) error {
			if _, now := agent.last(); now < from+more {
				return fmt.Errorf("%d passes", now-from)
			}
			return nil
		})
	}
	passes(2)
	before, files := agent.usage(), n.snapshot(owned...)
	times := n.run("find", "/usr/local/share/ca-certificates", "/etc/ssl", "/etc/docker", "/etc/containerd", "/var/lib/nodestead", "-printf", "%p %T@ %C@\n")
	jobs := n.run("systemctl", "show", "--property=NJobs,NInstalledJobs", "--value")
	connections := n.registry.Connections()
	passes(60)
	after := agent.usage()
	if diff := cmp.Diff(files, n.snapshot(owned...)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
	if now := n.run("find", "/usr/local/share/ca-certificates", "/etc/ssl", "/etc/docker", "/etc/containerd", "/var/lib/nodestead", "-printf", "%p %T@ %C@\n"); now != times {
		t.Errorf("something was written (-before +after):\n%s", cmp.Diff(times, now))
	}
	if now := n.run("systemctl", "show", "--property=NJobs,NInstalledJobs", "--value"); now != jobs {
		t.Errorf("systemd had jobs: %q, %q", jobs, now)
	}
	if got := n.registry.Connections() - connections; got != 0 {
		t.Errorf("the registry was asked %d times", got)
	}
	if after.children != before.children {
		t.Errorf("it started processes: %+v, %+v", before, after)
	}
	if after.written != before.written {
		t.Errorf("it wrote %d bytes", after.written-before.written)
	}
	r, _ := agent.last()
	r.clean(t)
	t.Logf("60 passes took %v of processor time", after.cpu-before.cpu)
}

// usage is what a process has used.
type usage struct {
	cpu      time.Duration
	written  int64 // bytes, to storage
	children time.Duration
}

func (c *child) usage() usage {
	c.t.Helper()
	dir := fmt.Sprintf("/proc/%d/", c.cmd.Process.Pid)
	stat, err1 := os.ReadFile(dir + "stat")
	io, err2 := os.ReadFile(dir + "io")
	if err := errors.Join(err1, err2); err != nil {
		c.t.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks := func(fields ...string) time.Duration {
		var sum int64
		for _, s := range fields {
			var n int64
			if _, err := fmt.Sscan(s, &n); err != nil {
				c.t.Fatal(err)
			}
			sum += n
		}
		return time.Duration(sum) * 10 * time.Millisecond // USER_HZ is 100
	}
	u := usage{cpu: ticks(f[11], f[12]), children: ticks(f[13], f[14])}
	for line := range strings.Lines(string(io)) {
		if v, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			if _, err := fmt.Sscan(v, &u.written); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	return u
}

// TestBoxRHEL is the story on an emulated RHEL: its directories and its program
// around the real p11-kit, with a real dockerd that reads its bundle.
func TestBoxRHEL(t *testing.T) {
	t.Parallel()
	cfg := lab.RHEL()
	cfg.LiveRestore = true
	n := newNode(t, cfg)
	alive := n.sleeper()
	n.refused(n.docker)
	docker := n.unit("docker.service")
	n.give(n.ca)
	r := n.once(dockerOnly)
	r.clean(t)
	if r.restarts(daemon.Docker) != 1 {
		t.Errorf("restarts: %v (%s)", r.Runtimes[daemon.Docker].Restarts, r.decided(daemon.Docker))
	}
	n.renewed("docker.service", docker)
	n.pulls()
	if !alive() {
		t.Error("the container is another one")
	}
	next := newCA(t, "next root")
	n.give(next)
	n.once(dockerOnly).clean(t)
	bundle := n.run("cat", "/etc/pki/tls/certs/ca-bundle.crt")
	if strings.Contains(bundle, strings.TrimSpace(string(n.ca.PEM()))) || !strings.Contains(bundle, strings.TrimSpace(string(next.PEM()))) {
		t.Error("the bundle does not have the second CA instead of the first")
	}
	if r := startAgent(t, n.lab.Node(), n.spec("uninstall", dockerOnly)).finish(); len(r.Wrong) > 0 {
		t.Errorf("uninstalled: %v", r.Wrong)
	}
	files := maps.Clone(n.snapshot("/etc/pki/ca-trust/source"))
	for name := range files {
		if strings.Contains(name, "nodestead") {
			t.Errorf("%s is left", name)
		}
	}
	if strings.Contains(n.run("cat", "/etc/pki/tls/certs/ca-bundle.crt"), strings.TrimSpace(string(next.PEM()))) {
		t.Error("the bundle still has our CA")
	}
}
