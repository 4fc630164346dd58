//go:build e2e

package deploy

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	watchAddress = "127.0.0.1:9853"
	trustAddress = "127.0.0.1:9854"
	registryName = "registry.example.test"
	dropIn       = "etc/systemd/system/docker.service.d/broken.conf"
	certsDir     = "etc/docker/certs.d/" + registryName + ":5000"
)

var (
	dnsService   = netip.MustParseAddr("10.96.0.10")
	probeService = netip.MustParseAddr("10.96.0.11")
	deadService  = netip.MustParseAddr("10.96.0.12")
	fastService  = netip.MustParseAddr("10.96.0.13")
	somewhere    = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
)

// scene is a node in a box with both halves of the agent that was built, dockerd, a
// private registry, pods, and Prometheus.
type scene struct {
	*lab.Lab
	t        *testing.T
	box      *lab.Box
	program  string // the agent
	pod      *lab.CRIPod
	search   *lab.CRIPod // has a search list
	probed   *lab.Server
	load     *lab.Load
	registry *lab.Registry
	image    string
	source   string // a mounted Secret with the CAs
	other    string // another one
	prom     *prometheus
	watching *exec.Cmd
	trusting *exec.Cmd
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{Lab: lab.ForTest(t), t: t, source: t.TempDir(), other: t.TempDir(), program: filepath.Join(t.TempDir(), "nodestead")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", s.program, "../cmd/nodestead")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	var backends []netip.Addr
	for range 2 {
		server := s.server(
			lab.Rule{Name: "*.idle.test.", Addrs: somewhere, Delay: 1500 * time.Millisecond},
			lab.Rule{Name: "broken.test.", Rcode: dns.RcodeServerFailure},
			lab.Rule{Name: "*.svc.test.", Rcode: dns.RcodeNameError},
			lab.Rule{Name: "*", Addrs: somewhere})
		backends = append(backends, server.Addr4)
	}
	s.probed = s.server(lab.Rule{Name: "*", Addrs: somewhere})
	dead := s.server(lab.Rule{Name: "*", Drop: true})
	fast, err := s.AddReflector()
	s.must(err, s.AddService(dnsService, lab.Alternate, backends...), s.AddService(probeService, lab.Hash, s.probed.Addr4),
		s.AddService(deadService, lab.Hash, dead.Addr4), s.AddService(fastService, lab.Hash, fast.Addr4))
	s.load, err = s.AddLoad()
	s.must(err)

	ca := s.ca("Example Root")
	cert, err := ca.Server(registryName)
	s.must(err)
	s.registry, err = s.AddRegistry(registryName, cert)
	s.must(err)
	s.image, err = s.registry.Push(t.Context(), "team/app:1")
	s.must(err)
	s.give(s.source, "ca.crt", ca.PEM())
	s.give(s.other, "other.crt", s.ca("Other Root").PEM())
	s.box, err = s.Boot(t.Context(), lab.BoxConfig{
		Files: map[string]string{"etc/ca-certificates/update.d/slow": "#!/bin/sh\nwhile [ -e /run/slow ]; do sleep 0.1; done\n"},
		Setup: "chmod 755 /etc/ca-certificates/update.d/slow",
	})
	s.must(err, s.box.StartDocker(t.Context()))
	_, err = s.box.RunContainer(t.Context(), "job")
	s.must(err)
	s.pod, err = s.box.RunPod(t.Context(), lab.CRIPodConfig{Namespace: "ci", Name: "runner", Nameservers: []netip.Addr{dnsService}})
	s.must(err)
	s.search, err = s.box.RunPod(t.Context(), lab.CRIPodConfig{
		Namespace: "ci", Name: "searching", Nameservers: []netip.Addr{dnsService}, Search: []string{"ci.svc.test", "svc.test"}, Options: []string{"ndots:5"},
	})
	s.must(err)
	// Whoever looks at the agents connects also when the conntrack table is full.
	s.run(`for port in 9090 9853 9854; do
	iptables --wait --table raw --append OUTPUT --protocol tcp --dport $port --jump NOTRACK
	iptables --wait --table raw --append OUTPUT --protocol tcp --sport $port --jump NOTRACK
done`)
	s.start()
	s.prom = startPrometheus(t, s.Lab, watchAddress, trustAddress)
	return s
}

// must ends the test at an error.
func (s *scene) must(errs ...error) {
	s.t.Helper()
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) server(rules ...lab.Rule) *lab.Server {
	s.t.Helper()
	server, err := s.AddServer(rules...)
	s.must(err)
	return server
}

func (s *scene) ca(name string, options ...lab.CAOption) *lab.CA {
	s.t.Helper()
	ca, err := lab.NewCA(name, options...)
	s.must(err)
	return ca
}

// endsIn makes a root that ends after so many days.
func endsIn(days int) lab.CAOption {
	return func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(0, 0, days) }
}

