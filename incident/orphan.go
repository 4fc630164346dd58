package incident

import (
	"fmt"
	"time"

	"github.com/nodestead/nodestead/conntrack"
)

// clashLifetime is how long the kernel keeps the loser of a collision
// (nf_conntrack_core.c, nf_ct_resolve_clash_harder).
const clashLifetime = time.Second

// FromOrphan explains an orphaned answer that only conntrack saw.
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
