package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
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

// Where the halves of the agent serve.
const (
	watchAddress = "127.0.0.1:9853"
	trustAddress = "127.0.0.1:9854"
)

// agent is the built agent, which runs on the node.
type agent struct {
	cmd   *exec.Cmd
	url   string
	http  *http.Client
	ended chan error

	mu    sync.Mutex
	lines []string // of its log
}

// knowsPods is what the agent logs once it can tell whose an address is.
const knowsPods = `msg="workload source is there" from="container runtime"`

// watch runs the half that watches lookups, and waits until it reads, and knows
// the pods.
func watch(ctx context.Context, node *lab.Namespace, path, hostRoot string) (*agent, error) {
	a, err := startAgent(ctx, node, watchAddress, path, "watch", "--http.watch", watchAddress, "--log.level", "debug", "--host_root", hostRoot)
	if err != nil {
		return nil, err
	}
	err = a.until(ctx, patience, func() error {
		if !slices.ContainsFunc(a.logged(0), line{knowsPods}.is) {
			return errors.New("it does not know the pods")
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, a.kill())
	}
	return a, nil
}

// startAgent runs the agent on the node and waits until it is ready.
func startAgent(ctx context.Context, node *lab.Namespace, address, path string, args ...string) (*agent, error) {
	a := &agent{
		cmd:   exec.CommandContext(ctx, path, args...),
		url:   "http://" + address,
		http:  node.HTTPClient(),
		ended: make(chan error, 1),
	}
	stderr, err := a.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := node.Start(a.cmd); err != nil {
		return nil, err
	}
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			a.mu.Lock()
			a.lines = append(a.lines, lines.Text())
			a.mu.Unlock()
		}
		a.ended <- a.cmd.Wait()
	}()
	err = a.until(ctx, patience, func() error {
		resp, err := a.http.Get(a.url + "/readyz")
		if err != nil {
			return err
		}
		err = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, a.kill())
	}
	return a, nil
}

// stop stops the agent as Kubernetes does, and wants exit code 0.
func (a *agent) stop() (time.Duration, error) {
	begin := time.Now()
	if err := a.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return 0, fmt.Errorf("stop the agent: %w", err)
	}
	if err := <-a.ended; err != nil {
		return 0, fmt.Errorf("the agent's end: %w", err)
	}
	return time.Since(begin), nil
}

// kill ends the agent when something went wrong.
func (a *agent) kill() error {
	err := a.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-a.ended //nolint:errcheck // it was killed, and says so
	return err
}

// until polls for what the agent has to show, at most for the time.
func (a *agent) until(ctx context.Context, limit time.Duration, ok func() error) error {
	if err := lab.Until(ctx, limit, ok); err != nil {
		return fmt.Errorf("%w; the agent's log:\n%s", err, strings.Join(a.logged(0), "\n"))
	}
	return nil
}

// logged gives the agent's log from a line on.
func (a *agent) logged(from int) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.lines[from:])
}

// series are the values of the agent's own counters and gauges, by name and
// labels. Labels that are empty are left out.
type series map[string]float64

// sum adds up all series whose name or labels have the part.
func (s series) sum(part string) float64 {
	total := 0.0
	for name, value := range s {
		if strings.Contains(name, part) {
			total += value
		}
	}
	return total
}

// metrics reads the agent's metrics.
func (a *agent) metrics() (series, error) {
	resp, err := a.http.Get(a.url + "/metrics")
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	values := series{}
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

// runAgent runs the agent to its end, which must be a good one, and gives its
// log.
func runAgent(ctx context.Context, node *lab.Namespace, path string, args ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := node.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("nodestead %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.Split(strings.TrimSpace(stderr.String()), "\n"), nil
}
