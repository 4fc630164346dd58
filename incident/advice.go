package incident

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// Topic is what an Advice is about: the key advice of its log line, and the
// heading of its section in docs/causes.md.
type Topic string

// The topics.
const (
	// SearchAmplification is a name that cost several useless questions,
	// because of ndots and the search list.
	SearchAmplification Topic = "search_amplification"
	// RandomBackends is a DNS service whose backends are picked for each
	// question, so that the two questions of a pair collide.
	RandomBackends Topic = "random_backends"
)

// Advice is something that works, and would work better. It is kept apart from
// incidents.
type Advice struct {
	Time  time.Time
	Topic Topic
	// Client and Workload are who it is about, Nameserver is the service.
	Client     netip.AddrPort
	Workload   workload.Workload
	Nameserver netip.AddrPort
	Name       string
	// Count is what it adds up to: useless questions, or collisions.
	Count            uint64
	Evidence, Remedy string
}

// AdviceKey is what advice is merged by: the pod for a search list, the service
// for its backends.
type AdviceKey struct {
	Topic          Topic
	Namespace, Pod string
	Addr           netip.Addr
}

// Key gives the advice's key.
func (a Advice) Key() AdviceKey {
	switch {
	case a.Topic == RandomBackends:
		return AdviceKey{Topic: a.Topic, Addr: a.Nameserver.Addr()}
	case a.Workload.Pod != "":
		return AdviceKey{Topic: a.Topic, Namespace: a.Workload.Namespace, Pod: a.Workload.Pod}
	default:
		return AdviceKey{Topic: a.Topic, Addr: a.Client.Addr()}
	}
}

// MergeAdvice gives one advice for two with the same key.
func MergeAdvice(older, newer Advice) Advice {
	newer.Count += older.Count
	return newer
}

// severalWasted is from how many useless questions on a name is worth advice:
// both questions of a pair for two search domains.
const severalWasted = 4

// FromTotals gives advice about a client's search list; false when its lookups
// cost no useless questions worth it.
func FromTotals(t lookup.Totals, w workload.Workload) (Advice, bool) {
	if t.NameWasted < severalWasted {
		return Advice{}, false
	}
	return Advice{
		Time: t.At, Topic: SearchAmplification, Client: t.Client.Addr, Workload: w, Name: t.Name, Count: t.Wasted,
		Evidence: fmt.Sprintf("%s cost %d useless questions, because it has fewer dots than ndots and the search list comes first", t.Name, t.NameWasted),
		Remedy:   "end the name with a dot, or set dnsConfig.options ndots: 1 in the pod",
	}, true
}

// FromCollision gives advice about a service that sends the questions of one
// socket to different backends.
func FromCollision(c conntrack.Collision) (Advice, bool) {
	if !c.Winner.IsValid() || c.Winner == c.Loser {
		return Advice{}, false
	}
	return Advice{
		Time: c.Time, Topic: RandomBackends, Client: c.Original.Source, Nameserver: c.Original.Destination, Count: 1,
		Evidence: fmt.Sprintf("two questions of %v to %v collided, because they were sent to %v and %v: each answer that takes longer than a second is lost",
			c.Original.Source, c.Original.Destination, c.Winner, c.Loser),
		Remedy: orphanRemedy,
	}, true
}
