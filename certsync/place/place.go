// Package place knows where trust anchors go on a node: the trust stores of the
// distributions, and the certs.d directories of container runtimes. It plans
// what would change, changes it, and verifies what came of it. Only files with
// our own names are ever written or removed.
package place

import (
	"context"
	"errors"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// Target is a place where anchors are installed.
type Target interface {
	// Name is the value of the label target: "store", "docker/HOST:PORT",
	// "containerd/HOST:PORT", "crio/HOST:PORT".
	Name() string
	// Plan compares the place with the anchors that shall be there, of which it
	// takes those that are meant for it (a store takes no leaf, a registry's
	// directory those leaves that have its name). No anchors: all of ours goes.
	// It changes nothing and runs nothing. When a problem keeps the anchors out,
	// and there is nothing else to do, the error says so beside the plan.
	Plan(anchors []anchor.Anchor) (Plan, error)
	// Apply carries a plan out and verifies it: the error says what is not as
	// it should be at the end.
	Apply(ctx context.Context, plan Plan, anchors []anchor.Anchor) error
	// Installed are the anchors in files of ours that are there now, as far as
	// they can be read and nobody else can have written them.
	Installed() []anchor.Anchor
}

// Plan is what would change at one target. It is a plain value, to be printed.
type Plan struct {
	Target  string
	Changes []Change
	// Tool is the distribution's tool that has to run, with its arguments; nil:
	// none has to.
	Tool []string
	// Why says why anything has to be done, for people: "2 anchors are new",
	// "the bundle lacks …" (drift).
	Why string
	// Missing are the anchors, by fingerprint, that the bundle lacks now: who has
	// loaded it since has not loaded them.
	Missing []string
	// Drift: what we had installed before was taken away or changed.
	Drift bool
	// Problems are what is in the way and is left alone: a foreign file, a
	// directory that is not safe.
	Problems []Problem
}

// Empty tells whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Changes) == 0 && p.Tool == nil }

// Change is one file that is written, or removed.
type Change struct {
	Path         string // on the node
	Content      []byte // nil: removed
	Fingerprints []string
}

// blocked is Blocked as an error.
func (p Plan) blocked() error {
	if why := p.Blocked(); why != "" {
		return errors.New(why)
	}
	return nil
}

// Problem is something that keeps a target from working, and that only a person
// can mend.
type Problem struct {
	Path   string
	Reason string // in snake case
	Detail string
}
