package certsync

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/certsync/daemon"
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

// TestGiveBack: a permission is given back when the restart is concluded and has
// left nothing unhealthy.
func TestGiveBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		kept bool
		of   daemon.Name
		is   func(containerd, docker *runtime, st *runtimeState)
	}{
		{"healthy", false, daemon.Docker, func(_, _ *runtime, _ *runtimeState) {}},
		{"healthy, and it failed: systemd refused", false, daemon.Docker, func(_, _ *runtime, st *runtimeState) { st.History.Outcome = daemon.Failed }},
		{"not concluded", true, daemon.Docker, func(_, _ *runtime, st *runtimeState) { st.Intent = &intent{} }},
		{"not healthy", true, daemon.Docker, func(_, docker *runtime, _ *runtimeState) { docker.facts.Healthy = false }},
		{"nobody knows", true, daemon.Docker, func(_, docker *runtime, _ *runtimeState) { docker.err = errors.New("no connection") }},
		{"gone", false, daemon.Docker, func(_, docker *runtime, _ *runtimeState) { docker.facts = daemon.Facts{} }},
		{"another is not healthy", false, daemon.Containerd, func(_, docker *runtime, _ *runtimeState) { docker.facts.Healthy = false }},
		{"took docker down", true, daemon.Containerd, func(containerd, docker *runtime, st *runtimeState) {
			containerd.facts.StopsDocker, docker.facts.Healthy, st.History.Outcome = true, false, daemon.Failed
		}},
		{"took docker down, and it is back", false, daemon.Containerd, func(containerd, _ *runtime, st *runtimeState) {
			containerd.facts.StopsDocker, st.History.Outcome = true, daemon.Failed
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rt := func(name daemon.Name) *runtime {
				return &runtime{cfg: daemon.Config{Name: name}, facts: daemon.Facts{Present: true, Healthy: true}}
			}
			s := &Syncer{state: newState(), runtimes: map[daemon.Name]*runtime{daemon.Docker: rt(daemon.Docker), daemon.Containerd: rt(daemon.Containerd)}}
			var st runtimeState
			tt.is(s.runtimes[daemon.Containerd], s.runtimes[daemon.Docker], &st)
			s.state.Runtimes[tt.of] = st
			left := 0
			s.held = held{s.runtimes[tt.of], func() { left++ }}
			s.giveBack()
			s.giveBack()
			if kept := left == 0; kept != tt.kept || left > 1 {
				t.Errorf("given back %d times, want kept: %v", left, tt.kept)
			}
			s.drop()
			if left != 1 {
				t.Errorf("at the end it was given back %d times", left)
			}
		})
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
