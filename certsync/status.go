package certsync

import (
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/place"
)

// Status is what a pass came to, with the counts since the Syncer was made. It
// is a plain value.
type Status struct {
	Time    time.Time // when the pass ended
	Anchors []anchor.Anchor
	// What is wrong with the sources, see anchor.Reading.
	Refused, Warnings, Broken []anchor.Refusal
	Targets                   []TargetStatus
	Runtimes                  []RuntimeStatus
	// Changes counts what was done: by target and result.
	Changes map[Change]int
	// Errs are errors of the pass as a whole: the state could not be written.
	Errs []string
}

// Change is the labels of a count.
type Change struct{ Target, Result string }

// The results of a change.
const (
	Changed  = "changed"
	Repaired = "repaired" // drift: what we had installed was taken away
	Failed   = "failed"
)

// Results are all results of a change.
func Results() []string { return []string{Changed, Repaired, Failed} }

// TargetStatus is how one place is.
type TargetStatus struct {
	Name string
	// InSync: all that shall be there is, and was verified.
	InSync      bool
	LastSuccess time.Time // zero if never
	Problems    []place.Problem
	Err         string // why it is not in sync
}

// RuntimeStatus is how one daemon is.
type RuntimeStatus struct {
	Name     daemon.Name
	Err      string // it could not be looked at
	Present  bool
	Facts    daemon.Facts
	Answers  []daemon.Answer // none: it was not asked
	Decision daemon.Decision
	Restarts map[string]int // by result, since the Syncer was made
}

// Results of a restart beside those of package daemon: the daemon is healthy
// again, and there was no registry to ask about; a registry could not be
// reached, so that nobody knows.
const (
	healthy  = "healthy"
	notAsked = "unknown"
)

// RestartResults are all results of a restart.
func RestartResults() []string {
	return []string{daemon.Helped, healthy, daemon.DidNotHelp, daemon.Failed, notAsked}
}

// InSync tells whether all is as it should be: every source gives, every target
// has what it shall have, and no restart is pending.
func (s Status) InSync() bool { return len(s.Wrong()) == 0 }

// NoCA tells whether there is nothing to trust because nobody gave anything yet:
// every source is missing or empty, and nothing is known that one ever gave. That is
// no fault: who wants names explained, and no more, has no CA.
func (s Status) NoCA() bool {
	return len(s.Anchors) == 0 && len(s.Refused) == 0 && len(s.Broken) > 0 &&
		!slices.ContainsFunc(s.Broken, func(b anchor.Refusal) bool { return b.Reason != anchor.Missing && b.Reason != anchor.Empty })
}

// Wrong lists, for people, what is not as it should be.
func (s Status) Wrong() []string {
	wrong := append([]string(nil), s.Errs...)
	for _, b := range s.Broken {
		wrong = append(wrong, "source "+b.Source+": "+string(b.Reason)+": "+b.Detail)
	}
	for _, r := range s.Refused {
		wrong = append(wrong, "refused "+r.Source+": "+string(r.Reason)+": "+r.Detail)
	}
	for _, t := range s.Targets {
		if !t.InSync {
			wrong = append(wrong, "target "+t.Name+": "+t.Err)
		}
		for _, p := range t.Problems {
			if strings.Contains(t.Err, p.Detail) {
				continue // it is why the target is not in sync
			}
			wrong = append(wrong, "target "+t.Name+": "+p.Path+": "+p.Reason+": "+p.Detail)
		}
	}
	for _, r := range s.Runtimes {
		if r.Err != "" {
			wrong = append(wrong, string(r.Name)+" could not be looked at: "+r.Err)
		}
		if r.Decision.Action == daemon.Pending || r.Decision.Action == daemon.Restart {
			wrong = append(wrong, "restart of "+string(r.Name)+" is pending: "+r.Decision.Reason+": "+r.Decision.Detail)
			continue
		}
		for _, a := range r.Answers {
			if a.Verdict != daemon.Trusted {
				wrong = append(wrong, string(r.Name)+" does not say that it trusts "+a.Registry+": "+a.Text)
			}
		}
	}
	return wrong
}
