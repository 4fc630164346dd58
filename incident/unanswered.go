package incident

import (
	"fmt"

	"github.com/nodestead/nodestead/conntrack"
)

// FromUnanswered explains a kept collision whose loser was not answered while
// its entry lived, nor seen to be answered later. The question is lost, because
// no answer can reach the client without the entry; why there was none,
// conntrack does not tell.
func FromUnanswered(c conntrack.Collision) Incident {
	evidence := fmt.Sprintf("the question to %v collided; in the one second that its conntrack entry lived no answer came, and none was seen after",
		c.Loser)
	if c.Winner.IsValid() {
		evidence += fmt.Sprintf("; the question that it collided with went to %v", c.Winner)
	}
	return Incident{
		Time:       c.Time,
		Cause:      Unknown,
		Client:     c.Original.Source,
		Nameserver: c.Original.Destination,
		Backend:    c.Loser,
		Count:      1,
		Evidence:   evidence,
		Remedy: fmt.Sprintf("look whether %v answers, and whether a network policy drops answers that come late; the collision itself ends with sessionAffinity: ClientIP on the DNS Service",
			c.Loser),
	}
}
