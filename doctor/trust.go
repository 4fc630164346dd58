package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
)

const (
	// trustLimit bounds what is found out about trust: a daemon gets ten seconds
	// for each registry.
	trustLimit = time.Minute
	// renewal is how long before its end an anchor should have a successor.
	renewal = 30 * 24 * time.Hour

	onceRemedy = "run nodestead trust --once first, or see why the agent does not install them (its log)"
)

// trust examines the private CA: what the sources give, what is installed, what
// each daemon has loaded, and what it says of the registries. Without sources
// and registries the node has no such thing, and there is no verdict.
func (d *doctor) trust(ctx context.Context) []Verdict {
	if d.Trust == nil || len(d.Registries) == 0 && !slices.ContainsFunc(d.Trust.Sources, exists) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trustLimit)
	defer cancel()
	e, err := d.examine(ctx, *d.Trust, d.Registries)
	if err != nil {
		return []Verdict{unknownTrust("ca_sources", err)}
	}
	return judgeTrust(e, d.Registries, time.Now())
}

func exists(dir string) bool {
	_, err := os.Stat(dir)
	return !errors.Is(err, fs.ErrNotExist)
}

// unknownTrust is unknown for trust, which needs files and sockets of the node.
func unknownTrust(check string, err error) Verdict {
	v := unknown(check, err)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		v.Remedy = "mount the host's root and name it (host_root), and run as root"
	}
	return v
}

// judgeTrust judges what was found. It is a pure function.
func judgeTrust(e certsync.Examination, registries []string, now time.Time) []Verdict {
	out := []Verdict{judgeSources(e, now), judgeTargets("ca_store", "the trust store", e, isStore), judgeTargets("ca_certs_d", "certs.d", e, isCertsD)}
	present := 0
	for _, r := range e.Runtimes {
		if r.Err != "" {
			present++
			out = append(out, Verdict{"runtime_" + string(r.Name), Unknown, "it could not be looked at: " + strings.ReplaceAll(r.Err, "\n", "; "),
				"see whether the node's sockets and its D-Bus can be reached from here (host_root)"})
			continue
		}
		if !r.Present {
			continue
		}
		present++
		out = append(out, judgeRuntime(r, len(e.Anchors), e.Waiting))
		for _, registry := range registries {
			out = append(out, judgeRegistry(r, registry, len(e.Anchors), e.Waiting))
		}
	}
	if present == 0 {
		out = append(out, Verdict{"runtimes", Unknown, "no daemon that pulls images was found: no dockerd, containerd or CRI-O",
			"mount the host's root and name it (host_root); a daemon at another socket is not known"})
	}
	return out
}

func judgeSources(e certsync.Examination, now time.Time) Verdict {
	v := Verdict{Check: "ca_sources", State: OK}
	var evidence, remedies []string
	bad := func(text, remedy string) {
		v.State = Finding
		evidence = append(evidence, text)
		if !slices.Contains(remedies, remedy) {
			remedies = append(remedies, remedy)
		}
	}
	for _, b := range e.Broken {
		bad("broken: "+refusal(b), "see whether the Secret is mounted there, or correct trust.sources; what it gave last stays installed")
	}
	for _, r := range e.Refused {
		bad("refused: "+refusal(r), "take it out of the source, or put right what is wrong with it: docs/trust.md has each reason")
	}
	for _, a := range e.Anchors {
		text := fmt.Sprintf("%s (SHA-256 %.16s…, until %s)", a.Cert.Subject, a.Fingerprint, a.Cert.NotAfter.UTC().Format(time.DateOnly))
		if left := a.Cert.NotAfter.Sub(now); left < renewal {
			when := fmt.Sprintf(" ends in %d days", int(left/(24*time.Hour)))
			if left < 0 {
				when = " has ended"
			}
			bad(text+when, "put its successor beside it into the source")
			continue
		}
		evidence = append(evidence, text)
	}
	if len(e.Anchors) == 0 {
		bad("there is no CA to trust", "put the CA's certificate into the source")
	}
	for _, w := range e.Warnings {
		evidence = append(evidence, "warning: "+refusal(w))
	}
	v.Evidence, v.Remedy = oneText(evidence), strings.Join(remedies, "; ")
	if v.State == OK && len(e.Warnings) > 0 {
		v.Remedy = "advice: docs/trust.md says what each warning means"
	}
	return v
}

func refusal(r anchor.Refusal) string { return fmt.Sprintf("%s: %s: %s", r.Source, r.Reason, r.Detail) }

// store is the one target that is no directory of a registry.
const store = "store"

func isStore(name string) bool  { return name == store }
func isCertsD(name string) bool { return name != store }

