package certsync

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// specVariable has the spec of an agent in the environment of a test's child,
// which is this test program once more: so it can be killed at any step, in the
// node's network.
const specVariable = "NODESTEAD_TEST_AGENT"

func TestMain(m *testing.M) {
	if text := os.Getenv(specVariable); text != "" {
		if err := agentMain(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// spec is what an agent in a child does.
type spec struct {
	Op    string   // once, run, uninstall, examine
	Asked []string // examine: the registries that are asked about; none: those of the configuration
	// It kills itself at this step, counted from 1 (0: never), and from the
	// first step KillFrom on, if there is one.
	KillAt   int
	KillFrom string
	Config   struct {
		HostRoot          string
		Sources, Allow    []string
		Overlap, Interval time.Duration
		NoStore, NoCertsD bool
		Registries        []string
		Runtimes          []daemon.Config
	}
	Gate string // the directory of a fileGate; none: restarts may begin at any time
}

// report is what it writes to standard output, one a line.
type report struct {
	Wrong    []string
	Anchors  []string // fingerprints
	Targets  map[string]TargetStatus
	Runtimes map[daemon.Name]RuntimeStatus
	Changes  map[string]int // TARGET RESULT
	Waiting  []string
	Preview  string
	Err      string
	Step     string // the step at which it is about to be killed
	Steps    []step // of an agent that was not killed, so far
}

// step is what an agent did, and when.
type step struct {
	Name string
	At   time.Time
}

func newReport(s Status) report {
	r := report{
		Wrong: s.Wrong(), Anchors: fingerprints(s.Anchors),
		Targets: map[string]TargetStatus{}, Runtimes: map[daemon.Name]RuntimeStatus{}, Changes: map[string]int{},
	}
	for _, t := range s.Targets {
		r.Targets[t.Name] = t
	}
	for _, rt := range s.Runtimes {
		r.Runtimes[rt.Name] = rt
	}
	for c, n := range s.Changes {
		r.Changes[c.Target+" "+c.Result] = n
	}
	return r
}

func agentMain(text string) error {
	var sp spec
	if err := json.Unmarshal([]byte(text), &sp); err != nil {
		return err
	}
	c := sp.Config
	cfg := Config{
		HostRoot: c.HostRoot, Sources: c.Sources, Allow: c.Allow, Overlap: c.Overlap, Interval: c.Interval,
		Store: !c.NoStore, CertsD: !c.NoCertsD, Registries: c.Registries, Runtimes: c.Runtimes,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if sp.Gate != "" {
		cfg.Gate = newFileGate(sp.Gate)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	out := json.NewEncoder(os.Stdout)
	var taken []step
	emit := func(s Status, err error) {
		r := newReport(s)
		r.Steps = taken
		if err != nil {
			r.Err = err.Error()
		}
		_ = out.Encode(r) // to a pipe whose reader sees its end
	}
	if sp.Op == "examine" {
		asked := sp.Asked
		if len(asked) == 0 {
			asked = cfg.Registries
		}
		e, err := Examine(ctx, cfg, asked)
		r := newReport(e.Status)
		r.Waiting = e.Waiting
		return errors.Join(err, out.Encode(r))
	}
	s, err := New(cfg)
	if err != nil {
		return err
	}
	steps := 0
	s.OnStep(func(name string) {
		taken = append(taken, step{name, time.Now()})
		if sp.KillFrom != "" {
			if name == sp.KillFrom {
				sp.KillFrom = ""
			}
			return
		}
		if steps++; steps == sp.KillAt {
			_ = out.Encode(report{Step: name})
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	switch sp.Op {
	case "run":
		err = s.Run(ctx, func(s Status) { emit(s, nil) })
	case "once":
		emit(s.Once(ctx))
	case "uninstall":
		emit(s.Uninstall(ctx))
	case "plan":
		var p Preview
		var text strings.Builder
		if p, err = s.Plan(ctx); err == nil {
			err = errors.Join(p.Print(&text), out.Encode(report{Preview: text.String()}))
		}
	default:
		err = fmt.Errorf("unknown op %q", sp.Op)
	}
	return errors.Join(err, s.Close())
}

// child is an agent that runs in the node's network.
type child struct {
	t   *testing.T
	cmd *exec.Cmd

	mu      sync.Mutex
	reports []report
	log     strings.Builder
	ended   chan struct{}
	err     error
}

// startAgent starts an agent. It is killed when the test ends.
func startAgent(t *testing.T, n *lab.Namespace, sp spec) *child {
	t.Helper()
	text, err := json.Marshal(sp)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(self), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), specVariable+"="+string(text))
	stdout, err1 := c.cmd.StdoutPipe()
	stderr, err2 := c.cmd.StderrPipe()
	if err := errors.Join(err1, err2, n.Start(c.cmd)); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		lines := json.NewDecoder(stdout)
		for {
			var r report
			if lines.Decode(&r) != nil {
				return
			}
			c.mu.Lock()
			c.reports = append(c.reports, r)
			c.mu.Unlock()
		}
	})
	reading.Go(func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			c.mu.Lock()
			c.log.WriteString(lines.Text() + "\n")
			c.mu.Unlock()
		}
	})
	go func() {
		defer close(c.ended)
		reading.Wait()
		c.err = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it has ended, as a rule
		<-c.ended
		if t.Failed() {
			t.Logf("the agent's log:\n%s", c.text())
		}
	})
	return c
}

func (c *child) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.String()
}

