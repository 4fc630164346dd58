package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
)

// trustView is what the page shows of trust.
type trustView struct {
	Pass    time.Time // when the last pass ended; zero before the first
	Errs    []string
	Sources []string
	Taken   int // certificates, of which Anchors has those that end first
	Anchors []anchorView
	NoCA    bool // nobody gave anything yet, which is no fault
	// What is wrong with the sources.
	Broken, Refused, Warnings []anchor.Refusal
	More                      int // of them that the page leaves out
	Targets                   []targetView
	Runtimes                  []runtimeView
}

// anchorView is one certificate that is taken.
type anchorView struct {
	Subject, Fingerprint, Source string
	Leaf                         bool
	End                          expiry
}

// targetView is one place where anchors go.
type targetView struct {
	State state
	certsync.TargetStatus
}

// runtimeView is one daemon.
type runtimeView struct {
	State state
	Word  string // for the state
	certsync.RuntimeStatus
	Detail   string // of the decision, without the answers
	Answers  []answerView
	Restarts string // what came of them
}

// answerView is what a daemon says of a registry.
type answerView struct {
	State state
	daemon.Answer
}

// shownRefusals is how many entries of the sources the page complains about, of
// each kind: a source may have a hundred files.
const shownRefusals = 20

// shownAnchors is how many certificates the page has.
const shownAnchors = 40

// show implements half.
func (t *trust) show(now time.Time, page *statusPage) {
	view := newTrustView(now, t.status.status(), strs(t.cfg.Trust.Sources))
	page.Trust = view
	page.Verdicts = append(page.Verdicts, view.verdicts(now, time.Duration(t.cfg.Trust.Interval))...)
}

func newTrustView(now time.Time, s certsync.Status, sources []string) *trustView {
	v := &trustView{Pass: s.Time, Errs: s.Errs, Sources: sources}
	if s.Time.IsZero() {
		return v
	}
	v.NoCA = s.NoCA()
	v.Broken, v.Refused, v.Warnings = v.first(s.Broken), v.first(s.Refused), v.first(s.Warnings)
	for _, a := range s.Anchors {
		v.Anchors = append(v.Anchors, anchorView{subject(a), a.Fingerprint, a.Source, a.Leaf, expires(now, a.Cert.NotAfter)})
	}
	slices.SortStableFunc(v.Anchors, func(x, y anchorView) int { return x.End.At.Compare(y.End.At) })
	v.Taken = len(v.Anchors)
	v.Anchors = v.Anchors[:min(v.Taken, shownAnchors)]
	for _, t := range s.Targets {
		is := bad
		switch {
		case t.InSync && len(t.Problems) == 0:
			is = good
		case t.InSync:
			is = warn
		}
		v.Targets = append(v.Targets, targetView{is, t})
	}
	for _, r := range s.Runtimes {
		v.Runtimes = append(v.Runtimes, newRuntimeView(r))
	}
	return v
}

// first gives the first of them, and counts the others.
func (v *trustView) first(all []anchor.Refusal) []anchor.Refusal {
	n := min(len(all), shownRefusals)
	v.More += len(all) - n
	return all[:n]
}

func newRuntimeView(r certsync.RuntimeStatus) runtimeView {
	v := runtimeView{State: good, Word: "in order", RuntimeStatus: r, Detail: r.Decision.Detail}
	for _, a := range r.Answers {
		is := map[daemon.Verdict]state{daemon.Trusted: good, daemon.Untrusted: bad}[a.Verdict]
		if is == "" {
			is = warn
		}
		switch {
		case a.Verdict == daemon.Untrusted:
			v.State, v.Word = bad, "does not trust a registry"
		case is == warn && v.State == good:
			v.State, v.Word = warn, "could not tell"
		}
		v.Answers = append(v.Answers, answerView{is, a})
		// Its words stand below, once.
		v.Detail, _, _ = strings.Cut(v.Detail, a.Registry+": "+a.Text)
	}
	switch {
	case r.Err != "":
		v.State, v.Word = bad, "could not be looked at"
	case waits(r.Decision) && v.State != bad:
		v.State, v.Word = warn, "restart waits"
	case waits(r.Decision):
		v.Word += ", restart waits"
	case r.Decision.Action == daemon.Pending:
		v.State, v.Word = bad, "restart is pending"
	case r.Decision.Action == daemon.Restart:
		v.State, v.Word = warn, "is restarted"
	case !r.Present:
		v.State, v.Word = "", "not on this node"
	}
	v.Detail = strings.TrimSuffix(strings.TrimRight(v.Detail, ":; "), "; it says")
	var restarts []string
	for _, result := range certsync.RestartResults() {
		if n := r.Restarts[result]; n > 0 {
			restarts = append(restarts, fmt.Sprintf("%d %s", n, strings.ReplaceAll(result, "_", " ")))
		}
	}
	v.Restarts = strings.Join(restarts, ", ")
	return v
}

// passTakes is longer than a pass takes whose daemons answer, a restart with all
// its waiting included.
const passTakes = 5 * time.Minute

// verdicts are the view in some lines.
func (v *trustView) verdicts(now time.Time, interval time.Duration) []verdict {
	if v.Pass.IsZero() {
		return []verdict{{warn, "trust: the first pass has not ended yet"}}
	}
	var all []verdict
	add := func(s state, format string, args ...any) { all = append(all, verdict{s, fmt.Sprintf(format, args...)}) }
	is := "is"
	if now.Sub(v.Pass) > interval+passTakes {
		add(bad, "trust: the last pass ended %s: the one that runs takes long, or hangs", ago(now, v.Pass))
		is = "was"
	}
	said := len(all)
	if len(v.Errs) > 0 {
		add(bad, "trust: the last pass did not succeed")
	}
	for _, b := range v.Broken {
		if v.NoCA {
			break
		}
		add(bad, "source %s is broken: %s", b.Source, b.Reason)
	}
	if len(v.Refused) > 0 {
		add(warn, "something in the sources is refused: %s", v.Refused[0].Reason)
	}
	if len(v.Anchors) > 0 && v.Anchors[0].End.State != good {
		a := v.Anchors[0] // the first to end
		add(a.End.State, "%s %s", a.Subject, ends(now, a.End.At))
	}
	var wrong []string
	for _, t := range v.Targets {
		if !t.InSync {
			wrong = append(wrong, t.Name)
		}
	}
	if len(wrong) > 0 {
		add(bad, "not in sync: %s", some(wrong))
	}
	for _, r := range v.Runtimes {
		if r.State != good && r.State != "" {
			add(r.State, "%s: %s", r.Name, r.Word)
		}
	}
	switch {
	case len(all) > said:
	case v.NoCA:
		add(good, "trust: no CA is given yet, so that nothing is installed")
	default:
		add(good, "trust %s in sync: %s installed", is, plural(uint64(v.Taken), "certificate"))
	}
	return all
}

// some names the first of them, and counts the others.
func some(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