// judgeTargets judges the places of one kind.
func judgeTargets(check, kind string, e certsync.Examination, is func(name string) bool) Verdict {
	v := Verdict{Check: check, State: OK}
	var bad, good, remedies []string
	add := func(text, remedy string) {
		bad = append(bad, text)
		if !slices.Contains(remedies, remedy) {
			remedies = append(remedies, remedy)
		}
	}
	for _, t := range e.Targets {
		if !is(t.Name) {
			continue
		}
		switch {
		case slices.Contains(e.Waiting, t.Name):
			add(t.Name+" waits: "+t.Err, onceRemedy)
		case !t.InSync:
			add(t.Name+": "+t.Err, "mend that, or switch the place off (trust.store, trust.certs_d)")
		case len(e.Anchors) == 0:
			good = append(good, t.Name+": nothing is known that should be there")
		default:
			good = append(good, t.Name+" is in sync")
		}
		for _, p := range t.Problems {
			if strings.Contains(t.Err, p.Reason) {
				continue // it is why the target is not in sync
			}
			add(fmt.Sprintf("%s: %s: %s: %s", t.Name, p.Path, p.Reason, p.Detail), "mend it by hand: nodestead leaves alone what is not its own (docs/trust.md has each reason)")
		}
	}
	if len(bad) > 0 {
		v.State, v.Remedy = Finding, strings.Join(remedies, "; ")
	}
	v.Evidence = oneText(append(bad, good...))
	if v.Evidence == "" {
		v.Evidence = kind + " is not used"
	}
	return v
}

// judgeRuntime says what a daemon has loaded, and what would help.
func judgeRuntime(r certsync.RuntimeStatus, anchors int, waiting []string) Verdict {
	v := Verdict{Check: "runtime_" + string(r.Name), State: OK}
	f := r.Facts
	evidence := []string{strings.TrimSpace(fmt.Sprintf("%s %s", r.Name, f.Version))}
	switch {
	case f.NoUnit != "":
		evidence = append(evidence, f.NoUnit)
	case f.Unit.Active():
		evidence = append(evidence, fmt.Sprintf("%s runs since %s", f.Unit.Name, f.Unit.Started.UTC().Format(time.RFC3339)))
	default:
		evidence = append(evidence, fmt.Sprintf("%s is %s", f.Unit.Name, f.Unit.ActiveState))
	}
	if r.Name == daemon.Docker && f.Healthy {
		onOff := map[bool]string{true: "on", false: "off"}
		evidence = append(evidence, fmt.Sprintf("live-restore is %s, %d containers run", onOff[f.LiveRestore], f.Containers))
	}
	if f.OtherStore != "" {
		evidence = append(evidence, "it reads "+f.OtherStore)
	}
	if f.CertDirsWhy != "" {
		evidence = append(evidence, "it reads no certs.d: "+f.CertDirsWhy)
	}
	switch {
	case len(waiting) > 0 || anchors == 0: // nothing was decided: what would be loaded is not there yet
	case r.Decision.Action == daemon.Leave:
		evidence = append(evidence, r.Decision.Reason+": "+r.Decision.Detail)
	case r.Decision.Action == daemon.Restart:
		v.State, v.Remedy = Finding, "run nodestead trust --once, which restarts it, or see why the agent does not (its log)"
		evidence = append(evidence, "it has to be restarted: "+r.Decision.Reason+": "+r.Decision.Detail)
	case r.Decision.Action == daemon.Pending:
		v.State, v.Remedy = Finding, r.Decision.Remedy
		evidence = append(evidence, "a restart is pending: "+r.Decision.Reason+": "+r.Decision.Detail)
	}
	v.Evidence = oneText(evidence)
	return v
}

// judgeRegistry says what a daemon says of a registry.
func judgeRegistry(r certsync.RuntimeStatus, registry string, anchors int, waiting []string) Verdict {
	v := Verdict{Check: "registry_" + string(r.Name), State: Unknown}
	not := func(why, remedy string) Verdict {
		v.Evidence, v.Remedy = fmt.Sprintf("%s: %s was not asked: %s", registry, r.Name, why), remedy
		return v
	}
	switch {
	case len(waiting) > 0:
		return not("anchors wait to be installed ("+strings.Join(waiting, ", ")+"), and a question makes it load the roots that are there now", onceRemedy)
	case anchors == 0:
		return not("there is no CA to trust, and a question makes it load the roots that are there now", "see ca_sources")
	}
	if f := r.Facts; f.NoCRI || f.NoUnit == "" && f.Unit.ActiveState == "inactive" {
		v.State = OK
		return not("it pulls nothing itself: its CRI is off, or it is stopped", "")
	}
	i := slices.IndexFunc(r.Answers, func(a daemon.Answer) bool { return a.Registry == registry })
	if i < 0 {
		return not("it does not answer on its socket", fmt.Sprintf("see systemctl status %s", r.Facts.Unit.Name))
	}
	answer := r.Answers[i]
	switch answer.Verdict {
	case daemon.Trusted:
		v.State = OK
		v.Evidence = fmt.Sprintf("%s: %s trusts it: %s", registry, r.Name, answer.Text)
	case daemon.Untrusted:
		v.State = Finding
		v.Evidence = fmt.Sprintf("%s: %s does not trust it: %s", registry, r.Name, answer.Text)
		v.Remedy = fmt.Sprintf("see runtime_%s", r.Name)
		if r.Decision.Action == daemon.Leave && r.Decision.Remedy != "" {
			v.Remedy = r.Decision.Remedy
		}
	default:
		v.Evidence = fmt.Sprintf("%s: %s cannot tell: %s", registry, r.Name, answer.Text)
		v.Remedy = "see to it that the registry can be reached from the node and has a certificate for its name: trust is not what is wrong, or not yet"
	}
	return v
}

// oneText puts evidence into one line.
func oneText(parts []string) string {
	return strings.Join(strings.Fields(strings.Join(parts, "; ")), " ")
}