func (c *child) last() (report, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reports) == 0 {
		return report{}, 0
	}
	return c.reports[len(c.reports)-1], len(c.reports)
}

// parts logs how long the steps took after a moment.
func (c *child) parts(t *testing.T, begin time.Time) {
	r, _ := c.last()
	last := begin
	for _, s := range r.Steps {
		if s.At.Before(begin) {
			continue
		}
		t.Logf("%8.1f ms (+%.1f) %s", s.At.Sub(begin).Seconds()*1e3, s.At.Sub(last).Seconds()*1e3, s.Name)
		last = s.At
	}
}

// until waits for a report with which ok is content.
func (c *child) until(limit time.Duration, ok func(report) error) report {
	c.t.Helper()
	var r report
	err := lab.Until(c.t.Context(), limit, func() error {
		var n int
		if r, n = c.last(); n == 0 {
			return errors.New("no pass has ended")
		}
		return ok(r)
	})
	if err != nil {
		c.t.Fatalf("%v; the agent's log:\n%s", err, c.text())
	}
	return r
}

// passed waits until so many passes of the agent have ended, and gives the last report.
func (c *child) passed(n int) report {
	c.t.Helper()
	return c.until(time.Minute, func(report) error {
		if _, now := c.last(); now < n {
			return fmt.Errorf("%d passes have ended, want %d", now, n)
		}
		return nil
	})
}

// logs waits until a running agent has logged a text: a line may be read after the
// report of its pass.
func (c *child) logs(want string) {
	c.t.Helper()
	err := lab.Until(c.t.Context(), time.Minute, func() error {
		if !strings.Contains(c.text(), want) {
			return fmt.Errorf("the log lacks %s", want)
		}
		return nil
	})
	if err != nil {
		c.t.Errorf("%v; it is:\n%s", err, c.text())
	}
}

// stop ends a running agent as Kubernetes does.
func (c *child) stop() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(unix.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if err := c.wait(); err != nil {
		c.t.Errorf("the agent ended with %v", err)
	}
}

func (c *child) wait() error {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(time.Minute):
		c.t.Fatalf("the agent does not end; its log:\n%s", c.text())
	}
	return c.err
}

// finish waits for an agent that ends by itself, and gives its report.
func (c *child) finish() report {
	c.t.Helper()
	if err := c.wait(); err != nil {
		c.t.Fatalf("the agent ended with %v; its log:\n%s", err, c.text())
	}
	r, n := c.last()
	if n == 0 {
		c.t.Fatal("it reported nothing")
	}
	if r.Err != "" {
		c.t.Fatalf("the agent: %s; its log:\n%s", r.Err, c.text())
	}
	return r
}

// killed tells whether it was killed, and at which step.
func (c *child) killed() (step string, ok bool) {
	c.t.Helper()
	_ = c.wait() // how it ended is looked at
	status, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	r, _ := c.last()
	return r.Step, status.Signaled() && status.Signal() == unix.SIGKILL
}
