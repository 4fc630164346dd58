package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/internal/lab"
)

// units are what the tests' node has besides Debian's.
var units = map[string]string{
	"etc/systemd/system/small.service":     "[Service]\nExecStart=/bin/sleep infinity\nRestart=always\nRestartSec=10ms\n",
	"etc/systemd/system/requires.service":  "[Unit]\nRequires=small.service\n[Service]\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/requisite.service": "[Unit]\nRequisite=small.service\n[Service]\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/bound.service":     "[Unit]\nBindsTo=small.service\n[Service]\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/part.service":      "[Unit]\nPartOf=small.service\n[Service]\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/wants.service":     "[Unit]\nWants=small.service\n[Service]\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/fails.service":     "[Service]\nType=oneshot\nExecStart=/bin/false\n",
	"etc/systemd/system/slow.service":      "[Service]\nType=oneshot\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/limited.service":   "[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=1h\n[Service]\nExecStart=/bin/sleep infinity\n",
	"etc/systemd/system/broken.service":    "[Service]\nType=simple\n",
}

func node(t *testing.T, files map[string]string) *lab.Box {
	t.Helper()
	b, err := lab.ForTest(t).Boot(t.Context(), lab.BoxConfig{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func in(t *testing.T, b *lab.Box, args ...string) string {
	t.Helper()
	out, err := b.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func connect(t *testing.T, h *Host) *Systemd {
	t.Helper()
	s, err := h.Systemd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestSystemd talks to a real systemd.
func TestSystemd(t *testing.T) {
	t.Parallel()
	b := node(t, units)
	in(t, b, "ln", "-s", "/etc/systemd/system/small.service", "/etc/systemd/system/alias.service")
	in(t, b, "systemctl", "daemon-reload")
	in(t, b, "systemctl", "start", "small.service", "requires.service", "requisite.service", "bound.service", "part.service", "wants.service")
	h := open(t, b.Root())
	s := connect(t, h)
	show := func(unit, property string) string {
		return in(t, b, "systemctl", "show", "--value", "--property", property, unit)
	}
	// begins waits until the job of slow.service has begun: systemd answers a call when it has
	// queued the job, and begins it when nobody wants anything else of it.
	begins := func(what string) {
		t.Helper()
		waitFor(t, func() error {
			if got := show("slow.service", "ActiveState"); got != "activating" {
				return fmt.Errorf("%s: it is %s", what, got)
			}
			return nil
		})
	}
	unit := func(t *testing.T, name string) Unit {
		t.Helper()
		u, err := s.Unit(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}

	t.Run("unit", func(t *testing.T) {
		u := unit(t, "docker.service")
		want := Unit{Name: "docker.service", ActiveState: "inactive", Result: "success", RequiredBy: u.RequiredBy, TriggeredBy: []string{"docker.socket"}}
		if diff := cmp.Diff(want, u); diff != "" || u.Active() {
			t.Errorf("docker (-want +got):\n%s", diff)
		}
		must(t, b.StartDocker(t.Context()))
		if u = unit(t, "docker.service"); !u.Active() || u.InvocationID == "" || u.MainPID == 0 || time.Since(u.Started) > time.Minute {
			t.Errorf("docker, started: %+v", u)
		}
		u = unit(t, "containerd.service")
		pid, err := strconv.Atoi(show("containerd.service", "MainPID"))
		must(t, err)
		want = Unit{
			Name: "containerd.service", ActiveState: "active", Result: "success", InvocationID: show("containerd.service", "InvocationID"),
			Started: u.Started, MainPID: pid, TriggeredBy: []string{},
			RequiredBy: nil, // Debian's docker only wants it
		}
		if diff := cmp.Diff(want, u); diff != "" {
			t.Errorf("containerd (-want +got):\n%s", diff)
		}
		started := in(t, b, "systemctl", "show", "--timestamp=us+utc", "--value", "--property", "ActiveEnterTimestamp", "containerd.service")
		if got := u.Started.UTC().Format("Mon 2006-01-02 15:04:05.000000 MST"); got != started {
			t.Errorf("started at %s, systemctl says %s", got, started)
		}

		if u = unit(t, "docker.socket"); !u.Active() || u.Result != "success" || !slices.Equal(u.RequiredBy, []string{"docker.service"}) {
			t.Errorf("docker's socket: %+v", u)
		}
		if u = unit(t, "basic.target"); !u.Active() {
			t.Errorf("a target: %+v", u)
		}
		if u = unit(t, "alias.service"); u.Name != "small.service" || !u.Active() {
			t.Errorf("by an alias: %+v", u)
		}
		if diff := cmp.Diff([]string{"bound.service", "part.service", "requires.service", "requisite.service"}, u.RequiredBy); diff != "" {
			t.Errorf("what stops with it (-want +got):\n%s", diff)
		}
		// That is what systemd does.
		in(t, b, "systemctl", "stop", "small.service")
		for _, name := range append(u.RequiredBy, "wants.service") {
			if got, want := unit(t, name).Active(), name == "wants.service"; got != want {
				t.Errorf("%s is active after the stop: %v", name, got)
			}
		}
	})

	t.Run("restart", func(t *testing.T) {
		var steps []string
		h.OnStep(func(step string) { steps = append(steps, step) })
		defer h.OnStep(nil)
		must(t, s.Start(t.Context(), "small.service"))
		before := unit(t, "small.service")
		must(t, s.Restart(t.Context(), "small.service"))
		after := unit(t, "small.service")
		if before.InvocationID == after.InvocationID || before.MainPID == after.MainPID || !after.Started.After(before.Started) || !after.Active() {
			t.Errorf("before: %+v\nafter: %+v", before, after)
		}
		if diff := cmp.Diff([]string{"start", "start called", "start done", "restart", "restart called", "restart done"}, steps); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
		must(t, s.Start(t.Context(), "small.service"))
		if again := unit(t, "small.service"); again.InvocationID != after.InvocationID || again.Restarts != 0 {
			t.Errorf("after a start of what runs: %+v", again)
		}
		in(t, b, "systemctl", "kill", "--signal=KILL", "small.service")
		waitFor(t, func() error {
			if u := unit(t, "small.service"); u.Restarts != 1 || !u.Active() || u.InvocationID == after.InvocationID {
				return fmt.Errorf("after its death: %+v", u)
			}
			return nil
		})
	})

	t.Run("fails", func(t *testing.T) {
		for name, call := range map[string]func(context.Context, string) error{"start": s.Start, "restart": s.Restart} {
			err := call(t.Context(), "fails.service")
			if want := name + " fails.service: job failed; it is failed, result exit-code"; err == nil || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
			if err := call(t.Context(), "broken.service"); err == nil || errors.Is(err, ErrNoUnit) || errors.Is(err, ErrLost) {
				t.Errorf("a unit that is not understood: %v", err)
			}
		}
		for _, name := range []string{"none.service", "none.socket"} {
			_, err := s.Unit(t.Context(), name)
			for call, err := range map[string]error{
				"unit": err, "start": s.Start(t.Context(), name), "restart": s.Restart(t.Context(), name), "reset-failed": s.ResetFailed(t.Context(), name),
			} {
				if !errors.Is(err, ErrNoUnit) || !says(err, name) {
					t.Errorf("%s of %s: %v", call, name, err)
				}
			}
		}
		if err := s.ResetFailed(t.Context(), "limited.service"); err != nil {
			t.Errorf("nothing has failed yet: %v", err)
		}
		if _, err := s.Unit(t.Context(), ""); err == nil {
			t.Error("a unit without a name")
		}
	})

	t.Run("start limit", func(t *testing.T) {
		const name = "limited.service"
		must(t, s.Start(t.Context(), name))
		must(t, s.Restart(t.Context(), name))
		const want = "job failed; it is failed, result start-limit-hit"
		if err := s.Restart(t.Context(), name); !says(err, want) {
			t.Errorf("%v, want %s", err, want)
		}
		if u := unit(t, name); u.Active() || u.Result != "start-limit-hit" || u.MainPID != 0 {
			t.Errorf("it is %+v", u)
		}
		if err := s.Start(t.Context(), name); !says(err, want) {
			t.Errorf("%v, want %s", err, want)
		}
		must(t, s.ResetFailed(t.Context(), name))
		must(t, s.Start(t.Context(), name))
		// It forgets past starts of a unit that runs, too.
		must(t, s.Restart(t.Context(), name))
		must(t, s.ResetFailed(t.Context(), name))
		must(t, s.Restart(t.Context(), name))
		if !unit(t, name).Active() {
			t.Error("it does not run")
		}
	})

	t.Run("not waited for", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		h.OnStep(func(step string) {
			if step == "restart called" {
				cancel()
			}
		})
		defer h.OnStep(nil)
		if err := s.Restart(ctx, "slow.service"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrLost) {
			t.Errorf("%v", err)
		}
		begins("the job that nobody waits for")
		if !unit(t, "small.service").Active() {
			t.Error("the connection does not outlive a call")
		}
		in(t, b, "systemctl", "stop", "slow.service")
	})

	t.Run("outlives its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := h.Systemd(ctx)
		must(t, err)
		cancel()
		if _, err := s.Unit(t.Context(), "small.service"); err != nil {
			t.Error(err)
		}
		s.Close()
		if _, err := s.Unit(t.Context(), "small.service"); !errors.Is(err, ErrLost) {
			t.Errorf("after Close: %v", err)
		}
		if _, err := h.Systemd(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoSystemd) {
			t.Errorf("when its context has ended: %v", err)
		}
	})

	// A bus alone makes no systemd.
	t.Run("another init", func(t *testing.T) {
		in(t, b, "mkdir", "-p", "/srv/other/run/dbus")
		ended := make(chan struct{})
		t.Cleanup(func() { <-ended }) // with the test's context
		go func() {
			defer close(ended)
			_, _ = b.Run(t.Context(), "dbus-daemon", "--session", "--nofork", "--address=unix:path=/srv/other/run/dbus/system_bus_socket")
		}()
		other := open(t, filepath.Join(b.Root(), "srv/other"))
		waitFor(t, func() error {
			conn, err := net.Dial("unix", other.Socket(systemBus))
			if err == nil {
				err = conn.Close()
			}
			return err
		})
		if _, err := other.Systemd(t.Context()); !errors.Is(err, ErrNoSystemd) || !says(err, "org.freedesktop.systemd1") {
			t.Errorf("%v", err)
		}
	})

	// The last one: it takes the bus away.
	t.Run("lost", func(t *testing.T) {
		h.OnStep(func(step string) {
			if step == "restart called" {
				in(t, b, "systemctl", "kill", "--signal=KILL", "dbus.service")
			}
		})
		defer h.OnStep(nil)
		if err := s.Restart(t.Context(), "slow.service"); !errors.Is(err, ErrLost) {
			t.Errorf("%v", err)
		}
		begins("the job whose end is not heard")
		if _, err := s.Unit(t.Context(), "small.service"); !errors.Is(err, ErrLost) {
			t.Errorf("over the lost connection: %v", err)
		}
		waitFor(t, func() error {
			s, err := h.Systemd(t.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Unit(t.Context(), "small.service")
			return err
		})
	})
}

// TestNoSystemd proves that a node without a bus, or with one that is dead or
// wants nothing of us, has no systemd.
func TestNoSystemd(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir())
	if _, err := h.Systemd(t.Context()); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("no bus: %v", err)
	}
	bus := listen(t, h)
	bus.SetUnlinkOnClose(false)
	must(t, bus.Close())
	if _, err := h.Systemd(t.Context()); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("a bus that is dead: %v", err)
	}
	must(t, os.Remove(h.Socket(systemBus)))
	bus = listen(t, h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := bus.Accept(); err == nil {
			_, _ = conn.Write([]byte("REJECTED\r\n"))
			_ = conn.Close()
		}
	}()
	if _, err := h.Systemd(t.Context()); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("a bus that wants nothing of us: %v", err)
	}
	must(t, bus.Close())
	<-done
}

// TestBusHangs proves that a bus that does not answer does not hold us, and is not
// taken for none.
func TestBusHangs(t *testing.T) {
	t.Parallel()
	needRoot(t) // where a group is not mapped the first byte cannot be sent
	h := open(t, t.TempDir())
	bus := listen(t, h)
	defer bus.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.Systemd(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoSystemd) {
		t.Errorf("%v", err)
	}
}

// listen listens where a bus would.
func listen(t *testing.T, h *Host) *net.UnixListener {
	t.Helper()
	plant(t, h.path, "run/dbus/")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.Socket(systemBus), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// BenchmarkUnit is what one look at a daemon costs.
func BenchmarkUnit(b *testing.B) {
	box, err := lab.ForTest(b).Boot(b.Context(), lab.BoxConfig{})
	if err != nil {
		b.Fatal(err)
	}
	h, err := Open(box.Root())
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	s, err := h.Systemd(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if _, err := s.Unit(b.Context(), "containerd.service"); err != nil {
			b.Fatal(err)
		}
	}
}
