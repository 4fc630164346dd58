package certsync

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/host"
)

// fileGate is the gate of an agent in a child: open when its directory has a file
// open, outside of a window when there is a file window, and shut otherwise. What
// it is asked is in its file log. SIGUSR1 is what makes it ready.
type fileGate struct {
	dir   string
	ready chan struct{}
}

func newFileGate(dir string) *fileGate {
	g := &fileGate{dir, make(chan struct{}, 1)}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	go func() {
		for range signals {
			g.ready <- struct{}{}
		}
	}()
	return g
}

func (g *fileGate) Ready() <-chan struct{} { return g.ready }

func (g *fileGate) Look() Shut {
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(g.dir, name))
		return err == nil
	}
	switch {
	case has("open"):
		return Shut{}
	case has("window"):
		return Shut{Reason: OutsideWindow, Detail: "the window opens soon", Remedy: "none", Again: 300 * time.Millisecond}
	default:
		return Shut{Reason: WaitingForSlot, Detail: "node-7 has the slot", Remedy: "none"}
	}
}

func (g *fileGate) Enter() (func(), Shut) {
	shut := g.Look()
	if shut.Reason != "" {
		g.note(shut.Reason)
		return nil, shut
	}
	g.note("enter")
	return func() { g.note("leave") }, shut
}

