package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
)

// namesView is what the page shows of names.
type namesView struct {
	Sensors []sensorView
	Hour    hourView
	Causes  []causeView // of the incidents of the last hour that are known
	// Incidents are the newest of each cause and pod, the newest first.
	Incidents []incidentView
	ProbeOn   bool
	// Probes are the last results, the worst first; MoreProbes are left out.
	Probes     []probeView
	MoreProbes int
}

// sensorView is the state of one sensor.
type sensorView struct {
	State      state
	Name, What string
	Off        bool // the kernel refused it
	Read, Lost uint64
	Unit       string // of Read
	Blind      []blindView
}

// blindView is why a sensor cannot see.
type blindView struct {
	Reason, Evidence, Remedy string
	Since                    time.Time
}

// causeView is a cause with what it means.
type causeView struct {
	Cause incident.Cause
	Text  string
	Lost  bool // otherwise failed
	Count uint64
}

// incidentView is one incident.
type incidentView struct {
	incident.Incident
	Who   string
	Lost  bool
	Asked uint64
}

// probeView is the last result of the probe for one question.
type probeView struct {
	State state
	Type  string
	probe.Result
}

// shownIncidents is how many causes and pods the page has an incident of; the API
// has all.
const shownIncidents = 30

// shownProbes is how many results of the probe the page has.
const shownProbes = 50

// show implements half.
func (n *names) show(now time.Time, page *statusPage) {
	known := n.history.last(historyLength)
	view := namesView{
		Sensors:   n.sensorViews(),
		Hour:      newHourView(n.board.minutes.hour(now)),
		Causes:    causeViews(known, now.Add(-time.Hour)),
		Incidents: incidentViews(known),
		ProbeOn:   n.probe != nil,
		Probes:    probeViews(n.board.probed()),
	}
	shown := min(len(view.Probes), shownProbes)
	view.Probes, view.MoreProbes = view.Probes[:shown], len(view.Probes)-shown
	page.Names = &view
	for _, s := range view.Sensors {
		if s.State != good {
			page.say(s.State, s.trouble())
		}
	}
	page.Verdicts = append(page.Verdicts, view.lookups())
	for _, p := range view.Probes {
		if p.State == bad {
			page.say(bad, fmt.Sprintf("the probe had no answer that helps for %s %s", p.Name, p.Type))
			break
		}
	}
}

func (n *names) sensorViews() []sensorView {
	c := n.conntrack.Counters()
	conntrack := sensorView{Name: conntrackSensor, What: "the node's address translation (ctnetlink)", Read: c.Messages, Lost: c.Lost, Unit: "message"}
	packets := sensorView{Name: lookupSensor, What: "DNS packets on the node's links", Off: n.lookup == nil, Unit: "packet"}
	if n.lookup != nil {
		c := n.lookup.Counters()
		packets.Read, packets.Lost = c.Packets, c.Lost
	}
	all := []sensorView{conntrack, packets}
	for _, b := range n.board.blindnesses() {
		for i := range all {
			if all[i].Name == b.sensor {
				all[i].Blind = append(all[i].Blind, blindView{b.reason, b.evidence, b.remedy, b.since})
			}
		}
	}
	for i, s := range all {
		all[i].State = good
		switch {
		case s.Off || len(s.Blind) > 0:
			all[i].State = bad
		case s.Lost > 0:
			all[i].State = warn
		}
	}
	return all
}

// trouble says what is not good about the sensor.
func (s sensorView) trouble() string {
	if s.State == warn {
		return fmt.Sprintf("sensor %s missed %s since the start, and is uncertain about those", s.Name, plural(s.Lost, s.Unit))
	}
	var reasons []string
	for _, b := range s.Blind {
		reasons = append(reasons, b.Reason)
	}
	return strings.TrimSuffix(fmt.Sprintf("sensor %s is blind: %s", s.Name, strings.Join(reasons, ", ")), ": ")
}

// lookups is the verdict of the last hour.
func (v namesView) lookups() verdict {
	h := v.Hour
	if h.Lost+h.Failed == 0 {
		return verdict{good, fmt.Sprintf("no lookup was lost in the last hour, of %s", number(h.Lookups))}
	}
	text := fmt.Sprintf("%s lost and %s failed in the last hour, of %s", number(h.Lost), number(h.Failed), plural(h.Lookups, "lookup"))
	if len(v.Causes) > 0 {
		text += fmt.Sprintf("; most often: %s", v.Causes[0].Cause)
	}
	if h.Lost == 0 {
		return verdict{warn, text}
	}
	return verdict{bad, text}
}

