package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/host"
)

var (
	now       = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	installed = now.Add(-time.Minute)
	earlier   = now.Add(-time.Hour)
	later     = now.Add(-time.Second)
)

func said(registry string, v Verdict) Answer {
	return Answer{Registry: registry, Verdict: v, Text: "words"}
}

// docker that began before the anchors came, has live-restore and was asked nothing.
func dockerCase() Case {
	return Case{
		Config: Config{Name: Docker, Unit: "docker.service", Restart: Auto},
		Facts: Facts{
			Present: true, Healthy: true, LiveRestore: true, Containers: 3,
			Unit: host.Unit{Name: "docker.service", ActiveState: "active", InvocationID: "run", Started: earlier},
		},
		Installed: installed, Set: "set", Now: now,
	}
}

// containerd on which docker depends.
func containerdCase() Case {
	c := dockerCase()
	c.Config = Config{Name: Containerd, Unit: "containerd.service", Restart: Auto}
	c.Facts.LiveRestore, c.Facts.Containers = false, 0
	return c
}

func stopsDocker(change func(docker *Case)) func(*Case) {
	return func(c *Case) {
		docker := dockerCase()
		change(&docker)
		*c = containerdCase()
		c.Facts.StopsDocker, c.Docker = true, &docker
	}
}

var decisions = []struct {
	name   string
	change func(c *Case)
	want   Action
	reason string
}{
	// Whether it is there.
	{"not present", func(c *Case) { c.Facts = Facts{} }, Leave, notPresent},
	{"stopped", func(c *Case) { c.Facts.Unit.ActiveState = "inactive" }, Leave, notRunning},
	{"dead", func(c *Case) { c.Facts.Unit.ActiveState = "failed" }, Leave, notRunning},
	{"dead, of our restart", func(c *Case) {
		c.Facts.Unit.ActiveState, c.History = "failed", History{Set: c.Set, Outcome: Failed}
	}, Pending, restartFailed},
	{"stopped, policy always", func(c *Case) { c.Facts.Unit.ActiveState, c.Config.Restart = "inactive", Always }, Leave, notRunning},
	{"no CRI", func(c *Case) { *c = containerdCase(); c.Facts.NoCRI = true }, Leave, noCRI},
	{"no store, and trusted by certs.d", func(c *Case) {
		c.Installed, c.Answers = time.Time{}, []Answer{said("a", Trusted), said("b", Trusted)}
	}, Leave, trusted},
	{"no store, and unclear", func(c *Case) {
		c.Installed, c.Answers = time.Time{}, []Answer{said("a", Trusted), said("b", Unclear)}
	}, Leave, unclear},
	{"no store", func(c *Case) { c.Installed = time.Time{} }, Leave, storeNotReady},
	{"no store, untrusted", func(c *Case) {
		c.Installed = time.Time{}
		c.Answers = []Answer{said("a", Untrusted)}
	}, Leave, storeNotReady},

	// Whether it is needed: nobody was asked.
	{"began before", func(*Case) {}, Restart, startedBefore},
	{"began after", func(c *Case) { c.Facts.Unit.Started = later }, Leave, upToDate},
	{"began at that moment", func(c *Case) { c.Facts.Unit.Started = installed }, Leave, upToDate},
	{"began after, policy always", func(c *Case) { c.Facts.Unit.Started, c.Config.Restart = later, Always }, Leave, upToDate},
	{"containerd began before", func(c *Case) { *c = containerdCase() }, Restart, startedBefore},

	// The daemon was asked.
	{"untrusted", func(c *Case) { c.Answers = []Answer{said("a", Untrusted)} }, Restart, untrusted},
	{"one of two untrusted", func(c *Case) { c.Answers = []Answer{said("a", Trusted), said("b", Untrusted)} }, Restart, untrusted},
	{"untrusted and unclear", func(c *Case) { c.Answers = []Answer{said("a", Unclear), said("b", Untrusted)} }, Restart, untrusted},
	{"trusted, although it began before", func(c *Case) { c.Answers = []Answer{said("a", Trusted)} }, Leave, trusted},
	{"unclear", func(c *Case) { c.Answers = []Answer{said("a", Unclear)} }, Leave, unclear},
	{"trusted and unclear", func(c *Case) { c.Answers = []Answer{said("a", Trusted), said("b", Unclear)} }, Leave, unclear},
	{"trusted, policy always", func(c *Case) {
		c.Config.Restart = Always
		c.Answers = []Answer{said("a", Trusted)}
	}, Restart, startedBefore},
	{"unclear, policy always", func(c *Case) {
		c.Config.Restart = Always
		c.Answers = []Answer{said("a", Unclear)}
	}, Restart, startedBefore},
	{"trusted, began after, policy always", func(c *Case) {
		c.Config.Restart, c.Facts.Unit.Started = Always, later
		c.Answers = []Answer{said("a", Trusted)}
	}, Leave, trusted},

	// Whether it would help.
	{"untrusted, and began after", func(c *Case) {
		c.Facts.Unit.Started = later
		c.Answers = []Answer{said("a", Untrusted)}
	}, Leave, wouldNotHelp},
	{"untrusted, and began after, policy always", func(c *Case) {
		c.Facts.Unit.Started, c.Config.Restart = later, Always
		c.Answers = []Answer{said("a", Untrusted)}
	}, Leave, wouldNotHelp},
	{"no installed CA is the right one", func(c *Case) {
		c.Answers = []Answer{said("a", Untrusted)}
		c.Own = map[string]Verdict{"a": Untrusted}
	}, Leave, wouldNotHelp},
	{"no installed CA is the right one, policy always", func(c *Case) {
		c.Config.Restart = Always
		c.Answers = []Answer{said("a", Untrusted)}
		c.Own = map[string]Verdict{"a": Untrusted}
	}, Leave, wouldNotHelp},
	{"no installed CA is the right one for one of two", func(c *Case) {
		c.Answers = []Answer{said("a", Untrusted), said("b", Untrusted)}
		c.Own = map[string]Verdict{"a": Untrusted, "b": Trusted}
	}, Restart, untrusted},
	{"our own handshake is unclear", func(c *Case) {
		c.Answers = []Answer{said("a", Untrusted)}
		c.Own = map[string]Verdict{"a": Unclear}
	}, Restart, untrusted},
	{"a root that it has loaded has expired", func(c *Case) {
		c.Answers = []Answer{{Registry: "a", Verdict: Unclear, Text: "x509: certificate has expired or is not yet valid"}}
		c.Own = map[string]Verdict{"a": Trusted}
	}, Restart, untrusted},
	{"the server's certificate has expired", func(c *Case) {
		c.Answers = []Answer{{Registry: "a", Verdict: Unclear, Text: "x509: certificate has expired or is not yet valid"}}
		c.Own = map[string]Verdict{"a": Unclear}
	}, Leave, unclear},
	{"expired, and began after", func(c *Case) {
		c.Facts.Unit.Started = later
		c.Answers = []Answer{{Registry: "a", Verdict: Unclear, Text: "x509: certificate has expired or is not yet valid"}}
		c.Own = map[string]Verdict{"a": Trusted}
	}, Leave, unclear},

	// Another store.
	{"other store", func(c *Case) { c.Facts.OtherStore = "SSL_CERT_FILE=/x" }, Pending, otherStoreSet},
	{"other store, began after", func(c *Case) { c.Facts.OtherStore, c.Facts.Unit.Started = "SSL_CERT_FILE=/x", later }, Pending, otherStoreSet},
	{"other store, untrusted", func(c *Case) {
		c.Facts.OtherStore = "SSL_CERT_FILE=/x"
		c.Answers = []Answer{said("a", Untrusted)}
	}, Pending, otherStoreSet},
	{"other store, trusted", func(c *Case) {
		c.Facts.OtherStore = "SSL_CERT_FILE=/x"
		c.Answers = []Answer{said("a", Trusted)}
	}, Leave, trusted},
	{"other store, trusted, policy always", func(c *Case) {
		c.Facts.OtherStore, c.Config.Restart = "SSL_CERT_FILE=/x", Always
		c.Answers = []Answer{said("a", Trusted)}
	}, Leave, trusted},

	// Once for a set.
	{"restarted for this set", func(c *Case) { c.History = History{Set: "set", Outcome: Helped} }, Pending, alreadyRestarted},
	{"restarted for this set, this run", func(c *Case) { c.History = History{Set: "set", Outcome: Helped, Run: "run"} }, Leave, upToDate},
	{"restarted for this set, another run", func(c *Case) { c.History = History{Set: "set", Outcome: Helped, Run: "x"} }, Pending, alreadyRestarted},
	{"restarted for another set, this run", func(c *Case) { c.History = History{Set: "old", Outcome: Helped, Run: "run"} }, Restart, startedBefore},
	{"it is not known what came of it", func(c *Case) { c.History = History{Set: "set"} }, Pending, alreadyRestarted},
	{"it failed", func(c *Case) { c.History = History{Set: "set", Outcome: Failed} }, Pending, restartFailed},
	{"it failed, and works now", func(c *Case) {
		c.History = History{Set: "set", Outcome: Failed}
		c.Facts.Unit.Started = later
	}, Leave, upToDate},
	{"it did not help", func(c *Case) {
		c.History = History{Set: "set", Outcome: DidNotHelp, Run: "run"}
		c.Answers = []Answer{said("a", Untrusted)}
	}, Leave, didNotHelp},
	{"it did not help, and began before", func(c *Case) {
		c.History = History{Set: "set", Outcome: DidNotHelp}
		c.Answers = []Answer{said("a", Untrusted)}
	}, Leave, didNotHelp},
	{"it did not help, and the server was mended", func(c *Case) {
		c.History = History{Set: "set", Outcome: DidNotHelp}
		c.Answers = []Answer{said("a", Trusted)}
	}, Leave, trusted},
	{"untrusted after our restart", func(c *Case) {
		c.History = History{Set: "set", Run: "run"}
		c.Answers = []Answer{said("a", Untrusted)}
	}, Leave, didNotHelp},
	{"a registry that is new since our restart helped", func(c *Case) {
		c.History = History{Set: "set", Outcome: Helped, Run: "run"}
		c.Answers = []Answer{said("new", Untrusted)}
	}, Leave, wouldNotHelp},
	{"it helped, and was lost again", func(c *Case) {
		c.History = History{Set: "set", Outcome: Helped, Run: "x"}
		c.Answers = []Answer{said("a", Untrusted)}
	}, Pending, alreadyRestarted},
	{"it did not help for another set", func(c *Case) {
		c.History = History{Set: "old", Outcome: DidNotHelp}
		c.Answers = []Answer{said("a", Untrusted)}
	}, Restart, untrusted},
	{"it failed for another set", func(c *Case) { c.History = History{Set: "old", Outcome: Failed} }, Restart, startedBefore},
	{"no set has a name", func(c *Case) { c.Set = "" }, Restart, startedBefore},

	// What is in the way.
	{"policy never", func(c *Case) { c.Config.Restart = Never }, Pending, restartNever},
	{"policy never, not needed", func(c *Case) { c.Config.Restart, c.Facts.Unit.Started = Never, later }, Leave, upToDate},
	{"no systemd", func(c *Case) { c.Facts.Unit, c.Facts.NoUnit = host.Unit{}, "no systemd" }, Pending, noUnit},
	{"no systemd, trusted", func(c *Case) {
		c.Facts.Unit, c.Facts.NoUnit = host.Unit{}, "no systemd"
		c.Answers = []Answer{said("a", Trusted)}
	}, Leave, trusted},
	{"no systemd, untrusted", func(c *Case) {
		c.Facts.Unit, c.Facts.NoUnit = host.Unit{}, "no systemd"
		c.Answers = []Answer{said("a", Untrusted)}
	}, Pending, noUnit},
	{"activating", func(c *Case) { c.Facts.Unit.ActiveState = "activating" }, Pending, busy},
	{"deactivating", func(c *Case) { c.Facts.Unit.ActiveState = "deactivating" }, Pending, busy},
	{"reloading", func(c *Case) { c.Facts.Unit.ActiveState = "reloading" }, Pending, busy},
	{"a state that we do not know", func(c *Case) { c.Facts.Unit.ActiveState = "maintenance" }, Pending, busy},
	{"reloading, not needed", func(c *Case) { c.Facts.Unit.ActiveState, c.Facts.Unit.Started = "reloading", later }, Leave, upToDate},
	{"it does not answer", func(c *Case) { c.Facts.Healthy, c.Facts.LiveRestore, c.Facts.Containers = false, false, 0 }, Pending, notHealthy},
	{"no live-restore", func(c *Case) { c.Facts.LiveRestore = false }, Pending, noLiveRestore},
	{"no live-restore, policy always", func(c *Case) { c.Facts.LiveRestore, c.Config.Restart = false, Always }, Pending, noLiveRestore},
	{"no live-restore, untrusted", func(c *Case) {
		c.Facts.LiveRestore = false
		c.Answers = []Answer{said("a", Untrusted)}
	}, Pending, noLiveRestore},
	{"no live-restore, one container", func(c *Case) { c.Facts.LiveRestore, c.Facts.Containers = false, 1 }, Pending, noLiveRestore},
	{"no live-restore, no container", func(c *Case) { c.Facts.LiveRestore, c.Facts.Containers = false, 0 }, Restart, startedBefore},
	{"no live-restore, disruptive", func(c *Case) { c.Facts.LiveRestore, c.Config.Disruptive = false, true }, Restart, startedBefore},
	{"containerd has no live-restore", func(c *Case) { *c = containerdCase(); c.Facts.Containers = 9 }, Restart, startedBefore},

	// containerd, whose restart restarts docker.
	{"docker has live-restore", stopsDocker(func(*Case) {}), Restart, startedBefore},
	{"docker has none", stopsDocker(func(d *Case) { d.Facts.LiveRestore = false }), Pending, noLiveRestore},
	{"docker has none, and no container", stopsDocker(func(d *Case) { d.Facts.LiveRestore, d.Facts.Containers = false, 0 }), Restart, startedBefore},
	{"docker is disruptive", stopsDocker(func(d *Case) { d.Facts.LiveRestore, d.Config.Disruptive = false, true }), Restart, startedBefore},
	{"docker is never restarted", stopsDocker(func(d *Case) { d.Config.Restart = Never }), Pending, restartNever},
	{"docker does not answer", stopsDocker(func(d *Case) { d.Facts.Healthy = false }), Pending, notHealthy},
	{"docker is starting", stopsDocker(func(d *Case) { d.Facts.Unit.ActiveState = "activating" }), Pending, busy},
	{"docker is stopped", stopsDocker(func(d *Case) { d.Facts = Facts{Present: true, Unit: host.Unit{ActiveState: "inactive"}} }), Restart, startedBefore},
	{"docker was restarted too often", stopsDocker(func(d *Case) { d.History.Times = slices.Repeat([]time.Time{later}, 4) }), Pending, tooOften},
	{"docker was restarted for this set", stopsDocker(func(d *Case) { d.History = History{Set: "set", Outcome: Helped} }), Restart, startedBefore},
	{"nobody looked at docker", func(c *Case) { stopsDocker(func(*Case) {})(c); c.Docker = nil }, Pending, noLiveRestore},

	// How often.
	{"three in an hour", func(c *Case) { c.History.Times = slices.Repeat([]time.Time{later}, 3) }, Restart, startedBefore},
	{"its configuration was broken since", func(c *Case) { c.Facts.BrokenConfig = "daemon.json: nonsense" }, Pending, configBroken},
	{"docker's configuration was broken since", stopsDocker(func(d *Case) { d.Facts.BrokenConfig = "daemon.json: nonsense" }), Pending, configBroken},
	{"four in an hour", func(c *Case) { c.History.Times = slices.Repeat([]time.Time{later}, 4) }, Pending, tooOften},
	{"four, one of them an hour ago", func(c *Case) {
		c.History.Times = append(slices.Repeat([]time.Time{later}, 3), earlier)
	}, Restart, startedBefore},

	// Clocks.
	{"began in the future", func(c *Case) { c.Facts.Unit.Started = now.AddDate(1, 0, 0) }, Restart, startedBefore},
	{"began in the future, restarted for this set", func(c *Case) {
		c.Facts.Unit.Started = now.AddDate(1, 0, 0)
		c.History = History{Set: "set", Outcome: Helped, Run: "run"}
	}, Leave, upToDate},
	{"installed in the future", func(c *Case) { c.Installed, c.Facts.Unit.Started = now.AddDate(1, 0, 0), later }, Restart, startedBefore},
	{"installed in the future, restarted for this set", func(c *Case) {
		c.Installed, c.Facts.Unit.Started = now.AddDate(1, 0, 0), later
		c.History = History{Set: "set", Outcome: Helped, Run: "run"}
	}, Leave, upToDate},
	{"installed in the future, restarted, run unknown", func(c *Case) {
		c.Installed, c.Facts.Unit.Started = now.AddDate(1, 0, 0), later
		c.History = History{Set: "set", Outcome: Helped}
	}, Pending, alreadyRestarted},
	{"restarts in the near future", func(c *Case) { c.History.Times = slices.Repeat([]time.Time{now.Add(time.Minute)}, 4) }, Pending, tooOften},
	{"restarts in the far future", func(c *Case) { c.History.Times = slices.Repeat([]time.Time{now.AddDate(1, 0, 0)}, 4) }, Restart, startedBefore},
}

