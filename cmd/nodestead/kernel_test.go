package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// start runs the binary in a namespace, with its standard error in a buffer
// that may be read once it has ended.
func start(t *testing.T, n *lab.Namespace, command string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command(command, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test failed
	return cmd, &stderr
}

// Told to stop in the middle of healthy load and a storm of collisions, it ends
// in order and in time.
func TestSIGTERMUnderLoad(t *testing.T) {
	l := lab.ForTest(t)
	service := netip.MustParseAddr("10.96.0.10")
	var backends []netip.Addr
	for range 2 {
		s, err := l.AddServer(lab.Rule{Name: "*", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}})
		if err != nil {
			t.Fatal(err)
		}
		backends = append(backends, s.Addr4)
	}
	if err := l.AddService(service, lab.Alternate, backends...); err != nil {
		t.Fatal(err)
	}
	pod, err := l.AddPod(lab.PodConfig{Name: "musl", Nameservers: []netip.Addr{service}})
	if err != nil {
		t.Fatal(err)
	}
	load, err := l.AddLoad()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Hold(2, 250*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	cmd, stderr := start(t, l.Node(), "nodestead", "watch", "--http.watch=127.0.0.1:9853", "--log.level=debug")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var traffic errgroup.Group
	traffic.Go(func() error {
		_, err := load.Lookups(ctx, service, 1000, time.Minute)
		return ignore(ctx, err)
	})
	traffic.Go(func() error {
		_, err := pod.Resolve(ctx, lab.MuslStatic, 1<<20, "fast.test.")
		return ignore(ctx, err)
	})
	err = lab.Until(ctx, time.Minute, func() error {
		resp, err := l.Node().HTTPClient().Get("http://127.0.0.1:9853/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		_, rest, _ := strings.Cut(body.String(), `result="kept"} `)
		value, _, _ := strings.Cut(rest, "\n")
		if kept, _ := strconv.Atoi(value); err == nil && kept < 500 {
			err = fmt.Errorf("%d collisions are no storm", kept)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	if !late.Stop() {
		t.Fatal("it did not end within five seconds")
	}
	cancel()
	if err := traffic.Wait(); err != nil {
		t.Errorf("traffic: %v", err)
	}
	if err != nil {
		t.Errorf("it ended with %v, want exit code 0", err)
	}
	if !strings.Contains(stderr.String(), `msg="nodestead stopped"`) {
		t.Errorf("no line about the end: %s", stderr)
	}
}

// ignore forgets an error that comes from the end of ctx.
func ignore(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Without the capability it says so in one line, and what to do.
func TestWithoutNetAdmin(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("dropping a capability needs root")
	}
	l := lab.ForTest(t)
	cmd, stderr := start(t, l.Node(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "nodestead", "watch", "--http.watch=127.0.0.1:0")
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v, want exit code 1", err)
	}
	if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "CAP_NET_ADMIN") || !strings.Contains(got, "NET_ADMIN]") {
		t.Errorf("it said:\n%s", got)
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		t.Errorf("it was killed by %v", s.Signal())
	}
}

// The doctor, as an operator runs it: exit code 0 on a healthy node; 1 and the
// finding when something is wrong; 2 when it cannot tell.
func TestDoctor(t *testing.T) {
	l := lab.ForTest(t)
	s, err := l.AddServer(lab.Rule{Name: "kubernetes.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	service := netip.MustParseAddr("10.96.0.10")
	if err := l.AddService(service, lab.Random, s.Addr4); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib/kubelet"), 0o755); err != nil {
		t.Fatal(err)
	}
	kubelet := fmt.Sprintf("clusterDNS: [%v]\nclusterDomain: cluster.local\n", service)
	if err := os.WriteFile(filepath.Join(root, "var/lib/kubelet/config.yaml"), []byte(kubelet), 0o600); err != nil {
		t.Fatal(err)
	}
	examine := func(code int, with ...string) string {
		t.Helper()
		cmd := exec.Command("nodestead", append([]string{"doctor", "--host_root", root}, with...)...)
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		if err := l.Node().Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != code {
			t.Errorf("doctor %q ends with %v, want exit code %d:\n%s", with, err, code, stdout.String())
		}
		return stdout.String()
	}
	if got := examine(0); !strings.Contains(got, "ok       nameservers_answer") {
		t.Errorf("a healthy node:\n%s", got)
	}
	s.SetRules(lab.Rule{Name: "*", Rcode: dns.RcodeServerFailure})
	if got := examine(1, "-o", "json"); !strings.Contains(got, `"state": "finding"`) {
		t.Errorf("a nameserver that fails:\n%s", got)
	}
	s.SetRules(lab.Rule{Name: "*", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}})
	if err := os.Remove(filepath.Join(root, "var/lib/kubelet/config.yaml")); err != nil {
		t.Fatal(err)
	}
	if got := examine(2); !strings.Contains(got, "unknown  nameservers_found") {
		t.Errorf("a node without a kubelet:\n%s", got)
	}
}

// The probe, from its flags to its metrics: every nameserver and type has an
// outcome.
func TestProbe(t *testing.T) {
	l := lab.ForTest(t)
	s, err := l.AddServer(lab.Rule{Name: "git.example.de.", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}})
	if err != nil {
		t.Fatal(err)
	}
	service := netip.MustParseAddr("10.96.0.10")
	if err := l.AddService(service, lab.Random, s.Addr4); err != nil {
		t.Fatal(err)
	}
	cmd, stderr := start(t, l.Node(), "nodestead", "watch", "--http.watch=127.0.0.1:9853",
		"--names.probe.names=git.example.de", "--names.probe.nameservers=10.96.0.10", "--names.probe.interval=1s")
	for _, outcome := range []string{`outcome="noerror",qtype="A"`, `outcome="nodata",qtype="AAAA"`} {
		sample := `nodestead_probe_lookups_total{name="git.example.de.",nameserver="10.96.0.10:53",` + outcome + `}`
		err := lab.Until(t.Context(), time.Minute, func() error {
			v, err := scrape(l, sample)
			if err == nil && v < 2 {
				err = fmt.Errorf("%s is %v", sample, v)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(stderr.String(), `msg="probe is on" names=git.example.de. nameservers=[10.96.0.10:53]`) {
		t.Errorf("it ended with %v and said:\n%s", err, stderr)
	}
}
