package conntrack

import (
	"context"
	"errors"
)

// ErrPermission is returned by Open when the process lacks CAP_NET_ADMIN in
// the user namespace that owns the network namespace.
var ErrPermission = errors.New("CAP_NET_ADMIN is missing")

// Config is what Open needs. The zero value of a field means its default.
type Config struct {
	// Ports are the UDP server ports to watch; default 53, at most 16.
	Ports []uint16
	// ReceiveBuffer is the size of the socket's receive buffer in bytes;
	// default 8 MiB.
	ReceiveBuffer int
}

// Sensor watches one network namespace. Open it, Run it once, Close it.
type Sensor struct{}

// Open opens the sensor's sockets and files in the network namespace of the
// calling thread. Run may then be called on any thread.
func Open(cfg Config) (*Sensor, error) { return nil, errors.New("not yet") }

// Run reads until ctx ends and calls emit with each finding, one at a time and
// from one goroutine at a time; emit must not block. It returns nil only when ctx has ended.
func (s *Sensor) Run(ctx context.Context, emit func(Finding)) error { return nil }

// Close frees sockets and files. Call it after Run has returned.
func (s *Sensor) Close() error { return nil }

// Counters are the sensor's own counts since Open.
type Counters struct {
	Messages uint64 // messages that the kernel queued and the sensor read
	Lost     uint64 // messages that the kernel could not queue
}

// Counters may be called at any time, from any goroutine.
func (s *Sensor) Counters() Counters { return Counters{} }

// Statistics are the namespace's conntrack counters, summed over all CPUs and
// extended to 64 bits (the kernel's are u32 and wrap). They start at the
// kernel's own values.
type Statistics struct {
	Found, Invalid, Insert, InsertFailed, Drop, EarlyDrop uint64
	Error, SearchRestart, ClashResolved, ChainTooLong     uint64
	// Entries and Limit are the table's fill and its limit now.
	Entries, Limit uint64
}

// Statistics reads the kernel's counters now. It may be called at any time,
// from any goroutine.
func (s *Sensor) Statistics() (Statistics, error) { return Statistics{}, nil }