func TestDecide(t *testing.T) {
	used := make(map[string]bool)
	for _, tc := range decisions {
		c := dockerCase()
		tc.change(&c)
		d := Decide(c)
		used[d.Reason] = true
		if d.Action != tc.want || d.Reason != tc.reason {
			t.Errorf("%s: %s %s, want %s %s", tc.name, d.Action, d.Reason, tc.want, tc.reason)
		}
		if d.Detail == "" || strings.Contains(d.Detail, "%!") || strings.Contains(d.Remedy, "%!") {
			t.Errorf("%s: detail %q, remedy %q", tc.name, d.Detail, d.Remedy)
		}
		if d.Action == Pending && d.Remedy == "" {
			t.Errorf("%s: pending, and nothing that an operator could do", tc.name)
		}
		bad := words(c.Answers, Untrusted)
		if d.Action == Pending && len(bad) > 0 && !strings.Contains(d.Detail, bad[0]) {
			t.Errorf("%s: the daemon's words are not told: %s", tc.name, d.Detail)
		}
		if again := Decide(c); again != d {
			t.Errorf("%s: another decision the second time (-first +second)\n%s", tc.name, cmp.Diff(d, again))
		}
	}
	for _, reason := range Reasons() {
		if !used[reason] {
			t.Errorf("reason %s is not tested", reason)
		}
		delete(used, reason)
	}
	if len(used) > 0 {
		t.Errorf("reasons that are not listed: %v", used)
	}
}

// Whatever the facts, a set is the reason of one restart at most: when the decision
// was carried out and noted, the next one is another.
func TestDecideOnce(t *testing.T) {
	for _, tc := range decisions {
		c := dockerCase()
		tc.change(&c)
		if c.Set == "" || Decide(c).Action != Restart {
			continue
		}
		for _, outcome := range []string{Helped, DidNotHelp, Failed, ""} {
			for _, run := range []string{"", "run", "next"} {
				c.History.Set, c.History.Outcome, c.History.Run = c.Set, outcome, run
				if d := Decide(c); d.Action == Restart {
					t.Errorf("%s, then %q: restarted again (%s)", tc.name, outcome, d.Reason)
				}
			}
		}
	}
}
