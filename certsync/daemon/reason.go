package daemon

import (
	"fmt"
	"strings"
)

// The reasons of a Decision: the label reason of the metric of pending restarts.
// Those of Leave.
const (
	notPresent    = "not_present"
	notRunning    = "not_running"
	noCRI         = "no_cri"
	storeNotReady = "store_not_ready"
	trusted       = "trusted"
	unclear       = "unclear"
	upToDate      = "up_to_date"
	wouldNotHelp  = "would_not_help"
	didNotHelp    = "did_not_help"
)

// Those of Pending.
const (
	otherStoreSet    = "other_store"
	restartFailed    = "restart_failed"
	alreadyRestarted = "already_restarted"
	restartNever     = "restart_never"
	noUnit           = "no_unit"
	busy             = "busy"
	notHealthy       = "not_healthy"
	configBroken     = "config_broken"
	noLiveRestore    = "no_live_restore"
	tooOften         = "too_often"
)

// Those of Restart.
const (
	untrusted     = "untrusted"
	startedBefore = "started_before"
)

var reasons = [...]string{
	notPresent, notRunning, noCRI, storeNotReady, trusted, unclear, upToDate, wouldNotHelp, didNotHelp,
	otherStoreSet, restartFailed, alreadyRestarted, restartNever, noUnit, busy, notHealthy, configBroken, noLiveRestore, tooOften,
	untrusted, startedBefore,
}

// Reasons lists all that a Decision may have.
func Reasons() []string { return reasons[:] }

// explain adds to a decision what people want to know.
func explain(c Case, d Decision) Decision {
	name := string(c.Config.Name)
	byHand := fmt.Sprintf("restart it by hand when that is convenient: systemctl restart %s", c.Config.Unit)
	said := strings.Join(words(c.Answers, Untrusted), "; ")
	switch d.Reason {
	case notPresent:
		d.Detail = fmt.Sprintf("there is no %s on this node", name)
	case notRunning:
		d.Detail = fmt.Sprintf("%s is %s; it loads the store when it is started", c.Config.Unit, c.Facts.Unit.ActiveState)
	case noCRI:
		d.Detail = name + " has its CRI switched off, so it pulls no images itself"
	case storeNotReady:
		d.Detail = "the node's trust store does not have the anchors, so a restart would bring nothing"
	case trusted:
		d.Detail = name + " trusts what it was asked about"
	case unclear:
		d.Detail = name + " could not tell, for a reason that a restart does not cure: " + strings.Join(words(c.Answers, Unclear), "; ")
		d.Remedy = "see to it that the registry can be reached and has a certificate for its name"
	case upToDate:
		d.Detail = fmt.Sprintf("this run of %s began when the anchors were in the store", name)
	case wouldNotHelp:
		d.Detail = fmt.Sprintf("a restart of %s would not help: ", name) + said
		d.Remedy = "the registry's certificate does not come from an installed CA: put the CA that signed it into the source, " +
			"or have the server send its intermediate certificates; a mirror or a token server has certificates of its own"
	case didNotHelp:
		d.Detail = fmt.Sprintf("%s was restarted for these anchors, and still says: ", name) + said
		d.Remedy = "it is not restarted again: put the CA that signed the registry's certificate into the source, or " +
			"have the server send its intermediate certificates"
	case otherStoreSet:
		d.Detail = fmt.Sprintf("%s runs with %s and does not read the node's trust store", name, c.Facts.OtherStore)
		d.Remedy = "take SSL_CERT_FILE and SSL_CERT_DIR out of the environment of " + c.Config.Unit + ", or add the CA to what they name"
	case restartFailed:
		d.Detail = fmt.Sprintf("%s was restarted for these anchors, and did not get healthy", name)
		d.Remedy = fmt.Sprintf("look at it: systemctl status %s; it is not restarted again", c.Config.Unit)
	case alreadyRestarted:
		d.Detail = fmt.Sprintf("%s was restarted once for these anchors; that is done once only", name)
		d.Remedy = byHand
	case restartNever:
		d.Detail = fmt.Sprintf("%s needs a restart, and the configuration says never", name)
		d.Remedy = byHand + ", or set its restart to auto"
	case noUnit:
		d.Detail = fmt.Sprintf("%s needs a restart, or it cannot be told whether it does, and it cannot be restarted from here: %s", name, c.Facts.NoUnit)
		d.Remedy = "restart it by hand, or name its unit in the configuration; with trust.registries it is asked whether it needs one"
	case busy:
		d.Detail = fmt.Sprintf("%s needs a restart, and is changing its state now", name)
		d.Remedy = "none: it is looked at again"
	case notHealthy:
		d.Detail = fmt.Sprintf("%s needs a restart, and does not answer on its socket, so it is not known what a restart would stop", name)
		d.Remedy = "look at it: systemctl status " + c.Config.Unit
	case configBroken:
		broken := c.Facts.BrokenConfig
		if broken == "" && c.Docker != nil {
			broken = c.Docker.Facts.BrokenConfig
		}
		d.Detail = fmt.Sprintf("%s needs a restart, and would not come back from it: %s", name, broken)
		d.Remedy = "repair that file: no start of the daemon would succeed with it, ours or another"
	case noLiveRestore:
		d.Detail = fmt.Sprintf("%s needs a restart, which would stop all containers of docker, because its live-restore is off", name)
		d.Remedy = `switch it on without a restart: "live-restore": true in /etc/docker/daemon.json, then systemctl reload ` + dockerUnit(c) +
			"; or " + byHand + "; or set disruptive: true for docker"
	case tooOften:
		d.Detail = fmt.Sprintf("%s needs a restart, and was restarted %d times within an hour", name, maxRestarts)
		d.Remedy = "none: it is restarted when the hour is over; look why the anchors change so often"
	case untrusted:
		d.Detail = fmt.Sprintf("%s does not trust a registry, and began before the anchors were in the store: ", name) + said
	case startedBefore:
		d.Detail = fmt.Sprintf("this run of %s began before the anchors were in the store", name)
	}
	if said != "" && (d.Action == Pending || d.Reason == storeNotReady) {
		d.Detail += "; it says: " + said
	}
	return d
}

// words are what was said of the registries with this verdict.
func words(answers []Answer, v Verdict) []string {
	var list []string
	for _, a := range answers {
		if a.Verdict == v {
			list = append(list, a.Registry+": "+a.Text)
		}
	}
	return list
}

func dockerUnit(c Case) string {
	if c.Docker != nil {
		return c.Docker.Config.Unit
	}
	if c.Config.Name == Docker {
		return c.Config.Unit
	}
	return "docker.service"
}
