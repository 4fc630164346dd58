package doctor

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/probe"
)

// step is one name that a resolver may try, and what came of both questions.
// An outcome is "timeout", "servfail" or the like when no nameserver gave an
// answer that musl takes.
type step struct {
	name    string
	a, aaaa string
}

// end is how a resolver's call ended.
type end string

// What a resolver makes of one step; notFound of all of them.
const (
	success  end = "success"
	goesOn   end = "goes on"
	noData   end = "stops: no address (EAI_NODATA)"
	tryAgain end = "fails: EAI_AGAIN"
	notFound end = "not found (EAI_NONAME)"
)

const (
	noError  = "noerror"
	nxDomain = "nxdomain"
	servFail = "servfail"
)

// taken tells whether musl takes it for an answer; it waits for another
// otherwise, until five seconds are over.
func taken(outcome string) bool {
	return outcome == noError || outcome == nxDomain || outcome == probe.NoData
}

// candidates are the names that a resolver may try, absolute and in musl's
// order: it uses the search list only for names with fewer dots than ndots, and
// tries the name itself last. glibc tries the same, in another order: see glibc.
func candidates(name string, search []string, ndots int) []string {
	absolute := strings.TrimSuffix(name, ".") + "."
	if strings.HasSuffix(name, ".") || strings.Count(name, ".") >= ndots {
		return []string{absolute}
	}
	var out []string
	for _, s := range search {
		long := absolute + strings.Trim(s, ".") + "."
		if _, ok := dns.IsDomainName(long); ok && long != absolute+"." { // resolvers skip what is too long
			out = append(out, long)
		}
	}
	return append(out, absolute)
}

// musl is what musl makes of one name (name_from_dns, 1.2.1 and later): it looks
// at A first, one family that is missing fails the call, and one that does not
// exist counts for both.
func musl(s step) end {
	for _, outcome := range []string{s.a, s.aaaa} {
		switch {
		case !taken(outcome):
			return tryAgain
		case outcome == nxDomain:
			return goesOn
		}
	}
	if s.a == noError || s.aaaa == noError {
		return success
	}
	return noData
}

// walkMusl is what musl makes of the whole list: how it ended, and at which
// step.
func walkMusl(steps []step) (end, int) {
	for i, s := range steps {
		if e := musl(s); e != goesOn {
			return e, i
		}
	}
	return notFound, len(steps) - 1
}

// glibc is what glibc makes of the whole list (__res_context_search): one family
// with an address is enough, and NODATA and SERVFAIL go on to the next name. For a
// name with ndots dots it would try the list after the name itself, which musl
// never does; that is left out.
func glibc(steps []step) end {
	var noAddress, failed bool
	last := len(steps) - 1
	for i := 0; i <= last; i++ {
		s := steps[i]
		if s.a == noError || s.aaaa == noError {
			return success
		}
		noAddress = noAddress || s.a == probe.NoData || s.aaaa == probe.NoData
		failed = failed || s.a == servFail && s.aaaa == servFail
		if leaves(s) {
			if i == last {
				return tryAgain
			}
			i = last - 1
		}
	}
	if failed && !noAddress {
		return tryAgain
	}
	return notFound
}

// leaves tells whether glibc leaves the search domains after this one and tries
// the name itself. That it looks more at A than at AAAA was measured (2.36).
func leaves(s step) bool {
	switch {
	case s.a == probe.Timeout:
		return s.aaaa != servFail
	case taken(s.a), s.a == servFail:
		return false
	default: // refused and the like
		return !taken(s.aaaa)
	}
}
