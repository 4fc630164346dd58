package certsync

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/internal/lab"
)

// TestBoxPreview: the preview and the examination change nothing, and ask no
// daemon before the CA is in: it needs no restart afterwards. What they say comes
// true.
func TestBoxPreview(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab.BoxConfig{})
	n.sleeper()
	docker := n.unit("docker.service")
	n.give(n.ca)
	before, connections := n.snapshot(append(owned, "/run/lock")...), n.registry.Connections()
	preview := func(change ...func(*spec)) string {
		t.Helper()
		return startAgent(t, n.lab.Node(), n.spec("plan", change...)).finish().Preview
	}
	contains := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("it does not say %q:\n%s", w, text)
			}
		}
	}
	fp := fingerprintOf(n.ca)
	contains(preview(), "anchors: 1\n", fp+"  CN=private root,O=nodestead lab, until ", "store: an anchor is new\n",
		"  write  /usr/local/share/ca-certificates/nodestead-"+fp+".crt\n", "  run    /usr/sbin/update-ca-certificates\n",
		"docker: a restart would be pending (no_live_restore)", "containerd: it would be restarted (started_before)\n")
	contains(preview(named, noCertsD), "docker: asked about "+registryName+":5000 after the installation\n",
		"  if it trusts them: no restart (trusted)\n", "  if not:            a restart would be pending (no_live_restore)")
	contains(preview(named), "  write  /etc/docker/certs.d/"+registryName+":5000/nodestead.crt\n", "  write  /etc/containerd/certs.d/")
	contains(preview(disruptive), "docker: it would be restarted (started_before)\n")
	e := startAgent(t, n.lab.Node(), n.spec("examine", named)).finish()
	if want := []string{"containerd/" + registryName + ":5000", "docker/" + registryName + ":5000", "store"}; !slices.Equal(e.Waiting, want) {
		t.Errorf("waiting: %v, want %v", e.Waiting, want)
	}
	if diff := cmp.Diff(before, n.snapshot(append(owned, "/run/lock")...)); diff != "" {
		t.Errorf("something was written (-before +after):\n%s", diff)
	}
	if got := n.registry.Connections() - connections; got != 0 {
		t.Errorf("the registry was asked %d times", got)
	}

	r := n.once(named, noCertsD)
	r.clean(t)
	if got := r.decided(daemon.Docker); got != "leave trusted" {
		t.Errorf("docker: %s", got)
	}
	n.same("docker.service", docker)
	contains(preview(named, noCertsD), "nothing would be installed or removed\n", "docker: asked about ")
	e = startAgent(t, n.lab.Node(), n.spec("examine", named, noCertsD)).finish()
	if got := e.decided(daemon.Docker); got != "leave trusted" || len(e.Waiting) > 0 || len(e.Wrong) > 0 {
		t.Errorf("examined: %s, waiting %v, wrong %v", got, e.Waiting, e.Wrong)
	}

	// Somebody asks about a registry that is in certs.d, and not in these settings.
	n.once(named).clean(t)
	e = startAgent(t, n.lab.Node(), n.spec("examine", func(sp *spec) { sp.Asked = []string{registryName + ":5000"} })).finish()
	if got := e.decided(daemon.Containerd); got != "leave trusted" || len(e.Waiting) > 0 || len(e.Wrong) > 0 {
		t.Errorf("examined with other settings: %s, waiting %v, wrong %v", got, e.Waiting, e.Wrong)
	}
}
