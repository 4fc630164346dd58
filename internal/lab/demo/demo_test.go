package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The demo plays, and sees, every scene; and it fails when the agent sees
// nothing.
func TestDemo(t *testing.T) {
	agent := build(t)
	var out bytes.Buffer
	if err := run(t.Context(), &out, []string{agent}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"cause=orphaned_answer", "cause=collision_dropped", "cause=family_mismatch", "cause=search_stopped", "cause=slow_answer", "cause=server_silent",
		"advice=random_backends", "advice=search_amplification", "reason=notrack", "exit code 0",
		"x509: certificate signed by unknown authority", "a daemon was restarted", "kept its pid", "no daemon was restarted", "byte for byte", "All 11 scenes",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in what it prints:\n%s", want, out.String())
		}
	}
}

func TestDemoNeedsAnAgentThatSees(t *testing.T) {
	agent := build(t)
	var out bytes.Buffer
	// On this port there is no DNS, so it sees nothing.
	t.Setenv("NODESTEAD_NAMES_PORTS", "5353")
	err := run(t.Context(), &out, []string{agent})
	if err == nil || !strings.Contains(err.Error(), "scene 1 was not seen") {
		t.Errorf("the demo with an agent that watches another port: %v\n%s", err, out.String())
	}
}

// build builds the agent. It skips the test when no lab can be made.
func build(t *testing.T) string {
	t.Helper()
	lab.ForTest(t)
	agent := filepath.Join(t.TempDir(), "nodestead")
	if out, err := exec.Command("go", "build", "-o", agent, "../../../cmd/nodestead").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return agent
}
