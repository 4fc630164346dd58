// Package daemon knows the daemons that pull images: what of the node's trust a
// running one has loaded, what it says of a registry when it is asked, and
// whether a restart is needed, would help, and is safe. That decision is a pure
// function.
package daemon

import (
	"context"
	"time"

	"github.com/nodestead/nodestead/certsync/host"
)

// Name is a runtime: the value of the label runtime.
type Name string

// The runtimes.
const (
	Docker     Name = "docker"
	Containerd Name = "containerd"
	CRIO       Name = "crio"
)

// Policy is when a daemon is restarted.
type Policy string

// The policies.
const (
	Auto   Policy = "auto"   // when it is needed, would help, and is safe
	Always Policy = "always" // after each change of the anchors in the store, when it is safe
	Never  Policy = "never"
)

// Config is one runtime's.
type Config struct {
	Name       Name
	Unit       string // docker.service
	Restart    Policy
	Disruptive bool // docker: restart it although that stops containers
}

// Facts are what is known of a daemon before it is asked anything about a
// registry. To find them does not make it load the system's roots.
type Facts struct {
	// Present: its socket or unit is there.
	Present bool
	Unit    host.Unit // zero where there is no systemd or no such unit
	NoUnit  string    // why Unit is zero: "no systemd", "no such unit"
	Healthy bool      // it answers on its socket
	Version string

	// Docker's GET /info.
	LiveRestore bool
	Containers  int // that run
	// StopsDocker: docker's unit requires this one (containerd), so that its
	// stop stops docker's.
	StopsDocker bool

	// OtherStore is SSL_CERT_FILE=… or SSL_CERT_DIR=… in the daemon's
	// environment: what the store has does not reach it.
	OtherStore string
	// CertDirs are the certs.d directories that the running daemon reads, on the
	// node; none: it is not configured to read one, and CertDirsWhy says so.
	CertDirs    []string
	CertDirsWhy string
}

// Verdict is what an answer means.
type Verdict string

// The verdicts.
const (
	Trusted   Verdict = "trusted"
	Untrusted Verdict = "untrusted" // x509: signed by unknown authority
	Unclear   Verdict = "unclear"   // no connection, another error: a restart cannot help
)

// Answer is what a daemon says of a registry.
type Answer struct {
	Registry string
	Verdict  Verdict
	Text     string // its words, shortened, on one line
	At       time.Time
}

// Look finds out what is known of a daemon without making it talk to anybody.
// dockerUnit is the name of docker's unit, for StopsDocker.
func Look(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, dockerUnit string) (Facts, error) {
	panic("not yet")
}

// Ask makes the daemon talk TLS to the registry (host:port), which makes it load
// the system's roots if it has not: never before the anchors are installed.
func Ask(ctx context.Context, h *host.Host, name Name, registry string) Answer { panic("not yet") }

// Judge tells what a daemon's words about a registry mean.
func Judge(text string) Verdict { panic("not yet") }

// Case is all that a decision rests on.
type Case struct {
	Config Config
	Facts  Facts
	// Docker are docker's configuration and facts when StopsDocker.
	Docker *Case
	// Installed is when the last of the anchors came into the store's bundle;
	// zero: the store is off or not in sync, so a restart brings nothing.
	Installed time.Time
	// Set names the anchors in the store.
	Set string
	// Answers are of this run of the daemon (Facts.Unit.InvocationID), after
	// Installed. None: no registry is configured.
	Answers []Answer
	// History is what was done before.
	History History
	Now     time.Time
}

// History is what was done to a daemon before. It is kept on disk (JSON).
type History struct {
	// Set is the last set of anchors for which it was restarted, Outcome what
	// came of it.
	Set     string      `json:"set,omitempty"`
	Outcome string      `json:"outcome,omitempty"` // helped, did_not_help, failed
	Times   []time.Time `json:"times,omitempty"`   // of restarts in the last hour
}

// Action is what is decided.
type Action string

// The actions.
const (
	Leave   Action = "leave"   // nothing is needed, or nothing would help
	Restart Action = "restart" // now
	Pending Action = "pending" // needed, and not done: Reason says why
)

// Decision is what shall be done with a daemon, and why. Reason is in snake
// case, Detail for people, Remedy what an operator can do about it.
type Decision struct {
	Action Action
	Reason string
	Detail string
	Remedy string
}

// Decide is a pure function.
func Decide(c Case) Decision { panic("not yet") }

// Renew restarts the daemon and waits until it is healthy again, or brings it
// back when systemd's start limit was hit: it is never left dead by us. The facts
// are those after it.
func Renew(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, before Facts) (Facts, error) {
	panic("not yet")
}
