package incident

import (
	"net/netip"
	"time"
)

// Cause is why a lookup was lost: the label cause of the metrics and the key
// cause of the log line.
type Cause string

// The causes.
const (
	// OrphanedAnswer is a kept collision whose answer came after the kept
	// entry's one second was over: it reached the client from an address that
	// the client never asked.
	OrphanedAnswer Cause = "orphaned_answer"
	// Unknown is a lookup that was lost without evidence of why.
	Unknown Cause = "unknown"
)

// Causes lists all causes.
func Causes() []Cause { return []Cause{OrphanedAnswer, Unknown} }

// Incident is one lost lookup, or several of one client and cause that were
// merged. The zero value of a field means that it is not known.
type Incident struct {
	// Time is when the (newest) lookup was seen to be lost.
	Time  time.Time
	Cause Cause
	// Client is the socket that asked.
	Client netip.AddrPort
	// Namespace, Pod and Container name the workload behind Client.
	Namespace, Pod, Container string
	// Resolver is the library that asked: musl, glibc, go or other.
	Resolver string
	// Nameserver is the address that the client asked, Backend the one that
	// its question was translated to.
	Nameserver, Backend netip.AddrPort
	// Waited is the time from the question to its answer. It is the whole
	// time only when WaitedExact is true, and a lower bound otherwise.
	Waited      time.Duration
	WaitedExact bool
	// Count is the number of lost lookups that this value stands for.
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
	if in.Pod != "" {
		return Key{Cause: in.Cause, Namespace: in.Namespace, Pod: in.Pod}
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
	if in.Pod != "" {
		who = in.Namespace + "/" + in.Pod
	}
	return Incident{
		Time:     in.Time,
		Cause:    in.Cause,
		Count:    in.Count,
		Evidence: "too many clients for a line each; the newest, " + who + ": " + in.Evidence,
		Remedy:   in.Remedy,
	}
}
