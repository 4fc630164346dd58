package incident

import (
	"fmt"
	"time"

	"github.com/nodestead/nodestead/conntrack"
)

// clashLifetime is how long the kernel keeps the loser of a collision
// (nf_conntrack_core.c, nf_ct_resolve_clash_harder).
const clashLifetime = time.Second

// orphanRemedy names only what helps every resolver: musl ignores
// single-request and use-vc. Questions that go to one backend are merged by
// the kernel instead of kept, so it no longer matters how long the answer
// takes. kube-proxy notes a client's backend when it translates a question,
// not when the kernel confirms the entry, which leaves a narrow race to the
// very first pair of a client.
const orphanRemedy = "set sessionAffinity: ClientIP on the DNS Service, so that both questions of a pair go to one backend; " +
	"or run NodeLocal DNSCache, which takes DNS out of conntrack"

// FromOrphan explains an orphaned answer.
func FromOrphan(o conntrack.Orphan) Incident {
	late := fmt.Sprintf("more than %v", o.Lateness)
	if o.Exact {
		late = o.Lateness.Round(time.Millisecond).String()
	}
	evidence := fmt.Sprintf("answer arrived from %v %s after the question; its conntrack entry had lived %v",
		o.Backend, late, clashLifetime)
	if o.Winner.IsValid() {
		evidence += fmt.Sprintf("; the question that it collided with went to %v", o.Winner)
	}
	return Incident{
		Time:        o.Time,
		Cause:       OrphanedAnswer,
		Client:      o.Original.Source,
		Nameserver:  o.Original.Destination,
		Backend:     o.Backend,
		Waited:      o.Lateness,
		WaitedExact: o.Exact,
		Count:       1,
		Evidence:    evidence,
		Remedy:      orphanRemedy,
	}
}
