//go:build e2e

package deploy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestAlertsFireAndResolve makes real incidents on a real node, and looks at them
// through a real Prometheus: each alert fires, says where and why, and ends when
// the incident does.
func TestAlertsFireAndResolve(t *testing.T) {
	s := newScene(t)
	p := s.prom

	empty := make(map[string]bool) // what dashboards have not shown yet
	for where := range shown(t) {
		empty[where] = true
	}

	p.next("All is well. Then somebody takes the store's certificates away again and again.")
	p.until("count(up offset 3s == 1)", 2)
	s.healthy()
	s.must(s.box.Pull(t.Context(), s.image))
	p.quiet()
	// Until more than three repairs are in the time that the rule looks at. One is two
	// when a pass comes between the files.
	for i := 0; i < 5 || i < 20 && !p.fired(p.part, "NodesteadTrustFight"); i++ {
		p.until(`max(nodestead_trust_in_sync{target="store"})`, 1)
		s.run("rm /usr/local/share/ca-certificates/nodestead-*")
		p.until(fmt.Sprintf(`max(nodestead_trust_changes_total{target="store",result="repaired"}) > bool %d`, i), 1)
	}
	p.fires("NodesteadTrustFight", "target:store")
	// What began within the window counts only at an agent that was there before it.
	p.until(hasten("count(up offset 10m == 1)"), 2)
	s.healthy()

	p.next("Lookups are lost; a CA is exchanged, and docker's directory for the registry is not safe.")
	hold, err := s.Hold(2, 0)
	s.must(err)
	names, enough := context.WithCancel(t.Context())
	defer enough()
	var asking sync.WaitGroup
	asking.Go(func() { s.ask(names, "24", "git.idle.test.") })
	asking.Go(func() { s.ask(names, "4", "broken.test.") })
	s.probed.SetRules(lab.Rule{Name: "*", Drop: true})
	s.run("chmod 777 /" + certsDir)
	s.rotate("Second Root")
	s.give(s.source, "soon.crt", s.ca("Soon Root", endsIn(20)).PEM())
	s.give(s.source, "now.crt", s.ca("Now Root", endsIn(3)).PEM())
	s.give(s.source, "page.crt", []byte("<!DOCTYPE html><html><body>404</body></html>"))
	s.take(s.other, "other.crt")
	p.fires("NodesteadLookupsLost", "cause:orphaned_answer", "namespace:ci", "by pod runner on n1", "causes.md#orphaned_answer")
	p.fires("NodesteadNodeLosesLookups", "cause:orphaned_answer", "node:n1")
	p.fires("NodesteadLookupsFail", "cause:server_failure", "namespace:ci", "by pod runner on n1")
	p.fires("NodesteadProbeFails", "name:probe.test.", "nameserver:"+probeService.String()+":53", "node:n1")
	p.show(empty)
	enough()
	asking.Wait()
	s.must(hold.Close(), s.Node().Sysctl("net/netfilter/nf_conntrack_events", "0"))
	s.probed.SetRules(lab.Rule{Name: "*", Addrs: somewhere})
	p.fires("NodesteadCAExpiresSoon", "CN=Soon Root", "in 19d")
	p.fires("NodesteadCAExpires", "CN=Now Root", "in 2d")
	p.fires("NodesteadCARejected", "reason:html", "page.crt")
	p.fires("NodesteadCASourceBroken", s.other, "such as n1.")
	p.fires("NodesteadTrustNotInSync", "target:docker/"+s.registry.Host, "node:n1")
	p.fires("NodesteadRegistryNotTrusted", "registry:"+s.registry.Host, "runtime:docker")
	p.fires("NodesteadRestartPending", "reason:no_live_restore", "runtime:docker")
	p.fires("NodesteadSensorBlind", "reason:events_off", "sensor:conntrack")
	p.show(empty)

	p.next("The sources are put right. Live-restore is switched on, but systemd refuses the restart, which is safe now; a flood finds nobody who answers.")
	s.must(s.Node().Sysctl("net/netfilter/nf_conntrack_events", "1"))
	s.take(s.source, "soon.crt", "now.crt", "page.crt")
	s.give(s.other, "other.crt", s.ca("Other Root").PEM())
	var flood sync.WaitGroup
	part := p.part
	flood.Go(func() {
		s.flood(part)
		p.firesAfter(part, "NodesteadLookupsDiscarded", "node:n1")
		p.firesAfter(part, "NodesteadSensorLost", "sensor:lookup")
	})
	s.dropIn("[Unit]", "RefuseManualStart=yes")
	s.run(`echo '{"live-restore": true}' > /etc/docker/daemon.json; systemctl reload docker`)
	p.fires("NodesteadRestartFailed", "runtime:docker")
	s.dropIn()
	s.run("systemctl restart docker")
	s.pulls() // with it docker loads the roots, and knows no later ones
	p.resolves("NodesteadRegistryNotTrusted", "NodesteadRestartPending")

	p.next("The CA is exchanged again, and docker's unit has got another trust store meanwhile.")
	s.dropIn("[Service]", "Environment=SSL_CERT_FILE=/etc/hostname SSL_CERT_DIR=/run/none")
	s.rotate("Third Root")
	p.fires("NodesteadRestartDidNotHelp", "runtime:docker")
	p.show(empty)
	s.dropIn()

	p.next("docker's directory is safe again, so that it trusts at once.")
	s.run("chmod 755 /" + certsDir)
	s.pulls()
	flood.Wait()
	p.resolves("NodesteadTrustNotInSync", "NodesteadTrustPassTooOld")

	p.next("update-ca-certificates hangs; the conntrack table is full.")
	s.run("touch /run/slow")
	s.give(s.other, "more.crt", s.ca("More Root").PEM())
	s.must(s.FillConntrack())
	p.fires("NodesteadConntrackNearLimit", "node:n1")
	p.fires("NodesteadConntrackFull", "node:n1")
	s.must(s.FlushConntrack())
	p.fires("NodesteadTrustPassTooOld", "node:n1")
	s.run("rm /run/slow")
	p.resolves("NodesteadTrustPassTooOld")

	p.next("Both agents are gone, and come back.")
	s.stop()
	p.fires("NodesteadAgentDown", "instance:"+watchAddress)
	p.fires("NodesteadAgentDown", "instance:"+trustAddress)
	p.fires("NodesteadAbsent")
	s.start()

	want := alertNames(readRules(t))
	p.resolves(want...)
	for _, where := range slices.Sorted(maps.Keys(empty)) {
		t.Errorf("%s showed nothing, whatever happened", where)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(p.seen)) {
		t.Logf("%-28s fired %5.1f s after the start, ended %5.1f s after it", name, p.seen[name].since.Seconds(), p.seen[name].until.Seconds())
	}
	for _, name := range want {
		if p.seen[name] == nil {
			t.Errorf("%s never fired", name)
		}
	}
}
