package agent

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/cluster"
	"github.com/nodestead/nodestead/incident"
)

// incident writes an Event on the pod that an incident is about. It never blocks.
func (k *kubernetes) incident(in incident.Incident) {
	if k == nil || k.events == nil || in.Workload.Pod == "" {
		return
	}
	w := in.Workload
	k.events.Pod(w.Namespace, w.Pod, w.UID, cluster.Finding{
		Cause: string(in.Cause), Message: incidentMessage(in), Warning: true, Count: in.Count,
	})
}

// trust writes Events on the Node about what is new since the pass before. It
// never blocks.
func (k *kubernetes) trust(before, now certsync.Status) {
	if k == nil || k.events == nil {
		return
	}
	for _, f := range trustFindings(before, now) {
		k.events.Node(f)
	}
}

// maxName is as long as a name can be that does no tricks (RFC 1035).
const maxName = 253

var plainName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// incidentMessage says in one line what happened and what to do. The name is what
// a pod sent: one that could pass for our own words is quoted.
func incidentMessage(in incident.Incident) string {
	var b strings.Builder
	b.WriteString("DNS lookup ")
	if in.Cause.Timeout() {
		b.WriteString("lost")
	} else {
		b.WriteString("failed")
	}
	if name := in.Name; name != "" {
		if len(name) > maxName {
			name = name[:maxName] + "…"
		}
		if !plainName.MatchString(name) {
			name = strconv.QuoteToASCII(name)
		}
		b.WriteString(": " + name)
		if in.Type != "" {
			b.WriteString(" " + in.Type)
		}
	}
	if in.Nameserver.IsValid() {
		b.WriteString(" at " + in.Nameserver.String())
	}
	b.WriteString(": " + in.Evidence)
	if in.Remedy != "" {
		b.WriteString(". Remedy: " + in.Remedy)
	}
	return b.String()
}

// trustFindings is what to tell about a pass: the states that began with it, one
// finding for each cause and daemon, and the restarts that it made.
func trustFindings(before, now certsync.Status) []cluster.Finding {
	old, current := states(before), states(now)
	var begun []news
	for _, key := range slices.Sorted(maps.Keys(current)) {
		if _, was := old[key]; !was {
			begun = append(begun, current[key])
		}
	}
	begun = append(begun, restarts(before, now)...)
	var all []cluster.Finding
	for _, s := range begun {
		at := slices.IndexFunc(all, func(f cluster.Finding) bool { return f.Cause == s.cause && f.Subject == s.runtime })
		if at < 0 {
			all = append(all, cluster.Finding{Cause: s.cause, Subject: s.runtime, Message: s.message, Warning: s.warning, Count: s.count})
			continue
		}
		all[at].Message += "; " + s.message
		all[at].Count += s.count
	}
	return all
}

// news is something about trust that an operator wants to know.
type news struct {
	cause, runtime, message string // runtime: the daemon that it is about, if it is about one
	warning                 bool
	count                   uint64
}

// states are what lasts from pass to pass, by what it is about. Details are no
// part of that, because they change where nothing else does.
func states(s certsync.Status) map[string]news {
	all := make(map[string]news)
	begin := func(cause, runtime, about, message string, warning bool) {
		key := cause + " " + runtime + " " + about
		if _, ok := all[key]; !ok {
			all[key] = news{cause, runtime, message, warning, 1}
		}
	}
	for _, b := range s.Broken {
		if s.NoCA() {
			begin("ca_not_given", "", b.Source, "no CA is given yet, so that nothing is installed: source "+b.Source+": "+string(b.Reason)+": "+b.Detail, false)
			continue
		}
		begin("ca_source_broken", "", b.Source+" "+string(b.Reason), "source "+b.Source+" is broken, what it gave last stays: "+string(b.Reason)+": "+b.Detail, true)
	}
	for _, r := range s.Refused {
		begin("ca_refused", "", r.Source+" "+string(r.Reason), "refused as a trust anchor: "+r.Source+": "+string(r.Reason)+": "+r.Detail, true)
	}
	for _, r := range s.Runtimes {
		name, d := string(r.Name), r.Decision
		if d.Action == daemon.Pending {
			begin("restart_pending_"+d.Reason, name, "", "restart of "+name+" is pending: "+d.Reason+": "+d.Detail+". Remedy: "+d.Remedy, !waits(d))
		}
		for _, a := range r.Answers {
			if a.Verdict == daemon.Untrusted {
				begin("registry_untrusted", name, a.Registry, name+" does not trust "+a.Registry+": "+a.Text+remedy(d), true)
			}
		}
	}
	return all
}

// waits tells whether a restart is pending only because it is not its turn or
// not the time.
func waits(d daemon.Decision) bool {
	return d.Action == daemon.Pending && (d.Reason == certsync.WaitingForSlot || d.Reason == certsync.OutsideWindow)
}

func remedy(d daemon.Decision) string {
	if d.Action != daemon.Leave || d.Remedy == "" {
		return "" // it stands with the restart
	}
	return ". Remedy: " + d.Remedy
}

// restarts are those that were made since the pass before.
func restarts(before, now certsync.Status) []news {
	var all []news
	for _, r := range now.Runtimes {
		was := make(map[string]int)
		for _, b := range before.Runtimes {
			if b.Name == r.Name {
				was = b.Restarts
			}
		}
		name := string(r.Name)
		for _, result := range certsync.RestartResults() {
			n := r.Restarts[result] - was[result]
			if n <= 0 {
				continue
			}
			s := news{"runtime_restarted", name, name + " was restarted, so that it trusts the private CA (" + result + ")", false, uint64(n)}
			switch result {
			case daemon.DidNotHelp:
				s.cause, s.warning = "restart_did_not_help", true
				s.message = name + " was restarted, and does not trust what is installed: it is not restarted again for these certificates" + remedy(r.Decision)
			case daemon.Failed:
				s.cause, s.warning = "restart_failed", true
				s.message = name + " was restarted, and is not healthy. Remedy: " + r.Decision.Remedy
			}
			all = append(all, s)
		}
	}
	return all
}
