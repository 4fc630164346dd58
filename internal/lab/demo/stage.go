package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	agentAddress = "127.0.0.1:9853"
	zone         = "example.de."
	// upstreamTakes is what the authoritative server needs for a name that no
	// cache has.
	upstreamTakes = 1500 * time.Millisecond
	// seenWithin is how long the agent may take to say what it saw.
	seenWithin = 15 * time.Second
)

var (
	kubeDNS  = netip.MustParseAddr("10.96.0.10")
	otherDNS = netip.MustParseAddr("10.96.0.11") // translated to the same backends
)

// stage is the node in the box with the agent on it.
type stage struct {
	*lab.Lab
	ctx    context.Context
	out    io.Writer
	agent  *exec.Cmd
	ended  chan error // the agent's end
	box    *lab.Box
	pod    *lab.CRIPod // one nameserver
	double *lab.CRIPod // two nameservers
	other  *lab.CRIPod // the second of these only

	mu    sync.Mutex
	lines []string // of the agent's log
}

func newStage(ctx context.Context, out io.Writer, log *slog.Logger, agent string) (*stage, error) {
	l, err := lab.New(ctx, log)
	if err != nil {
		return nil, err
	}
	s := &stage{Lab: l, ctx: ctx, out: out, ended: make(chan error, 1)}
	if err = s.build(); err == nil {
		err = s.startAgent(agent)
	}
	if err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// build makes the cluster: two CoreDNS behind one service, that ask a server
// which is slow for names that are not in their caches.
func (s *stage) build() error {
	address := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	upstream, err := s.AddServer(
		lab.Rule{Name: "*.idle." + zone, Addrs: address, Delay: upstreamTakes},
		lab.Rule{Name: "*." + zone, Addrs: address},
	)
	if err != nil {
		return err
	}
	var backends []netip.Addr
	for range 2 {
		c, err := s.AddCoreDNS(fmt.Sprintf(". {\n bind {addr4} {addr6}\n cache\n forward . %s\n}\n", upstream.Addr4))
		if err != nil {
			return err
		}
		backends = append(backends, c.Addr4)
	}
	for _, service := range []netip.Addr{kubeDNS, otherDNS} {
		// kube-proxy chooses at random; taking turns makes it happen each time.
		if err := s.AddService(service, lab.Alternate, backends...); err != nil {
			return err
		}
	}
	// With it the agent can say how late an answer was, to the millisecond.
	if err := s.Node().Sysctl("net/netfilter/nf_conntrack_timestamp", "1"); err != nil {
		return err
	}
	if s.box, err = s.Boot(s.ctx, lab.BoxConfig{}); err != nil {
		return err
	}
	for _, p := range []struct {
		pod         **lab.CRIPod
		name        string
		nameservers []netip.Addr
	}{
		{&s.pod, "runner", []netip.Addr{kubeDNS}},
		{&s.double, "runner-2ns", []netip.Addr{kubeDNS, otherDNS}},
		{&s.other, "runner-other-ns", []netip.Addr{otherDNS}},
	} {
		if *p.pod, err = s.box.RunPod(s.ctx, lab.CRIPodConfig{Namespace: "ci", Name: p.name, Nameservers: p.nameservers}); err != nil {
			return err
		}
	}
	fmt.Fprintf(s.out, "\nA node in a box: pods %s (%s) and %s (%s) with musl, service %s → CoreDNS %s and %s, slow upstream %s.\n",
		s.pod.Name, s.pod.Addr4, s.double.Name, s.double.Addr4, kubeDNS, backends[0], backends[1], upstream.Addr4)
	return nil
}

// startAgent runs the built agent on the node and waits until it reads.
func (s *stage) startAgent(path string) error {
	s.agent = exec.CommandContext(s.ctx, path, "watch", "--http.watch", agentAddress, "--log.level", "debug")
	stderr, err := s.agent.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.Node().Start(s.agent); err != nil {
		s.agent = nil
		return fmt.Errorf("start the agent: %w", err)
	}
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			s.mu.Lock()
			s.lines = append(s.lines, lines.Text())
			s.mu.Unlock()
		}
		s.ended <- s.agent.Wait()
	}()
	err = s.until("start the agent", func() error {
		resp, err := s.Node().HTTPClient().Get("http://" + agentAddress + "/readyz")
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(s.out, "On the node runs: nodestead watch --log.level debug")
	return nil
}

// stopAgent stops the agent as Kubernetes does, and wants exit code 0.
func (s *stage) stopAgent() error {
	begin := time.Now()
	if err := s.agent.Process.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	err := <-s.ended
	s.agent = nil
	if err != nil {
		return fmt.Errorf("the agent's end: %w", err)
	}
	fmt.Fprintf(s.out, "\nSIGTERM: the agent stopped in %d ms with exit code 0.\n", time.Since(begin).Milliseconds())
	return nil
}

func (s *stage) end() error {
	var err error
	if s.agent != nil {
		if err = s.agent.Process.Kill(); errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		<-s.ended //nolint:errcheck // it was killed, and says so
	}
	return errors.Join(err, s.Close())
}

// until polls for what the agent has to show.
func (s *stage) until(what string, ok func() error) error {
	if err := lab.Until(s.ctx, seenWithin, ok); err != nil {
		return fmt.Errorf("%s: %w; the agent's log:\n%s", what, err, strings.Join(s.logged(0), "\n"))
	}
	return nil
}

// logged gives the agent's log from a line on.
func (s *stage) logged(from int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines[from:])
}

// metrics reads the agent's own metrics.
func (s *stage) metrics() (map[string]float64, error) {
	resp, err := s.Node().HTTPClient().Get("http://" + agentAddress + "/metrics")
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	values := map[string]float64{}
	for name, family := range families {
		if !strings.HasPrefix(name, "nodestead_") {
			continue
		}
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				if l.GetValue() != "" {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
			}
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			values[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values, nil
}
