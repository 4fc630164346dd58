package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// In a pod whose service account was forgotten nothing restarts, all else goes
// on, and each command says how to go on.
func TestTrustInAPodWithoutAccount(t *testing.T) {
	n := newTrustNode(t, lab.BoxConfig{LiveRestore: true})
	if err := n.Pull(t.Context(), n.image); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Fatalf("the pull before: %v", err)
	}
	n.give("ca.crt", n.ca)
	docker := n.docker()
	settings := []string{"--trust.registries=registry.example.test:5000", "--trust.certs_d=off"}
	// As the kubelet sets them; /var/run/secrets is not there.
	pod := []string{"KUBERNETES_SERVICE_HOST=192.0.2.1", "KUBERNETES_SERVICE_PORT=443", "NODE_NAME=worker-7"}
	once := func(code int, more ...string) (string, string) {
		t.Helper()
		cmd := exec.Command("nodestead", n.args("trust", append(more, settings...)...)...)
		cmd.Env = append(cmd.Environ(), pod...)
		return n.runs(code, cmd)
	}
	out, _ := once(0, "--dry-run")
	n.says(out, "if not:            it would be restarted (untrusted), and not at once (waiting_for_slot): it would have to wait for a restart slot of the cluster, which has 1")
	_, stderr := once(1, "--once")
	n.says(stderr, "nodestead: restart of docker is pending: waiting_for_slot: a single pass does not wait", "the DaemonSet takes the restart up", "--trust.restarts.concurrency=0")

	cmd, log := start(t, n.lab.Node(), "env", append(append(pod, "nodestead"), n.args("trust", settings...)...)...)
	n.metrics("9854", `nodestead_runtime_restart_pending{reason="waiting_for_slot",runtime="docker"} 1`, `nodestead_trust_in_sync{target="store"} 1`)
	if _, body, err := n.page("9854", "/metrics"); err != nil || strings.Contains(body, "nodestead_events_lost_total") {
		t.Errorf("there are Events, or %v", err)
	}
	text := n.stop(cmd, log)
	n.says(text, `level=WARN msg="the cluster cannot be joined"`, "no service account is mounted", "node=worker-7 events=false restart_slots=1",
		`msg="a restart is pending" runtime=docker reason=waiting_for_slot detail="nobody can tell whether another node restarts: no service account`)
	if c := strings.Count(text, "cannot be joined"); c != 1 {
		t.Errorf("that it cannot join is said %d times", c)
	}
	if now := n.docker(); now.InvocationID != docker.InvocationID {
		t.Errorf("docker was restarted: %+v", now)
	}

	_, stderr = once(0, "--once", "--trust.restarts.concurrency=0")
	n.says(stderr, `msg="a daemon was restarted" runtime=docker result=helped`)
	if err := n.Pull(t.Context(), n.image); err != nil {
		t.Errorf("the pull after: %v", err)
	}
}
