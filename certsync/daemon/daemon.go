// Package daemon knows the daemons that pull images: what of the node's trust a
// running one has loaded, what it says of a registry when it is asked, and
// whether a restart is needed, would help, and is safe. That decision is a pure
// function.
//
// It knows the daemons of the usual packages, by their usual sockets and units.
// Others have sockets, units and certs.d directories of their own, and are not
// known: the containerd inside k3s, rke2 and k0s, a docker from snap, a rootless
// one, cri-dockerd (which has docker pull).
package daemon

import (
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

// socket is where the node has a daemon's API.
func (n Name) socket() string {
	switch n {
	case Docker:
		return "/run/docker.sock"
	case CRIO:
		return "/run/crio/crio.sock"
	default:
		return "/run/containerd/containerd.sock"
	}
}

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
	// NoCRI: containerd answers, and its CRI plugin is off, as Docker's own
	// packages have it. Then it pulls nothing itself: what its clients pull,
	// they pull in their own process, with the roots that they have loaded.
	NoCRI bool

	// Docker's GET /info. They mean nothing when it is not Healthy.
	LiveRestore bool
	Containers  int // that run or are paused
	// StopsDocker: docker's unit requires this one (containerd), so that its
	// stop stops docker's.
	StopsDocker bool

	// BrokenConfig says why the daemon could not read its configuration file, as
	// it is now, at another start; "": it could.
	BrokenConfig string

	// OtherStore is SSL_CERT_FILE=… and SSL_CERT_DIR=… in the daemon's
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

// Case is all that a decision rests on.
type Case struct {
	Config Config
	Facts  Facts
	// Docker are docker's configuration, facts and history when StopsDocker.
	Docker *Case
	// Installed is when the last of the anchors came into the store's bundle;
	// zero: the store is off or not in sync, so a restart brings nothing.
	Installed time.Time
	// Set names the anchors in the store.
	Set string
	// Answers are of this run of the daemon (Facts.Unit.InvocationID), after
	// Installed. None: no registry is configured.
	Answers []Answer
	// Own is what Proves says of the same registries, where it was asked: our
	// own handshake, with the roots that a restarted daemon would load.
	Own map[string]Verdict
	// History is what was done before.
	History History
	Now     time.Time
}

// History is what was done to a daemon before. It is kept on disk (JSON).
type History struct {
	// Set is the last set of anchors for which it was restarted, Outcome what
	// came of it; empty: that is not known.
	Set     string      `json:"set,omitempty"`
	Outcome string      `json:"outcome,omitempty"` // helped, did_not_help, failed
	Times   []time.Time `json:"times,omitempty"`   // of restarts in the last hour
	// Run is the InvocationID that the restart for Set gave. That run has loaded
	// the set, whatever was done to the bundle since.
	Run string `json:"run,omitempty"`
}

// The outcomes.
const (
	Helped     = "helped"
	DidNotHelp = "did_not_help"
	Failed     = "failed" // it did not get healthy again
)

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
