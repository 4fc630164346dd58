package certsync

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// registryName is the private registry's name.
const registryName = "registry.example.test"

// node is a booted node with a private registry beside it, and a directory that
// is filled as a Secret is mounted.
type node struct {
	*lab.Box
	t        *testing.T
	lab      *lab.Lab
	ca       *lab.CA
	registry *lab.Registry
	image    string // that can be pulled from the registry
	source   string
	swaps    int
}

// fewRoots leaves five of the distribution's own roots, so that its tool, which is
// the real one, takes a tenth of the time.
const fewRoots = `sed -i '/^#/d' /etc/ca-certificates.conf && sed -i '6,$d' /etc/ca-certificates.conf && update-ca-certificates --fresh`

// newNode boots a node. dockerd runs, and has made no TLS check yet. It has few
// roots unless cfg has a Setup.
func newNode(t *testing.T, cfg lab.BoxConfig) *node {
	t.Helper()
	if cfg.Setup == "" {
		cfg.Setup = fewRoots
	}
	n := &node{t: t, lab: lab.ForTest(t), ca: newCA(t, "private root"), source: filepath.Join(t.TempDir(), "ca")}
	if err := os.Mkdir(n.source, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if n.registry, err = n.lab.AddRegistry(registryName, n.server(n.ca)); err != nil {
		t.Fatal(err)
	}
	if n.image, err = n.registry.Push(t.Context(), "team/app:1"); err != nil {
		t.Fatal(err)
	}
	if n.Box, err = n.lab.Boot(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func newCA(t *testing.T, name string) *lab.CA {
	t.Helper()
	ca, err := lab.NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// server is a certificate for the registry.
func (n *node) server(ca *lab.CA) (cert tls.Certificate) {
	n.t.Helper()
	cert, err := ca.Server(registryName)
	if err != nil {
		n.t.Fatal(err)
	}
	return cert
}

// put makes these files all that the source has, as kubelet does: a new
// directory, and one exchanged link.
func (n *node) put(files map[string][]byte) {
	n.t.Helper()
	n.swaps++
	data := fmt.Sprintf("..data-%d", n.swaps)
	errs := []error{os.Mkdir(filepath.Join(n.source, data), 0o755)}
	for name, content := range files {
		errs = append(errs, os.WriteFile(filepath.Join(n.source, data, name), content, 0o644))
		if _, err := os.Lstat(filepath.Join(n.source, name)); err != nil {
			errs = append(errs, os.Symlink(filepath.Join("..data", name), filepath.Join(n.source, name)))
		}
	}
	errs = append(errs, os.Symlink(data, filepath.Join(n.source, "..new")), os.Rename(filepath.Join(n.source, "..new"), filepath.Join(n.source, "..data")))
	entries, err := os.ReadDir(n.source)
	errs = append(errs, err)
	for _, e := range entries {
		if _, ok := files[e.Name()]; !ok && !strings.HasPrefix(e.Name(), "..") {
			errs = append(errs, os.Remove(filepath.Join(n.source, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		n.t.Fatal(err)
	}
}

// give puts CAs into the source.
func (n *node) give(cas ...*lab.CA) {
	files := make(map[string][]byte)
	for i, ca := range cas {
		files[fmt.Sprintf("ca%d.crt", i)] = ca.PEM()
	}
	n.put(files)
}

// spec is an agent for this node. change changes its configuration.
func (n *node) spec(op string, change ...func(*spec)) spec {
	sp := spec{Op: op}
	sp.Config.HostRoot, sp.Config.Sources = n.Root(), []string{n.source}
	sp.Config.Interval = time.Minute
	sp.Config.Runtimes = []daemon.Config{
		{Name: daemon.Docker, Unit: "docker.service", Restart: daemon.Auto},
		{Name: daemon.Containerd, Unit: "containerd.service", Restart: daemon.Auto},
	}
	for _, c := range change {
		c(&sp)
	}
	return sp
}

// named has the agent know the registry.
func named(sp *spec) { sp.Config.Registries = []string{registryName + ":5000"} }

// noCertsD leaves the trust store as the only way.
func noCertsD(sp *spec) { sp.Config.NoCertsD = true }

// dockerOnly leaves containerd alone.
func dockerOnly(sp *spec) { sp.Config.Runtimes = sp.Config.Runtimes[:1] }

func disruptive(sp *spec) { sp.Config.Runtimes[0].Disruptive = true }

// every sets the interval of passes.
func every(d time.Duration) func(*spec) { return func(sp *spec) { sp.Config.Interval = d } }

// once makes one pass.
func (n *node) once(change ...func(*spec)) report {
	n.t.Helper()
	return startAgent(n.t, n.lab.Node(), n.spec("once", change...)).finish()
}

// clean fails the test if something is wrong.
func (r report) clean(t *testing.T) {
	t.Helper()
	if len(r.Wrong) > 0 {
		t.Errorf("wrong: %s", strings.Join(r.Wrong, "\n"))
	}
}

// decided gives what was decided about a daemon.
func (r report) decided(name daemon.Name) string {
	d := r.Runtimes[name].Decision
	return string(d.Action) + " " + d.Reason
}

// restarts sums up what the agent restarted.
func (r report) restarts(name daemon.Name) int {
	total := 0
	for _, n := range r.Runtimes[name].Restarts {
		total += n
	}
	return total
}

// unit is one run of a daemon.
type unit struct{ invocation, pid string }

func (n *node) unit(name string) unit {
	n.t.Helper()
	out := n.run("systemctl", "show", "--property=InvocationID,MainPID,ActiveState", name)
	values := make(map[string]string)
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	if values["ActiveState"] != "active" {
		n.t.Errorf("%s is %s", name, values["ActiveState"])
	}
	return unit{values["InvocationID"], values["MainPID"]}
}

func (n *node) run(args ...string) string {
	n.t.Helper()
	out, err := n.Run(n.t.Context(), args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// same fails the test if a daemon is not in the run that it was in.
func (n *node) same(name string, before unit) {
	n.t.Helper()
	if now := n.unit(name); now != before {
		n.t.Errorf("%s was restarted: %+v, was %+v", name, now, before)
	}
}

// renewed fails the test if a daemon is still in the run that it was in.
func (n *node) renewed(name string, before unit) unit {
	n.t.Helper()
	now := n.unit(name)
	if now.invocation == before.invocation {
		n.t.Errorf("%s was not restarted", name)
	}
	return now
}

// starts counts how often systemd has started a unit: what it said to the journal
// before now is in it once that is synchronized.
func (n *node) starts(name string) int {
	n.t.Helper()
	n.run("journalctl", "--sync")
	return strings.Count(n.run("journalctl", "--no-pager", "--output=cat", "--unit="+name), "Started "+name)
}

const unknownAuthority = "x509: certificate signed by unknown authority"

// refused fails the test unless docker refuses the registry for want of trust.
func (n *node) refused(pull func() error) {
	n.t.Helper()
	if err := pull(); err == nil || !strings.Contains(err.Error(), unknownAuthority) {
		n.t.Fatalf("a pull ended with %v, want one that is refused", err)
	}
}

// pulls fails the test unless a pull succeeds. The image is removed again.
func (n *node) pulls() {
	n.t.Helper()
	if err := n.Pull(n.t.Context(), n.image); err != nil {
		n.t.Errorf("docker: %v", err)
		return
	}
	n.run("docker", "image", "rm", n.image)
}

func (n *node) docker() error { return n.Pull(n.t.Context(), n.image) }
func (n *node) cri() error    { return n.CRIPull(n.t.Context(), n.image) }

// sleeper runs a container, and gives a function that tells whether it is still
// the same process.
func (n *node) sleeper() (same func() bool) {
	n.t.Helper()
	pid, err := n.RunContainer(n.t.Context(), "sleeper")
	if err != nil {
		n.t.Fatal(err)
	}
	return func() bool {
		now, err := n.ContainerPid(n.t.Context(), "sleeper")
		return err == nil && now == pid
	}
}

// bundle is the node's bundle.
func (n *node) bundle() string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Root(), "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// has tells whether the bundle has a CA.
func (n *node) has(ca *lab.CA) bool {
	n.t.Helper()
	return strings.Contains(n.bundle(), strings.TrimSpace(string(ca.PEM())))
}

// whole fails the test unless the bundle has all of the distribution's
// certificates, and these besides.
func (n *node) whole(cas ...*lab.CA) {
	n.t.Helper()
	conf := n.run("sh", "-c", "grep -c '^[^#!]' /etc/ca-certificates.conf")
	var want int
	if _, err := fmt.Sscan(conf, &want); err != nil {
		n.t.Fatal(err)
	}
	if got := strings.Count(n.bundle(), "BEGIN CERTIFICATE"); got != want+len(cas) {
		n.t.Errorf("the bundle has %d certificates, want %d and %d", got, want, len(cas))
	}
	for _, ca := range cas {
		if !n.has(ca) {
			n.t.Error("the bundle lacks a CA")
		}
	}
}
