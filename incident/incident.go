package incident

import (
	"net/netip"
	"time"

	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// Incident is one lookup that was lost or failed, or several of one client and
// cause that were merged. The zero value of a field means that it is not known.
type Incident struct {
	// Time is when the (newest) lookup began; where only conntrack saw it, when
	// it was seen to be lost.
	Time  time.Time
	Cause Cause
	// Client is the socket that asked.
	Client netip.AddrPort
	// Workload is who it belongs to.
	Workload workload.Workload
	// Resolver is the library that asked.
	Resolver lookup.Resolver
	// Name and Type are the question.
	Name string
	Type string
	// Nameserver is the address that the client asked, Backend the one that
	// its question was translated to, where that is another.
	Nameserver, Backend netip.AddrPort
	// Attempts is how often the client asked.
	Attempts int
	// Waited is the time from the question to its answer, or to the moment when
	// the client gave up. It is the whole time only when WaitedExact is true,
	// and a lower bound otherwise.
	Waited      time.Duration
	WaitedExact bool
	// Count is the number of lookups that this value stands for.
	Count uint64
	// Evidence says what was seen, Remedy what an operator can do.
	Evidence, Remedy string
}

// Key is what incidents are merged by: the cause and the pod, or the client's
// address while the pod is not known. The port is no part of it, because a
// resolver takes a new one for each call.
type Key struct {
	Cause          Cause
	Namespace, Pod string
	Client         netip.Addr
}

// Key gives the incident's key.
func (in Incident) Key() Key {
	if in.Workload.Pod != "" {
		return Key{Cause: in.Cause, Namespace: in.Workload.Namespace, Pod: in.Workload.Pod}
	}
	return Key{Cause: in.Cause, Client: in.Client.Addr()}
}

// Merge gives one incident for two with the same key: the newer one with the
// count of both.
func Merge(older, newer Incident) Incident {
	newer.Count += older.Count
	return newer
}

// Fold strips an incident of its client, so that those of all clients of one
// cause have one key. It is for the clients beyond a Throttle's limit.
func Fold(in Incident) Incident {
	who := in.Client.String()
	if in.Workload.Pod != "" {
		who = in.Workload.Namespace + "/" + in.Workload.Pod
	}
	return Incident{
		Time:     in.Time,
		Cause:    in.Cause,
		Count:    in.Count,
		Evidence: "too many clients for a line each; the newest, " + who + ": " + in.Evidence,
		Remedy:   in.Remedy,
	}
}
