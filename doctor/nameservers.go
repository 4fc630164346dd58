package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/probe"
)

// askedAgain is the time from which an answer came to a retry only.
const askedAgain = 2400 * time.Millisecond

const silentRemedy = "see whether the servers behind it run and are ready (kubectl -n kube-system get endpointslices -l k8s-app=kube-dns), and whether a network policy or a firewall drops UDP port 53 between here and there"

// nameservers judges whether the pods' nameservers are known, answer, and are
// really several.
func (d *doctor) nameservers(ctx context.Context) []Verdict {
	found := d.found()
	if len(d.Nameservers) == 0 {
		none := Verdict{State: Unknown, Evidence: "no nameserver is known", Remedy: found.Remedy}
		answer, distinct := none, none
		answer.Check, distinct.Check = "nameservers_answer", "nameservers_distinct"
		return []Verdict{found, answer, distinct}
	}
	out := []Verdict{found, {}, {}}
	var both sync.WaitGroup
	both.Go(func() { out[1] = d.answer(ctx, "nameservers_answer", d.Nameservers) })
	both.Go(func() { out[2] = d.distinct() })
	both.Wait()
	return out
}

func (d *doctor) found() Verdict {
	const check = "nameservers_found"
	list := join(d.Nameservers)
	switch {
	case d.given:
		return Verdict{Check: check, State: OK, Evidence: list + ": as configured"}
	case d.dnsErr != nil:
		return Verdict{check, Unknown, oneLine(d.dnsErr), "mount the host's root and name it (host_root), or name the pods' nameservers (names.probe.nameservers)"}
	case d.dns.FromNode:
		return Verdict{check, Unknown, list + ", from " + d.dns.Source, "the pods may ask others: mount the host's root and name it (host_root), or name the pods' nameservers (names.probe.nameservers)"}
	default:
		return Verdict{Check: check, State: OK, Evidence: list + ", from " + d.dns.Source}
	}
}

// reachable is the name that each nameserver is asked for.
func (d *doctor) reachable() string {
	if strings.HasSuffix(d.Name, ".") {
		return d.Name
	}
	return "kubernetes.default.svc." + d.domain() + "."
}

// answer asks each nameserver alone. That it says NXDOMAIN or SERVFAIL is no
// matter here: it answers. What that means for the name is judged elsewhere.
func (d *doctor) answer(ctx context.Context, check string, nameservers []netip.AddrPort) Verdict {
	results := make([][]probe.Result, len(nameservers))
	errs := make([]error, len(nameservers))
	var all sync.WaitGroup
	for i, ns := range nameservers {
		all.Go(func() { results[i], errs[i] = d.ask(ctx, d.reachable(), ns) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return unknown(check, err)
		}
	}
	return judgeAnswers(check, results)
}

// judgeAnswers takes the results of each nameserver that was asked alone.
func judgeAnswers(check string, results [][]probe.Result) Verdict {
	v := Verdict{Check: check, State: OK}
	var good, bad, remedies []string
	for _, rs := range results {
		for _, r := range rs {
			problem, remedy := judgeAnswer(r)
			if problem == "" {
				good = append(good, fmt.Sprintf("%v answered %s in %v (%s)", r.Nameserver, dns.TypeToString[r.Type], r.Took.Round(100*time.Microsecond), r.Outcome))
				continue
			}
			bad = append(bad, problem)
			if !slices.Contains(remedies, remedy) {
				remedies = append(remedies, remedy)
			}
		}
	}
	v.Evidence = strings.Join(slices.Concat(bad, good), "; ")
	if len(bad) > 0 {
		v.State, v.Remedy = Finding, strings.Join(remedies, "; ")
	}
	return v
}

// judgeAnswer gives "" for an answer in time.
func judgeAnswer(r probe.Result) (problem, remedy string) {
	what := fmt.Sprintf("%s for %s", dns.TypeToString[r.Type], r.Name)
	switch {
	case r.Stray.IsValid():
		return fmt.Sprintf("the answer of %v to %s came from %v, which was not asked", r.Nameserver, what, r.Stray),
			"set sessionAffinity: ClientIP on the DNS Service, so that both questions of a pair go to one backend; or run NodeLocal DNSCache, which takes DNS out of conntrack"
	case r.Outcome == probe.Timeout && r.Err != nil:
		return fmt.Sprintf("%v could not be asked %s: %v", r.Nameserver, what, r.Err), "see whether this node has a route to it, and whether a rule on this node refuses UDP port 53"
	case r.Outcome == probe.Timeout:
		// On a busy node we may have looked later: what comes then is no answer any more.
		return fmt.Sprintf("%v did not answer %s in %v (asked %d times)", r.Nameserver, what, min(r.Took, giveUp).Round(100*time.Millisecond), r.Attempts), silentRemedy
	case r.Outcome == "refused":
		return fmt.Sprintf("%v refused %s", r.Nameserver, what), "let the nameserver serve this node and its pods (CoreDNS: a server block for the zone; plugin acl)"
	case r.Took >= askedAgain && r.Outcome != "servfail":
		return fmt.Sprintf("%v answered %s after %v only, when it was asked again (%d times)", r.Nameserver, what, r.Took.Round(100*time.Millisecond), r.Attempts),
			"the first question or its answer was lost, or the answer is slow: let nodestead watch, it tells which"
	}
	return "", ""
}

// nodeLocal judges NodeLocal DNSCache, where there is one.
func (d *doctor) nodeLocal(ctx context.Context) []Verdict {
	const check = "node_local_cache"
	if len(d.dns.NodeLocal) == 0 {
		return []Verdict{{Check: check, State: OK, Evidence: "there is no NodeLocal DNSCache on this node"}}
	}
	var nameservers []netip.AddrPort
	for _, a := range d.dns.NodeLocal {
		nameservers = append(nameservers, netip.AddrPortFrom(a, d.Ports[0]))
	}
	v := d.answer(ctx, check, nameservers)
	if v.State != OK {
		return []Verdict{v}
	}
	for _, ns := range nameservers {
		backends, err := d.backends(ns, 1)
		if err != nil {
			return []Verdict{unknown(check, err)}
		}
		if len(backends) > 0 {
			v.State = Finding
			v.Evidence = fmt.Sprintf("lookups at NodeLocal DNSCache's address %v are tracked by conntrack; %s", ns, v.Evidence)
			v.Remedy = "restart node-local-dns on this node, which makes its NOTRACK rules in iptables' table raw, and see what removed them"
		}
	}
	if v.State == OK {
		v.Evidence += "; its lookups are not tracked"
	}
	return []Verdict{v}
}

// join lists nameservers.
func join(list []netip.AddrPort) string {
	var out []string
	for _, ns := range list {
		out = append(out, ns.String())
	}
	return strings.Join(out, " and ")
}
