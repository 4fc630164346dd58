package incident

import (
	"fmt"
	"strings"

	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// failed tells whether an outcome is an answer that says nothing of the name.
func failed(o lookup.Outcome) bool {
	switch o {
	case lookup.NoError, lookup.NXDomain, lookup.NoData, lookup.Timeout, "":
		return false
	default:
		return true
	}
}

// judgeFailure finds why an answer did not help.
func judgeFailure(l lookup.Lookup, w workload.Workload) (verdict, bool) {
	musl := l.Resolver == lookup.Musl
	switch {
	case l.Truncated && !l.TCP:
		return verdict{
			cause: Truncated, remedy: truncatedRemedy,
			evidence: fmt.Sprintf("the answer of %v was truncated (TC), and the client did not ask by TCP within two seconds", l.Nameserver),
		}, true
	case musl && mismatch(l):
		return verdict{
			cause: FamilyMismatch, remedy: mismatchRemedy,
			evidence: fmt.Sprintf("%s for %v%s, while %v had an answer; musl then %s",
				word(l.Outcome), l.Type, times(l), l.Pair.Type, muslMakes(l.Outcome)),
		}, true
	case musl && !l.SearchWentOn && stops(l) && inSearch(l, w):
		if second(l) {
			return verdict{}, false // the pair is one search
		}
		return verdict{
			cause: SearchStopped, remedy: searchRemedy,
			evidence: fmt.Sprintf("%s answered %s for %s%s; musl goes on to the next search domain only after NXDOMAIN, so it stopped there",
				l.Nameserver, word(l.Outcome), l.Name, tried(l)),
		}, true
	case failed(l.Outcome):
		return verdict{
			cause: ServerFailure, remedy: failureRemedy,
			evidence: fmt.Sprintf("%v answered %s%s", l.Nameserver, word(l.Outcome), times(l)),
		}, true
	default:
		return verdict{}, false
	}
}

// mismatch tells whether one half of a pair failed or does not exist, and the
// other one has an answer.
func mismatch(l lookup.Lookup) bool {
	return l.Pair != nil && l.Pair.Outcome == lookup.NoError && (l.Outcome == lookup.NXDomain || failed(l.Outcome))
}

// muslMakes is what musl makes of a pair of which one half has this outcome
// (name_from_dns, lookup_name.c).
func muslMakes(o lookup.Outcome) string {
	if o == lookup.NXDomain {
		return "takes the whole name as not found"
	}
	return "fails for the whole name (EAI_AGAIN)"
}

// stops tells whether musl takes an outcome for the end of its search. What has an
// address of the other family is what was searched for.
func stops(l lookup.Lookup) bool {
	return failed(l.Outcome) || l.Outcome == lookup.NoData && (l.Pair == nil || l.Pair.Outcome != lookup.NoError)
}

// second tells whether a lookup is the half of a pair that does not stand for
// it, when both halves stopped the search.
func second(l lookup.Lookup) bool {
	return l.Type == lookup.AAAA && l.Pair != nil && (l.Pair.Outcome == lookup.NoData && l.Outcome == lookup.NoData || failed(l.Pair.Outcome))
}

// inSearch tells whether the name is a search domain's, and not the name that
// the program asked for.
func inSearch(l lookup.Lookup, w workload.Workload) bool {
	name := strings.ToLower(l.Name)
	for _, s := range l.Search {
		// The last name of a search is the base itself, with which all others
		// begin.
		if strings.HasPrefix(strings.ToLower(s.Name), name) {
			return false
		}
	}
	if len(l.Search) > 0 {
		return true
	}
	for _, domain := range w.Search {
		// With one label before the domain it may be a name of that domain.
		base, ok := strings.CutSuffix(name, "."+strings.ToLower(strings.Trim(domain, "."))+".")
		if ok && strings.Contains(base, ".") {
			return true
		}
	}
	return false
}

func tried(l lookup.Lookup) string {
	if len(l.Search) == 0 {
		return " (a domain of the pod's search list; unless that very name was meant)"
	}
	return fmt.Sprintf(" (after %s, which does not exist)", l.Search[len(l.Search)-1].Name)
}

// times says how often the same question was put, where that was more than once.
func times(l lookup.Lookup) string {
	if l.Attempts < 2 {
		return ""
	}
	return fmt.Sprintf(" (asked %d times)", l.Attempts)
}

// word is an outcome as operators know it.
func word(o lookup.Outcome) string { return strings.ToUpper(string(o)) }
