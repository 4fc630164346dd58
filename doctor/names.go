package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/probe"
)

const (
	// useless is how many names of the search list may be asked in vain. An
	// external name costs three with the cluster's own list.
	useless = 2
)

// Remedies that help every resolver. Those that musl ignores (single-request,
// use-vc, rotate, edns0) are not among them.
const (
	familyRemedy = "have the nameserver answer NOERROR without a record for the family that the name does not have: repair the server that is responsible for it, or in CoreDNS, for that zone, `template IN AAAA <zone> { rcode NOERROR }`"
	searchRemedy = "take the domain out of the search list (the pod's dnsConfig, or the node's resolv.conf that the kubelet hands on), or have its server answer NXDOMAIN; a dot at the end of the name avoids the list"
	costRemedy   = "end the name with a dot, or give the pod dnsConfig.options ndots:1 (or 2)"
)

// names asks every name that a resolver may try for Name, and judges what musl
// makes of the answers.
func (d *doctor) names(ctx context.Context) []Verdict {
	checks := []string{"name_families", "name_search", "name_cost"}
	all := func(v Verdict) (out []Verdict) {
		for _, check := range checks {
			v.Check = check
			out = append(out, v)
		}
		return out
	}
	if len(d.Nameservers) == 0 {
		return all(Verdict{State: Unknown, Evidence: "no nameserver is known", Remedy: d.found().Remedy})
	}
	list := candidates(d.Name, d.Search, d.Ndots)
	steps := make([]step, len(list))
	errs := make([]error, len(list))
	var wait sync.WaitGroup
	for i, name := range list {
		wait.Go(func() {
			results, err := d.ask(ctx, name, d.Nameservers...)
			steps[i], errs[i] = step{name, combined(results, dns.TypeA), combined(results, dns.TypeAAAA)}, err
		})
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return all(unknown("", err))
		}
	}
	search := judgeSearch(d.Name, steps)
	if d.guessed && search.State == Finding && glibc(steps) != success {
		search.State = Unknown
		search.Remedy = "the cluster's domain was not found, " + defaultDomain + " is a guess: name a name that pods look up (--name)"
	}
	return []Verdict{judgeFamilies(steps), search, judgeCost(d.Name, steps)}
}

// combined is what a resolver that asks all nameservers makes of their answers
// to one question: the accepted one; else a failure; else nothing.
func combined(results []probe.Result, qtype uint16) string {
	out := probe.Timeout
	for _, r := range results {
		if r.Type != qtype {
			continue
		}
		if r.Accepted {
			return r.Outcome
		}
		if r.Outcome != probe.Timeout && !taken(r.Outcome) {
			out = r.Outcome
		}
	}
	return out
}

// judgeFamilies looks for names of which one family has an address and the
// other one is denied, or fails: glibc takes the address, musl takes neither.
func judgeFamilies(steps []step) Verdict {
	v := Verdict{Check: "name_families", State: OK}
	var bad []string
	for _, s := range steps {
		if (s.a == noError) != (s.aaaa == noError) && musl(s) != success {
			bad = append(bad, fmt.Sprintf("family_mismatch: %s (musl %s, glibc succeeds)", s, musl(s)))
		}
	}
	if len(bad) > 0 {
		v.State, v.Evidence, v.Remedy = Finding, strings.Join(bad, "; "), familyRemedy
		return v
	}
	v.Evidence = "A and AAAA agree on whether a name exists"
	if len(steps) == 1 {
		v.Evidence += ": " + steps[0].String()
	}
	return v
}

// judgeSearch compares what musl makes of the list with what is there.
func judgeSearch(name string, steps []step) Verdict {
	ended, at := walkMusl(steps)
	v := Verdict{Check: "name_search", State: OK, Evidence: story(name, steps)}
	last := at == len(steps)-1
	switch {
	case ended == success:
	case steps[at].a == noError || steps[at].aaaa == noError || last && glibc(steps) == success:
		v.State = Finding
		v.Evidence = "family_mismatch: " + v.Evidence
		v.Remedy = familyRemedy
	case !last:
		v.State = Finding
		v.Evidence = fmt.Sprintf("search_stopped: musl stops at %s; %s", steps[at].name, v.Evidence)
		v.Remedy = searchRemedy
		if !taken(steps[at].a) && !taken(steps[at].aaaa) {
			v.Remedy += "; and see why its server fails or is silent"
		}
	case ended == tryAgain:
		v.State = Finding
		v.Remedy = "see why the nameservers fail or are silent: it is no matter of the search list"
	default:
		v.State = Finding
		v.Remedy = "the name has no address that any resolver could find: see whether it is spelt right, and whether its record exists where the nameservers look"
	}
	return v
}

// judgeCost counts what was asked in vain before the name was found.
func judgeCost(name string, steps []step) Verdict {
	v := Verdict{Check: "name_cost", State: OK}
	ended, at := walkMusl(steps)
	if ended != success {
		v.Evidence = "not counted: the name was not found"
		return v
	}
	v.Evidence = fmt.Sprintf("%s is found after %d questions in vain (%d names of the search list)", name, 2*at, at)
	if at > useless { // it works, and could work better
		v.Evidence = "search_amplification: " + v.Evidence
		v.Remedy = "advice: " + costRemedy
	}
	return v
}

// story tells step by step what musl does, and how glibc ends.
func story(name string, steps []step) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", name)
	ended, at := walkMusl(steps)
	for i, s := range steps[:at+1] {
		e := musl(s)
		if e == goesOn && i == len(steps)-1 {
			e = notFound
		}
		fmt.Fprintf(&b, "%s (musl %s); ", s, e)
	}
	fmt.Fprintf(&b, "musl: %s; glibc: %s", ended, glibc(steps))
	return b.String()
}

// String gives a step as NAME: A OUTCOME, AAAA OUTCOME.
func (s step) String() string { return fmt.Sprintf("%s A %s, AAAA %s", s.name, s.a, s.aaaa) }
