package certsync

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/place"
)

// Preview is what a pass would do. It is a plain value.
type Preview struct {
	Anchors                   []anchor.Anchor
	Refused, Warnings, Broken []anchor.Refusal
	Plans                     []place.Plan
	// Blocked are targets that cannot be planned, with the reason.
	Blocked  []TargetStatus
	Runtimes []RuntimePreview
}

// RuntimePreview is what a pass would do with a daemon. It is not asked about
// registries: that makes it load the roots that are there now.
type RuntimePreview struct {
	Name    daemon.Name
	Present bool
	Err     string // it could not be looked at
	// Asked are the registries that it would be asked about, after the
	// installation. Trusts is what would be decided when it trusts them all (or
	// none is configured), Doubts when it trusts one of them not.
	Asked          []string
	Trusts, Doubts daemon.Decision
	// Shut is what is in the way of any restart now.
	Shut Shut
}

// Plan tells what a pass would do now. It changes nothing, and asks no daemon
// anything that makes it load roots.
func (s *Syncer) Plan(ctx context.Context) (Preview, error) {
	s.recall()
	w := s.look(ctx)
	if err := ctx.Err(); err != nil {
		return Preview{}, err
	}
	p := Preview{Anchors: w.wanted, Refused: w.reading.Refused, Warnings: w.reading.Warnings, Broken: w.reading.Broken}
	for _, t := range w.targets {
		if t.err != nil {
			p.Blocked = append(p.Blocked, TargetStatus{Name: t.Name(), Err: t.err.Error()})
			continue
		}
		if !t.plan.Empty() || len(t.plan.Problems) > 0 {
			p.Plans = append(p.Plans, t.plan)
		}
	}
	s.foresee(w)
	for _, name := range slices.Sorted(maps.Keys(s.runtimes)) {
		p.Runtimes = append(p.Runtimes, s.foretell(ctx, s.runtimes[name], w))
	}
	return p, nil
}

// foresee notes in the state, in memory only, what would be installed by now.
func (s *Syncer) foresee(w work) {
	if w.store == nil {
		return
	}
	s.forgetMissing(w)
	s.noteInstalled(w)
	s.mustRead = true
}

func (s *Syncer) foretell(ctx context.Context, rt *runtime, w work) RuntimePreview {
	p := RuntimePreview{Name: rt.cfg.Name, Present: rt.facts.Present}
	if rt.err != nil {
		p.Err = rt.err.Error()
		return p
	}
	if !rt.facts.Present || len(w.wanted) == 0 {
		return p
	}
	rt.asked = asked{}
	p.Asked = s.cfg.Registries
	decide := func(v daemon.Verdict) daemon.Decision {
		c := s.caseOf(ctx, rt, w, true)
		for _, r := range s.cfg.Registries {
			c.Answers = append(c.Answers, daemon.Answer{Registry: r, Verdict: v, Text: "if it says so"})
		}
		return daemon.Decide(c)
	}
	p.Shut = s.gate.Look()
	p.Trusts, p.Doubts = decide(daemon.Trusted), decide(daemon.Untrusted)
	return p
}

// Print writes it for people.
func (p Preview) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "anchors: %d\n", len(p.Anchors))
	for _, a := range p.Anchors {
		fmt.Fprintf(&b, "  %s  %s, until %s, from %s\n", a.Fingerprint, a.Cert.Subject, a.Cert.NotAfter.UTC().Format("2006-01-02"), a.Source)
	}
	for _, kind := range []struct {
		what string
		all  []anchor.Refusal
	}{{"refused", p.Refused}, {"warning", p.Warnings}, {"broken", p.Broken}} {
		for _, r := range kind.all {
			fmt.Fprintf(&b, "  %s: %s: %s: %s\n", kind.what, r.Source, r.Reason, r.Detail)
		}
	}
	changes := false
	for _, plan := range p.Plans {
		if !plan.Empty() {
			changes = true
			fmt.Fprintf(&b, "%s: %s\n", plan.Target, plan.Why)
		}
		for _, c := range plan.Changes {
			verb := "write "
			if c.Content == nil {
				verb = "remove"
			}
			fmt.Fprintf(&b, "  %s %s\n", verb, c.Path)
		}
		if plan.Tool != nil {
			fmt.Fprintf(&b, "  run    %s\n", strings.Join(plan.Tool, " "))
		}
		for _, problem := range plan.Problems {
			fmt.Fprintf(&b, "  %s: problem: %s: %s: %s\n", plan.Target, problem.Path, problem.Reason, problem.Detail)
		}
	}
	for _, t := range p.Blocked {
		fmt.Fprintf(&b, "%s: cannot be done: %s\n", t.Name, t.Err)
	}
	if !changes {
		b.WriteString("nothing would be installed or removed\n")
	}
	for _, r := range p.Runtimes {
		r.print(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r RuntimePreview) print(b *strings.Builder) {
	name := string(r.Name)
	switch {
	case r.Err != "":
		fmt.Fprintf(b, "%s: cannot be looked at: %s\n", name, r.Err)
	case !r.Present:
		fmt.Fprintf(b, "%s: not on this node\n", name)
	case r.Trusts.Action == "":
		fmt.Fprintf(b, "%s: left alone, there is no anchor\n", name)
	case len(r.Asked) == 0:
		fmt.Fprintf(b, "%s: %s\n", name, r.would(r.Trusts))
	default:
		fmt.Fprintf(b, "%s: asked about %s after the installation\n", name, strings.Join(r.Asked, ", "))
		fmt.Fprintf(b, "  if it trusts them: %s\n", r.would(r.Trusts))
		fmt.Fprintf(b, "  if not:            %s\n", r.would(r.Doubts))
	}
}

// would says a decision in the conditional.
func (r RuntimePreview) would(d daemon.Decision) string {
	switch {
	case d.Action == daemon.Restart && r.Shut.Reason != "":
		return "it would be restarted (" + d.Reason + "), and not at once (" + r.Shut.Reason + "): " + r.Shut.Detail
	case d.Action == daemon.Restart:
		return "it would be restarted (" + d.Reason + ")"
	case d.Action == daemon.Pending:
		return "a restart would be pending (" + d.Reason + "): " + d.Remedy
	default:
		return "no restart (" + d.Reason + ")"
	}
}
