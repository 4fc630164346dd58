package place

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

func TestRebuilds(t *testing.T) {
	for _, tt := range []struct {
		args string // with spaces for the zeros
		want bool
	}{
		{"/bin/sh -e /usr/sbin/update-ca-certificates --fresh", true},
		{"/bin/bash /usr/bin/update-ca-trust extract", true},
		{"update-ca-certificates", true}, // Alpine's program
		{"/usr/bin/trust extract --format=pem-bundle x", true},
		{"/usr/bin/p11-kit extract x", true},
		{"/bin/sh /usr/lib/p11-kit/trust-extract-compat", true},
		{"trust list", false},
		{"trust", false},
		{"man update-ca-certificates", false},
		{"vi /usr/sbin/update-ca-certificates", false},
		{"/bin/sh -c sleep 1; update-ca-certificates", false}, // not yet
		{"sh", false},
		{"", false},
	} {
		if got := rebuilds([]byte(strings.ReplaceAll(tt.args, " ", "\x00") + "\x00")); got != tt.want {
			t.Errorf("%q: %v", tt.args, got)
		}
	}
}

// TestRuns finds a process of this machine by its command line.
func TestRuns(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "update-ca-certificates")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\nread line\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h, err := host.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	running := func() bool {
		pids, err := runs(h)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(pids, cmd.Process.Pid)
	}
	err = lab.Until(t.Context(), 10*time.Second, func() error {
		if running() { // as soon as it has become the tool
			return nil
		}
		return os.ErrNotExist
	})
	if err != nil {
		t.Errorf("the run is not seen: %v", err)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // read has found no line
	if running() {
		t.Error("the run is seen although it has ended")
	}
}
