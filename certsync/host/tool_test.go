package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

const toolUnit = "nodestead-test.service"

// shell is a script as the tool.
func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

// TestTool runs tools on a node with systemd, and in a root that has neither
// systemd nor /dev nor /proc.
func TestTool(t *testing.T) {
	t.Parallel()
	b := node(t, nil)
	const bare = "/srv/bare"
	in(t, b, "sh", "-c", "mkdir "+bare+" && mount --bind / "+bare+" && rm "+bare+"/dev/null")
	t.Run("systemd", func(t *testing.T) {
		testTool(t, b, open(t, b.Root()), "job failed, result exit-code, status 3", "job failed, result signal, status 9")
		testUnit(t, b)
	})
	t.Run("chroot", func(t *testing.T) {
		h := open(t, b.Root()+bare)
		if _, err := h.Stat("/dev/null"); err == nil {
			t.Fatal("the bare root has a /dev/null")
		}
		testTool(t, b, h, "exit status 3", "signal: killed")
		testChroot(t, b, h)
	})
}

// testTool tests what both ways have in common. The box's root is the same file
// system as the bare one, so that files of both are seen in either.
func testTool(t *testing.T, b *lab.Box, h *Host, exit3, signal9 string) {
	content := func(name string) string {
		t.Helper()
		is, err := h.ReadFile(name, 1<<20)
		must(t, err)
		return string(is)
	}

	t.Run("runs in the root", func(t *testing.T) {
		var steps []string
		h.OnStep(func(step string) { steps = append(steps, step) })
		defer h.OnStep(nil)
		must(t, h.Tool(t.Context(), toolUnit, shell(`exec >/srv/out; env; pwd; echo $$: '${LC_ALL} $LC_ALL %n'; echo "$0 $#"; cat; echo done`)))
		got := content("/srv/out")
		for _, want := range []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", "LC_ALL=C\n", "\n/\n", ": ${LC_ALL} $LC_ALL %n\n", "\n/bin/sh 0\n", "\ndone\n",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %s", want, got)
			}
		}
		for _, name := range []string{"HOME", "USER", helperEnv, "GOPATH"} {
			if strings.Contains(got, name+"=") {
				t.Errorf("%s is in its environment: %s", name, got)
			}
		}
		if diff := cmp.Diff([]string{"tool", "tool called", "tool done"}, steps); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
	})

	t.Run("fails", func(t *testing.T) {
		for _, test := range []struct {
			argv []string
			want []string
		}{
			{shell("echo so it is >&2; exit 3"), []string{"run /bin/sh: ", exit3 + ": so it is"}},
			{shell("echo out; echo err >&2; echo out again; exit 3"), []string{exit3 + ": out\nerr\nout again"}},
			{shell("exit 3"), []string{exit3 + ": it printed nothing"}},
			{shell("kill -KILL $$"), []string{signal9}},
			{shell(`i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; printf '\377'; exit 3`), []string{exit3 + ": … ", "\nline 1998\nline 1999\n?"}},
			{[]string{"/usr/bin/none"}, []string{"run /usr/bin/none: "}},
			{[]string{"sh"}, []string{"not an absolute path"}},
			{nil, []string{"not an absolute path"}},
		} {
			err := h.Tool(t.Context(), toolUnit, test.argv)
			for _, want := range test.want {
				if !says(err, want) {
					t.Errorf("%q: %v, want %q", test.argv, err, want)
				}
			}
			if err != nil && len(err.Error()) > toolTail+200 {
				t.Errorf("%q: an error of %d bytes", test.argv, len(err.Error()))
			}
		}
	})

	t.Run("one at a time", func(t *testing.T) {
		must(t, h.Remove("/srv/log"))
		var runs sync.WaitGroup
		for range 4 {
			runs.Go(func() {
				if err := h.Tool(t.Context(), toolUnit, shell("echo begins >>/srv/log; sleep 0.2; echo ends >>/srv/log")); err != nil {
					t.Error(err)
				}
			})
		}
		runs.Wait()
		if diff := cmp.Diff(strings.Repeat("begins\nends\n", 4), content("/srv/log")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})

	t.Run("the agent dies", func(t *testing.T) {
		must(t, h.Remove("/srv/log"))
		script := "echo begins >>/srv/log; sleep 0.5; echo output; echo output >&2; echo ends >>/srv/log"
		cmd := helper(t, h.path, 2, append([]string{"tool", toolUnit}, shell(script)...)...)
		if !killed(t, cmd) {
			t.Fatal("the helper lives")
		}
		// What it started goes on, and the next one waits for it.
		must(t, h.Tool(t.Context(), toolUnit, shell("echo next >>/srv/log")))
		if diff := cmp.Diff("begins\nends\nnext\n", content("/srv/log")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})

	t.Run("update-ca-certificates", func(t *testing.T) {
		const bundle = "/etc/ssl/certs/ca-certificates.crt"
		must(t, h.Remove(bundle))
		must(t, h.Tool(t.Context(), toolUnit, []string{"/usr/sbin/update-ca-certificates"}))
		if n := strings.Count(content(bundle), "BEGIN CERTIFICATE"); n < 100 {
			t.Errorf("%d certificates in the bundle", n)
		}
	})
}

// testUnit tests what only a transient unit does.
func testUnit(t *testing.T, b *lab.Box) {
	h := open(t, b.Root())
	s := connect(t, h)
	gone := func() error {
		u, err := s.Unit(t.Context(), toolUnit)
		switch {
		case errors.Is(err, ErrNoUnit):
			return nil
		case err != nil:
			return err
		}
		return fmt.Errorf("it is %+v", u)
	}
	slow := shell("echo so far; touch /srv/begun; sleep 1000")
	// begun waits until it has printed what it prints.
	begun := func() {
		waitFor(t, func() error {
			_, err := h.Stat("/srv/begun")
			return err
		})
		must(t, h.Remove("/srv/begun"))
	}

	t.Run("nothing is left", func(t *testing.T) {
		waitFor(t, gone)
		must(t, h.Tool(t.Context(), toolUnit, shell("cat /proc/self/cgroup >/srv/out")))
		if got := in(t, b, "cat", "/srv/out"); !strings.Contains(got, toolUnit) {
			t.Errorf("it ran in %s", got)
		}
		waitFor(t, gone)
		if err := h.Tool(t.Context(), toolUnit, shell("false")); err == nil {
			t.Error("no error")
		}
		waitFor(t, gone)
		if got := in(t, b, "systemctl", "--failed", "--no-legend", "--plain", "list-units", "nodestead*"); got != "" {
			t.Errorf("failed: %s", got)
		}
	})

	t.Run("killed", func(t *testing.T) {
		h := open(t, b.Root())
		h.OnStep(func(step string) {
			if step == "tool called" {
				begun()
				in(t, b, "systemctl", "kill", "--signal=KILL", toolUnit)
			}
		})
		if err := h.Tool(t.Context(), toolUnit, slow); !says(err, "run /bin/sh: "+toolUnit+": job failed, result signal, status 9: so far") {
			t.Errorf("%v", err)
		}
		h.OnStep(func(step string) {
			if step == "tool called" {
				begun()
				in(t, b, "systemctl", "stop", toolUnit)
			}
		})
		if err := h.Tool(t.Context(), toolUnit, slow); !says(err, "run /bin/sh: "+toolUnit+": job canceled, ") || !says(err, ": so far") {
			t.Errorf("stopped: %v", err)
		}
	})

	t.Run("its time", func(t *testing.T) {
		h := open(t, b.Root())
		h.OnStep(func(step string) {
			if step == "tool called" {
				if got := in(t, b, "systemctl", "show", "--value", "--property=TimeoutStartUSec", toolUnit); got != "2min" {
					t.Errorf("it may take %s", got)
				}
				in(t, b, "systemctl", "stop", toolUnit)
			}
		})
		if err := h.Tool(t.Context(), toolUnit, slow); err == nil {
			t.Error("no error")
		}
	})

	t.Run("not waited for", func(t *testing.T) {
		h := open(t, b.Root())
		ctx, cancel := context.WithCancel(t.Context())
		h.OnStep(func(step string) {
			if step == "tool called" {
				cancel()
			}
		})
		if err := h.Tool(ctx, toolUnit, slow); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		waiting, stop := context.WithCancel(t.Context())
		tries := 0
		h.OnStep(func(step string) {
			if step != "tool" {
				t.Errorf("while another runs: %s", step)
			} else if tries++; tries == 3 {
				stop()
			}
		})
		if err := h.Tool(waiting, toolUnit, slow); !errors.Is(err, context.Canceled) || !says(err, toolUnit) {
			t.Errorf("while another runs: %v", err)
		}
		in(t, b, "systemctl", "stop", toolUnit)
		waitFor(t, gone)
	})

	t.Run("lost", func(t *testing.T) {
		h := open(t, b.Root())
		h.OnStep(func(step string) {
			if step == "tool called" {
				in(t, b, "systemctl", "kill", "--signal=KILL", "dbus.service")
			}
		})
		if err := h.Tool(t.Context(), toolUnit, slow); !errors.Is(err, ErrLost) {
			t.Errorf("%v", err)
		}
		in(t, b, "systemctl", "stop", toolUnit)
	})
}

// testChroot tests what only the chroot does.
func testChroot(t *testing.T, b *lab.Box, h *Host) {
	// A process in the background that runs when the script goes on. The shell wants
	// a /dev/null for it.
	const background1001 = "touch /dev/null; rm -f /srv/runs; (touch /srv/runs; exec sleep 1001.25) & until [ -e /srv/runs ]; do :; done; "
	t.Run("goes on when its context ends", func(t *testing.T) {
		must(t, errors.Join(h.Remove("/srv/go"), h.Remove("/srv/survived")))
		ctx, cancel := context.WithCancel(t.Context())
		h.OnStep(func(step string) {
			if step == "tool called" {
				cancel()
			}
		})
		err := h.Tool(ctx, toolUnit, shell("until [ -e /srv/go ]; do sleep 0.02; done; touch /srv/survived"))
		h.OnStep(nil)
		if !errors.Is(err, context.Canceled) || !says(err, "it goes on, as process ") {
			t.Errorf("%v", err)
		}
		in(t, b, "touch", "/srv/go")
		// The next one waits for its end.
		must(t, h.Tool(t.Context(), toolUnit, shell("[ -e /srv/survived ]")))
	})
	t.Run("leaves nobody behind", func(t *testing.T) {
		must(t, h.Tool(t.Context(), toolUnit, shell(background1001)))
		nobody(t, "1001.25")
	})
	t.Run("lock", func(t *testing.T) {
		unlock, err := h.Lock(t.Context(), lockDir+toolUnit+".lock")
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*lockPoll)
		defer cancel()
		out, err := output()
		must(t, err)
		defer out.Close()
		// Not by Tool, whose time might be over before it has found out that there is no systemd.
		if err := h.chroot(ctx, toolUnit, shell("true"), out); !errors.Is(err, context.DeadlineExceeded) || !says(err, "which another holds") {
			t.Errorf("while another runs: %v", err)
		}
		must(t, unlock())
	})
}

