package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/agent"
)

func TestMain(m *testing.M) {
	with := func(start func(context.Context, agent.Config, *slog.Logger, agent.Version) error) func() {
		named := func(name string) func(context.Context, agent.Config, *slog.Logger) error {
			return func(ctx context.Context, cfg agent.Config, log *slog.Logger) error {
				return start(ctx, cfg, log.With("work", name), agent.Version{})
			}
		}
		long := func(name string) func(context.Context, agent.Config, *slog.Logger, agent.Version) error {
			return func(ctx context.Context, cfg agent.Config, log *slog.Logger, v agent.Version) error {
				return start(ctx, cfg, log.With("work", name), v)
			}
		}
		return func() {
			os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr, work{
				run: long("run"), watch: long("watch"), trust: long("trust"),
				once: named("once"), uninstall: named("uninstall"),
				plan: func(ctx context.Context, cfg agent.Config, log *slog.Logger, w io.Writer) error {
					fmt.Fprintln(w, "planned")
					return start(ctx, cfg, log.With("work", "plan"), agent.Version{})
				},
			}))
		}
	}
	testscript.Main(leakChecked{m}, map[string]func(){
		"nodestead":         main,
		"nodestead-shows":   with(shows),
		"nodestead-fails":   with(fails),
		"nodestead-wrong":   with(wrong),
		"nodestead-stopped": with(stopped),
		"nodestead-stuck":   with(stuck),
	})
}

// leakChecked looks for goroutines that the tests left behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// shows is an agent that says how it was started, and ends.
func shows(_ context.Context, cfg agent.Config, log *slog.Logger, v agent.Version) error {
	log.Info("shown", "log_level", cfg.Log.Level.String(), "format", cfg.Log.Format, "watch", cfg.HTTP.Watch, "trust", cfg.HTTP.Trust,
		"ports", cfg.Names.Ports.String(), "version", v.Version)
	return nil
}

// fails is an agent with an error at run time.
func fails(context.Context, agent.Config, *slog.Logger, agent.Version) error {
	return errors.New("http.watch :9853: address already in use")
}

// wrong is a pass after which not all is in sync.
func wrong(context.Context, agent.Config, *slog.Logger, agent.Version) error {
	return errors.New("source /etc/nodestead/ca: missing: no such directory\nrestart of docker is pending: disruptive: it has no live-restore")
}

// stopped is an agent that is told to stop, and does.
func stopped(ctx context.Context, _ agent.Config, log *slog.Logger, _ agent.Version) error {
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		return err
	}
	<-ctx.Done()
	log.Info("stopped in order")
	return nil
}

// stuck is an agent that is told to stop, does not, and is told again until it
// dies.
func stuck(ctx context.Context, _ agent.Config, log *slog.Logger, _ agent.Version) error {
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		return err
	}
	<-ctx.Done()
	log.Info("stuck")
	for range time.Tick(10 * time.Millisecond) {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
	}
	return nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exits runs a program and looks at its exit code, or at the signal that ended
// it: exits 2 nodestead frob; exits terminated nodestead-stuck run.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program [argument...]")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		ended, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = strconv.Itoa(ended.ExitCode())
		if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			got = status.Signal().String()
		}
	}
	if got != args[0] {
		ts.Fatalf("%s ended with %s, want %s", args[1], got, args[0])
	}
}

func TestVersion(t *testing.T) {
	info := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "abc"}
	tests := []struct {
		name string
		set  agent.Version
		info *debug.BuildInfo
		want agent.Version
	}{
		{"set", agent.Version{Version: "v1", Commit: "def"}, info("v0", revision), agent.Version{Version: "v1", Commit: "def"}},
		{"noted", agent.Version{}, info("v0", revision), agent.Version{Version: "v0", Commit: "abc"}},
		{"version set", agent.Version{Version: "v1"}, info("v0", revision, debug.BuildSetting{Key: "vcs.modified", Value: "false"}), agent.Version{Version: "v1", Commit: "abc"}},
		{"modified", agent.Version{}, info("v0", debug.BuildSetting{Key: "vcs.modified", Value: "true"}, revision), agent.Version{Version: "v0", Commit: "abc-modified"}},
		{"no repository", agent.Version{}, info("(devel)", debug.BuildSetting{Key: "vcs.modified", Value: "true"}), agent.Version{Version: "(devel)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := complete(tt.set, tt.info); got != tt.want {
				t.Errorf("complete gives %+v, want %+v", got, tt.want)
			}
		})
	}
}