// give puts a file into a source.
func (s *scene) give(source, name string, content []byte) {
	s.t.Helper()
	s.must(os.WriteFile(filepath.Join(source, name), content, 0o600))
}

func (s *scene) take(source string, names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.must(os.Remove(filepath.Join(source, name)))
	}
}

// rotate has the registry show a certificate of a new CA, which comes into the
// source.
func (s *scene) rotate(name string) {
	s.t.Helper()
	ca := s.ca(name)
	cert, err := ca.Server(registryName)
	s.must(err)
	s.registry.Serve(cert)
	s.give(s.source, "ca.crt", ca.PEM())
}

// run runs a script on the node.
func (s *scene) run(script string) {
	s.t.Helper()
	_, err := s.box.Run(s.t.Context(), "sh", "-ec", script)
	s.must(err)
}

// start runs both halves of the agent. Their intervals are as short as those of
// the rules.
func (s *scene) start() {
	s.t.Helper()
	s.watching = s.agent(watchAddress, "watch", "--http.watch="+watchAddress, "--names.lookups.pending=1000",
		"--names.probe.names=probe.test.", "--names.probe.nameservers="+probeService.String(), "--names.probe.interval=1s")
	s.trusting = s.agent(trustAddress, "trust", "--http.trust="+trustAddress, "--trust.sources="+s.source+","+s.other, "--trust.interval=1s",
		"--trust.registries="+s.registry.Host, "--trust.runtimes.containerd.enabled=off")
}

// agent runs one half of the agent, until the test ends, and waits until it is
// ready.
func (s *scene) agent(address string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(s.program, append(args, "--host_root="+s.box.Root())...)
	var log bytes.Buffer
	cmd.Stderr = &log
	s.must(s.Node().Start(cmd))
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, or has ended before
		if s.t.Failed() {
			text := log.String()
			s.t.Logf("the log of nodestead %s: %s", args[0], text[max(0, len(text)-6000):])
		}
	})
	s.must(lab.Until(s.t.Context(), time.Minute, func() error {
		resp, err := s.Node().HTTPClient().Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		if err = resp.Body.Close(); resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return err
	}))
	return cmd
}

// stop stops both halves as Kubernetes does.
func (s *scene) stop() {
	s.t.Helper()
	for _, cmd := range []*exec.Cmd{s.watching, s.trusting} {
		s.must(cmd.Process.Signal(unix.SIGTERM), cmd.Wait())
	}
}

// ask has a program in the pod look a name up again and again, in so many threads,
// until the context ends.
func (s *scene) ask(ctx context.Context, threads, name string) {
	for ctx.Err() == nil {
		// Lookups that fail are what it is about.
		_, _ = s.pod.Exec(ctx, "", lab.ClientPath(lab.MuslStatic), "-n", "1", "-t", threads, name)
	}
}

// healthy has both pods look something up, one of them through a search list.
func (s *scene) healthy() {
	s.t.Helper()
	_, err := s.pod.Resolve(s.t.Context(), "", lab.MuslStatic, 20, "healthy.test.")
	_, err2 := s.search.Resolve(s.t.Context(), "", lab.MuslStatic, 2, "git.test", "registry.test")
	s.must(err, err2)
}

// pulls waits until docker can pull from the registry.
func (s *scene) pulls() {
	s.t.Helper()
	s.must(lab.Until(s.t.Context(), time.Minute, func() error { return s.box.Pull(s.t.Context(), s.image) }))
}

// dropIn changes docker's unit, which takes effect at its next start; without lines
// it takes the change back.
func (s *scene) dropIn(lines ...string) {
	s.t.Helper()
	path := filepath.Join(s.box.Root(), dropIn)
	s.must(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
	s.run("systemctl daemon-reload")
}

// flood halts the agent again and again, while so many lookups pass that the kernel
// finds no room for their packets; and then asks more that nobody answers than the
// agent may remember. Each until the alert about it has fired in a part of the story.
// The rules look at some seconds, in which Prometheus has to see the agent more than
// once: so it is halted for a moment only, and not again before it was seen.
func (s *scene) flood(part time.Duration) {
	ctx := s.t.Context()
	var err error
	for round := 0; err == nil && round < 40 && !s.prom.fired(part, "NodesteadSensorLost"); round++ {
		err = s.watching.Process.Signal(unix.SIGSTOP)
		_, err1 := s.load.Lookups(ctx, fastService, 15000, time.Second)
		err = errors.Join(err, err1, s.watching.Process.Signal(unix.SIGCONT), s.prom.scraped(watchAddress))
	}
	for round := 0; err == nil && round < 20 && !s.prom.fired(part, "NodesteadLookupsDiscarded"); round++ {
		_, err = s.load.Lookups(ctx, deadService, 1000, 2*time.Second)
	}
	if err != nil {
		s.t.Errorf("flood: %v", err)
	}
}
