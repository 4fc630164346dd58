package cluster

import (
	"context"
	"errors"
	"time"
)

// Lease is a restart slot as the API server has it: an object Lease of
// coordination.k8s.io in the agent's namespace.
type Lease struct {
	Name string
	// Version is its resource version: an update is carried out only on the
	// version that it names. It is empty before the Lease is created.
	Version string
	// Holder is whose turn it is; empty when the slot is free.
	Holder string
	// TTL is how long the slot is its holder's after each sign of life. It is 0
	// when the Lease does not say.
	TTL time.Duration
	// Acquired and Renewed are by the holder's clock. They are for people; no
	// decision rests on them.
	Acquired, Renewed time.Time
	// Transitions counts changes of the holder.
	Transitions int

	object map[string]any // all of it, so that an update keeps what is not ours
}

// Leases is the part of the API that slots need. An error is ErrConflict,
// ErrNotFound, or anything else: then the request may have been carried out, or
// may still be.
type Leases interface {
	Get(ctx context.Context, name string) (Lease, error)
	Create(ctx context.Context, l Lease) (Lease, error)
	Update(ctx context.Context, l Lease) (Lease, error)
}

var (
	// ErrConflict says that the object has another version than the request
	// named, or existed already. Nothing was changed by this request.
	ErrConflict = errors.New("conflict")
	// ErrNotFound says that there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrNotInCluster says that this process runs in no pod with a service
	// account.
	ErrNotInCluster = errors.New("not in a cluster")
)

// busyError is an answer of a server that wants to be left alone for a while.
type busyError struct {
	after time.Duration
	err   error
}

func (e *busyError) Error() string { return e.err.Error() }
func (e *busyError) Unwrap() error { return e.err }

// after is how long the server asked to be left alone, at most for some minutes.
func after(err error) time.Duration {
	if busy, ok := errors.AsType[*busyError](err); ok {
		return min(busy.after, longestAfter)
	}
	return 0
}

// longestAfter is the longest time for which a server's word is taken.
const longestAfter = 5 * time.Minute
