package incident

import "slices"

// Cause is why a lookup was lost or failed: the label cause of the metrics, the
// key cause of the log line, and the heading of a section in docs/causes.md.
type Cause string

// The causes of timeouts: the client had to ask again, or gave up.
const (
	// OrphanedAnswer is a kept collision whose answer came after the kept
	// entry's one second was over: it reached the client from an address that
	// the client never asked.
	OrphanedAnswer Cause = "orphaned_answer"
	// CollisionDropped is a collision whose loser the kernel dropped.
	CollisionDropped Cause = "collision_dropped"
	// TableFull is a question that found no room in the conntrack table.
	TableFull Cause = "table_full"
	// DroppedOnNode is a question that came from the client and never left the
	// node, or an answer that reached the node and never the client.
	DroppedOnNode Cause = "dropped_on_node"
	// StaleBackend is a question to a backend that no longer answers, while
	// others do.
	StaleBackend Cause = "stale_backend"
	// ServerSilent is a question that left the node and was never answered.
	ServerSilent Cause = "server_silent"
	// SlowAnswer is an answer that came after the client had asked again, or
	// given up.
	SlowAnswer Cause = "slow_answer"
	// Unknown is a lookup that was lost without evidence of why.
	Unknown Cause = "unknown"
)

// The causes of failures: an answer came, and it did not help.
const (
	// ServerFailure is an answer that says SERVFAIL, REFUSED or the like.
	ServerFailure Cause = "server_failure"
	// FamilyMismatch is a pair of which one half has an answer, and the other
	// one failed or says that the name does not exist.
	FamilyMismatch Cause = "family_mismatch"
	// SearchStopped is a search that ended at a search domain, because that
	// answered NODATA or failed.
	SearchStopped Cause = "search_stopped"
	// Truncated is a truncated answer after which the client did not ask by TCP.
	Truncated Cause = "truncated"
)

var (
	timeoutCauses = [...]Cause{OrphanedAnswer, CollisionDropped, TableFull, DroppedOnNode, StaleBackend, ServerSilent, SlowAnswer, Unknown}
	failureCauses = [...]Cause{ServerFailure, FamilyMismatch, SearchStopped, Truncated}
)

// TimeoutCauses lists the causes of timeouts, FailureCauses those of failures.
func TimeoutCauses() []Cause { return timeoutCauses[:] }

// FailureCauses lists the causes of failures.
func FailureCauses() []Cause { return failureCauses[:] }

// Timeout tells whether the cause is one of a timeout.
func (c Cause) Timeout() bool { return slices.Contains(timeoutCauses[:], c) }
