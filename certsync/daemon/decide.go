package daemon

import "time"

// maxRestarts is how often a daemon is restarted in an hour, for whatever sets.
const maxRestarts = 4

// Decide tells what shall be done with a daemon. It is a pure function.
//
// A restart is needed when the daemon does not trust a registry that it was
// asked about; when none was asked, or the policy is Always, when it began before
// the anchors were in the store. It would help when that run began before, and
// our own handshake does not say that no installed CA signed the registry's
// certificate. It is safe when no container is lost by it. And it is done once for
// a set of anchors.
//
// Where a daemon's stop stops docker (StopsDocker), decide it before docker:
// docker then has new roots as well, and needs no restart of its own.
func Decide(c Case) Decision {
	action, reason := decide(c)
	return explain(c, Decision{Action: action, Reason: reason})
}

func decide(c Case) (Action, string) {
	switch {
	case !c.Facts.Present:
		return Leave, notPresent
	case stopped(c.Facts) && c.History.Set == c.Set && c.History.Outcome == Failed:
		return Pending, restartFailed // it may be us who left it so
	case stopped(c.Facts):
		return Leave, notRunning
	case c.Facts.NoCRI:
		return Leave, noCRI
	case c.Installed.IsZero() && (len(c.Answers) == 0 || len(words(c.Answers, Untrusted)) > 0):
		return Leave, storeNotReady
	case c.Installed.IsZero() && len(words(c.Answers, Unclear)) > 0:
		return Leave, unclear
	case c.Installed.IsZero(): // by certs.d
		return Leave, trusted
	}
	action, reason := need(c)
	if action != Restart {
		return action, reason
	}
	if why := obstacle(c); why != "" {
		return Pending, why
	}
	return Restart, reason
}

// stopped tells whether somebody stopped the daemon, or it has ended by itself:
// it is not for us to start it. Without a unit that is not known.
func stopped(f Facts) bool {
	return f.NoUnit == "" && (f.Unit.ActiveState == "inactive" || f.Unit.ActiveState == "failed")
}

// need tells whether a restart is needed and would help, and if so, why.
func need(c Case) (Action, string) {
	old, outcome := beganBefore(c), ""
	if restarted(c) {
		outcome = c.History.Outcome
	}
	bad, curable := 0, 0
	for _, a := range c.Answers {
		if a.Verdict != Untrusted && !staleRoot(c, a, old) {
			continue
		}
		bad++
		if old && c.Own[a.Registry] != Untrusted {
			curable++
		}
	}
	switch {
	case c.Facts.OtherStore != "" && (bad > 0 || len(c.Answers) == 0):
		return Pending, otherStoreSet
	case bad > 0 && (outcome == DidNotHelp || curable == 0 && restarted(c) && outcome != Helped):
		return Leave, didNotHelp
	case bad > 0 && curable == 0:
		return Leave, wouldNotHelp
	case bad > 0:
		return Restart, untrusted
	case old && c.Facts.OtherStore == "" && (len(c.Answers) == 0 || c.Config.Restart == Always):
		return Restart, startedBefore
	case len(words(c.Answers, Unclear)) > 0:
		return Leave, unclear
	case len(c.Answers) > 0:
		return Leave, trusted
	default:
		return Leave, upToDate
	}
}

// restarted tells whether it was restarted for this set of anchors.
func restarted(c Case) bool { return c.Set != "" && c.History.Set == c.Set }

// beganBefore tells whether this run of the daemon began before the anchors were
// in the store, or whether that cannot be told: it has no start, or one in the
// future, because a clock was set back. In doubt it did; once for a set is the limit.
func beganBefore(c Case) bool {
	u := c.Facts.Unit
	if restarted(c) && c.History.Run != "" && c.History.Run == u.InvocationID {
		return false // our restart for this set gave this run
	}
	return u.Started.Before(c.Installed) || u.Started.After(c.Now)
}

// staleRoot tells whether an answer says that a certificate has expired, while our
// own handshake finds nothing expired: then it is a root that the daemon has
// loaded, and that was renewed with the same key since.
func staleRoot(c Case, a Answer, old bool) bool {
	return old && a.Expired() && c.Own[a.Registry] == Trusted
}

// obstacle tells what is in the way of a restart that is needed, "" if nothing is.
func obstacle(c Case) string {
	switch {
	case restarted(c) && c.History.Outcome == Failed:
		return restartFailed
	case restarted(c):
		return alreadyRestarted
	case c.Config.Restart == Never:
		return restartNever
	case c.Facts.NoUnit != "":
		return noUnit
	case c.Facts.Unit.ActiveState != "active":
		return busy
	case !c.Facts.Healthy:
		return notHealthy
	case c.Facts.BrokenConfig != "":
		return configBroken
	}
	if c.Config.Name == Docker {
		if why := losesContainers(c); why != "" {
			return why
		}
	}
	if c.Facts.StopsDocker {
		if why := dockerObstacle(c.Docker, c.Now); why != "" {
			return why
		}
	}
	if recent(c.History.Times, c.Now) >= maxRestarts {
		return tooOften
	}
	return ""
}

// dockerObstacle tells what is in the way of a restart that restarts docker as
// well: systemd stops docker and starts it again, and its containers live on if
// live-restore is on. So docker's own guards hold, except that its need counts
// for nothing. A docker that does not run has nothing to lose.
func dockerObstacle(docker *Case, now time.Time) string {
	switch {
	case docker == nil:
		return noLiveRestore // nobody has looked: it may be off
	case docker.Facts.NoUnit == "" && stopped(docker.Facts):
		return ""
	case docker.Config.Restart == Never:
		return restartNever
	case docker.Facts.Unit.ActiveState != "active":
		return busy
	case !docker.Facts.Healthy:
		return notHealthy
	case docker.Facts.BrokenConfig != "":
		return configBroken
	case recent(docker.History.Times, now) >= maxRestarts:
		return tooOften
	}
	return losesContainers(*docker)
}

// losesContainers tells whether a restart of docker would stop containers that
// nobody allowed to be stopped. When none runs there is none to lose; Renew
// looks once more just before, because one may have been started since.
func losesContainers(docker Case) string {
	if docker.Facts.LiveRestore || docker.Facts.Containers == 0 || docker.Config.Disruptive {
		return ""
	}
	return noLiveRestore
}

// recent counts the times within an hour of now. Those in the future are of a
// clock that was set back; when it was far ahead, they count for nothing.
func recent(times []time.Time, now time.Time) int {
	n := 0
	for _, t := range times {
		if now.Sub(t).Abs() < time.Hour {
			n++
		}
	}
	return n
}