// nobody waits until no process of the machine has one of the words in its command
// line. A process that was killed may need a moment to end.
func nobody(t *testing.T, words ...string) {
	t.Helper()
	waitFor(t, func() error {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, file := range files {
			is, _ := os.ReadFile(file) // it may have ended
			for _, word := range words {
				if strings.Contains(string(is), word) {
					return fmt.Errorf("%s is %q", file, is)
				}
			}
		}
		return nil
	})
}

// TestFullDisk proves that a file stays as it was where there is no room for a
// new one, and that nothing is left.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	b := node(t, nil)
	in(t, b, "sh", "-c", "mkdir /srv/small && mount -t tmpfs -o size=64k,mode=755 tmpfs /srv/small")
	h := open(t, b.Root())
	_, err := h.WriteFile("/srv/small/a", []byte("old"), 0o644)
	must(t, err)
	before := snapshot(t, b.Root()+"/srv/small")
	changed, err := h.WriteFile("/srv/small/a", make([]byte, 1<<20), 0o644)
	if changed || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("changed %v, %v", changed, err)
	}
	in(t, b, "mount", "-o", "remount,ro", "/srv/small")
	changed, err = h.WriteFile("/srv/small/a", []byte("new"), 0o644)
	if changed || !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only: changed %v, %v", changed, err)
	}
	if changed, err = h.WriteFile("/srv/small/a", []byte("old"), 0o644); changed || err != nil {
		t.Errorf("read-only, the same: changed %v, %v", changed, err)
	}
	if diff := cmp.Diff(before, snapshot(t, b.Root()+"/srv/small")); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}