func (g *fileGate) note(what string) {
	f, err := os.OpenFile(filepath.Join(g.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(what + "\n")
	}
	if err := errors.Join(err, f.Close()); err != nil {
		panic(err)
	}
}

// gate is a fileGate as the test sees it.
type gate struct {
	t   *testing.T
	dir string
}

func newGate(t *testing.T, open bool) gate {
	g := gate{t, t.TempDir()}
	if open {
		g.set("open")
	}
	return g
}

// set makes the gate what a file of this name says.
func (g gate) set(name string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), nil, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// asked is what the gate was asked so far.
func (g gate) asked() string {
	b, err := os.ReadFile(filepath.Join(g.dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		g.t.Error(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func (g gate) expect(want string) {
	g.t.Helper()
	if got := g.asked(); got != want {
		g.t.Errorf("the gate was asked %q, want %q", got, want)
	}
}

func (g gate) used(sp *spec) { sp.Gate = g.dir }

// countGate is an open gate that counts what was given back.
type countGate struct {
	openGate
	left int
}

func (g *countGate) Enter() (func(), Shut) { return func() { g.left++ }, Shut{} }

// TestGiveBack: a permission is given back when the restart is concluded and has
// left nothing unhealthy. Docker is restarted with containerd here.
func TestGiveBack(t *testing.T) {
	type change func(containerd, docker *runtime, st *runtimeState)
	dockerIll := func(_, docker *runtime, _ *runtimeState) { docker.facts.Healthy = false }
	failed := func(_, _ *runtime, st *runtimeState) { st.History.Outcome = daemon.Failed }
	both := func(a, b change) change {
		return func(containerd, docker *runtime, st *runtimeState) {
			a(containerd, docker, st)
			b(containerd, docker, st)
		}
	}
	nothing := func(_, _ *runtime, _ *runtimeState) {}
	for _, tt := range []struct {
		name          string
		kept          bool
		of            daemon.Name
		before, after change
	}{
		{"healthy", false, daemon.Docker, nothing, nothing},
		{"healthy, and it failed: systemd refused", false, daemon.Docker, nothing, failed},
		{"not concluded", true, daemon.Docker, nothing, func(_, _ *runtime, st *runtimeState) { st.Intent = &intent{} }},
		{"not healthy", true, daemon.Docker, nothing, dockerIll},
		{"nobody knows", true, daemon.Docker, nothing, func(_, docker *runtime, _ *runtimeState) { docker.err = errors.New("no connection") }},
		{"gone", false, daemon.Docker, nothing, func(_, docker *runtime, _ *runtimeState) { docker.facts = daemon.Facts{} }},
		{"docker is ill, and it was not this restart", false, daemon.Containerd, nothing, dockerIll},
		{"took docker down", true, daemon.Containerd, nothing, both(failed, dockerIll)},
		{"took docker down, and it is back", false, daemon.Containerd, nothing, failed},
		{"docker was stopped before, by somebody else", false, daemon.Containerd, dockerIll, failed},
		{"docker does not depend on it", false, daemon.Containerd,
			func(containerd, _ *runtime, _ *runtimeState) { containerd.facts.StopsDocker = false }, both(failed, dockerIll)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			containerd := &runtime{cfg: daemon.Config{Name: daemon.Containerd}, facts: daemon.Facts{Present: true, Healthy: true, StopsDocker: true}}
			docker := &runtime{cfg: daemon.Config{Name: daemon.Docker}, facts: daemon.Facts{Present: true, Healthy: true}}
			var g countGate
			s := &Syncer{state: newState(), gate: &g, runtimes: map[daemon.Name]*runtime{daemon.Docker: docker, daemon.Containerd: containerd}}
			var st runtimeState
			tt.before(containerd, docker, &st)
			if shut := s.enter(s.runtimes[tt.of]); shut.Reason != "" {
				t.Fatalf("shut: %+v", shut)
			}
			tt.after(containerd, docker, &st)
			s.state.Runtimes[tt.of] = st
			s.giveBack()
			s.giveBack()
			if kept := g.left == 0; kept != tt.kept || g.left > 1 {
				t.Errorf("given back %d times, want kept: %v", g.left, tt.kept)
			}
			s.drop()
			if g.left != 1 {
				t.Errorf("at the end it was given back %d times", g.left)
			}
		})
	}
}

// TestNotMade: a restart that was not made after all, because somebody had stopped
// the daemon meanwhile, keeps no other node waiting.
func TestNotMade(t *testing.T) {
	h, err := host.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	docker := &runtime{cfg: daemon.Config{Name: daemon.Docker, Unit: "docker.service"}, facts: daemon.Facts{Present: true, Healthy: true}}
	var g countGate
	s := &Syncer{
		host: h, now: time.Now, log: slog.New(slog.DiscardHandler), state: newState(), gate: &g,
		runtimes: map[daemon.Name]*runtime{daemon.Docker: docker},
	}
	if shut := s.enter(docker); shut.Reason != "" {
		t.Fatalf("shut: %+v", shut)
	}
	docker.facts.Healthy = false // which the last look before the restart finds
	var status Status
	s.restart(t.Context(), docker, work{}, &status)
	s.giveBack()
	if g.left != 1 || len(status.Errs) > 0 || s.state.Runtimes[daemon.Docker].Intent != nil {
		t.Errorf("given back %d times; %v; %+v", g.left, status.Errs, s.state.Runtimes)
	}
}

// TestEnterOnce: while a permission is kept, no other daemon of the node gets one.
func TestEnterOnce(t *testing.T) {
	g := newGate(t, true)
	docker := &runtime{cfg: daemon.Config{Name: daemon.Docker, Unit: "docker.service"}}
	containerd := &runtime{cfg: daemon.Config{Name: daemon.Containerd}}
	s := &Syncer{gate: &fileGate{dir: g.dir}}
	if shut := s.enter(docker); shut.Reason != "" {
		t.Fatalf("shut: %+v", shut)
	}
	want := Shut{Reason: WaitingForSlot, Detail: "docker was restarted with the slot that this node has, and is not healthy", Remedy: "look at it: systemctl status docker.service"}
	if diff := cmp.Diff(want, s.enter(containerd)); diff != "" {
		t.Errorf("the other daemon (-want +got):\n%s", diff)
	}
	s.drop()
	if shut := s.enter(containerd); shut.Reason != "" {
		t.Errorf("shut after that: %+v", shut)
	}
	g.expect("enter leave enter")
}

// TestAgain: a pass is made when the first of what is shut may be open, and the
// next pass does not hold to that.
func TestAgain(t *testing.T) {
	s, err := New(Config{HostRoot: t.TempDir(), Interval: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	docker := newRuntime(daemon.Config{Name: daemon.Docker})
	for _, again := range []time.Duration{20 * time.Minute, 10 * time.Minute, 0, 30 * time.Minute} {
		s.gate = shutGate{again: again}
		s.enter(docker)
	}
	if want := 10 * time.Minute; s.again != want {
		t.Errorf("the next pass is due in %v, want %v", s.again, want)
	}
	if _, err := s.Once(t.Context()); err != nil || s.again != 0 {
		t.Errorf("after a pass that restarts nothing: %v, %v", s.again, err)
	}
}

// shutGate is a gate that may be open again.
type shutGate struct {
	openGate
	again time.Duration
}

func (g shutGate) Enter() (func(), Shut) { return nil, Shut{Reason: OutsideWindow, Again: g.again} }