// causeViews counts the incidents since a time by cause, the most frequent first.
func causeViews(incidents []incident.Incident, since time.Time) []causeView {
	count := make(map[incident.Cause]uint64)
	for _, in := range incidents {
		if !in.Time.Before(since) {
			count[in.Cause] += in.Count
		}
	}
	var views []causeView
	for c, n := range count {
		views = append(views, causeView{c, causeText(c), c.Timeout(), n})
	}
	slices.SortFunc(views, func(x, y causeView) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), cmp.Compare(x.Cause, y.Cause))
	})
	return views
}

// incidentViews merges incidents as the log does: one bad hour of a pod must not
// hide all others.
func incidentViews(newestFirst []incident.Incident) []incidentView {
	var views []incidentView
	at := make(map[incident.Key]int)
	for _, in := range newestFirst {
		key := in.Key()
		if i, ok := at[key]; ok {
			views[i].Incident = incident.Merge(in, views[i].Incident)
		} else if len(views) < shownIncidents {
			at[key] = len(views)
			views = append(views, incidentView{in, who(in), in.Cause.Timeout(), uint64(max(in.Attempts, 0))})
		}
	}
	return views
}

// who names the one whose lookup it was as well as it is known.
func who(in incident.Incident) string {
	w := in.Workload
	switch {
	case w.Pod != "":
		return w.Namespace + "/" + w.Pod
	case w.Container != "":
		return w.Container
	case w.Host:
		return "the node itself"
	case in.Client.IsValid():
		return in.Client.Addr().String()
	default:
		return "several clients"
	}
}

func probeViews(results []probe.Result) []probeView {
	// An answer that no nameserver gave is what musl fails with; the others may
	// be slow or silent as long as one is not.
	type question struct {
		name  string
		qtype uint16
	}
	accepted := make(map[question]bool)
	for _, r := range results {
		accepted[question{r.Name, r.Type}] = accepted[question{r.Name, r.Type}] || r.Accepted
	}
	var views []probeView
	for _, r := range results {
		v := probeView{good, lookup.Type(r.Type).String(), r}
		switch {
		case !accepted[question{r.Name, r.Type}]:
			v.State = bad
		case r.Outcome == probe.Timeout || r.Err != nil:
			v.State = warn
		}
		views = append(views, v)
	}
	worst := []state{bad, warn, good}
	slices.SortStableFunc(views, func(x, y probeView) int {
		return cmp.Compare(slices.Index(worst, x.State), slices.Index(worst, y.State))
	})
	return views
}

// causeText says in a sentence what happened. docs/causes.md has the whole.
func causeText(c incident.Cause) string {
	switch c {
	case incident.OrphanedAnswer:
		return "Two questions of one resolver call collided in conntrack. The entry of one was kept for a second only, and its answer came later, from an address that the client had never asked."
	case incident.CollisionDropped:
		return "Two questions of one resolver call collided in conntrack, and the kernel dropped one."
	case incident.TableFull:
		return "The conntrack table was full, and the kernel dropped the question."
	case incident.DroppedOnNode:
		return "The question came from the pod and never left the node, or the answer reached the node and never the pod."
	case incident.StaleBackend:
		return "The service's address was translated to a server that no longer answers."
	case incident.ServerSilent:
		return "The question left the node, and nothing came back."
	case incident.SlowAnswer:
		return "The answer came after the client had asked again, or given up."
	case incident.ServerFailure:
		return "The server answered SERVFAIL, REFUSED or the like."
	case incident.FamilyMismatch:
		return "IPv4 had an answer and IPv6 did not exist or failed, or the other way round. musl then takes the whole name for not found."
	case incident.SearchStopped:
		return "A domain of the search list answered without an address or failed, and musl stopped there: the name that was meant was never asked."
	case incident.Truncated:
		return "The answer did not fit into a packet, and the client did not ask again by TCP."
	default:
		return "The lookup was lost, and there is no evidence why."
	}
}
