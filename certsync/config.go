package certsync

import (
	"log/slog"
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
)

// Config is what a Syncer needs. Nothing in it but Gate has a default.
type Config struct {
	// HostRoot is where the node's root file system is mounted.
	HostRoot string
	// Sources are directories with certificates, as a Secret is mounted.
	Sources []string
	// Allow are the SHA-256 fingerprints, in lower-case hex, of the only
	// certificates that are taken; empty: any valid CA.
	Allow []string
	// Overlap is how long an anchor stays after its source dropped it.
	Overlap time.Duration
	// Interval is the time between two passes when nothing is noticed.
	Interval time.Duration
	// Store: the node's trust store is used. CertsD: so are the runtimes'
	// certs.d directories, for Registries.
	Store, CertsD bool
	// Registries are host:port of the registries that daemons are asked about.
	Registries []string
	// Runtimes are the daemons; those that are left out are left alone.
	Runtimes []daemon.Config
	// Gate says when a restart may begin; nil: at any time.
	Gate Gate
	Log  *slog.Logger
}
