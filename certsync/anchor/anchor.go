// Package anchor reads CA certificates from directories, and refuses what is
// none, by name and reason. It remembers what each file gave last, so that a
// source that breaks takes no trust away. It never writes, and never logs
// content.
package anchor

import (
	"crypto/x509"
	"time"
)

// Anchor is one validated certificate. It is a plain value; Cert is not changed.
type Anchor struct {
	Cert *x509.Certificate
	// Fingerprint is the SHA-256 of the certificate's DER, in lower-case hex.
	Fingerprint string
	// Leaf: it is no CA, and is good only for the registries whose name it
	// has. It never goes into a trust store.
	Leaf bool
	// Source is the path of the file that it was found in.
	Source string
}

// PEM is the certificate as one block, without headers or comments.
func (a Anchor) PEM() []byte { panic("not yet") }

// Reason says why something was refused: the value of the label reason.
type Reason string

// Refusal is something in a source that is not taken. It has no content of it.
type Refusal struct {
	Source string // path of the file, or of the directory
	Reason Reason
	Detail string // for people: which block, which limit
}

// Reading is what the sources say, together with what they said before where
// they broke.
type Reading struct {
	Anchors []Anchor // sorted by fingerprint, each once
	Refused []Refusal
	// Warnings are about anchors that are taken, and may disappoint.
	Warnings []Refusal
	// Broken are the source directories that are missing, unreadable, empty or
	// give nothing, with the reason. What they gave last is in Anchors.
	Broken []Refusal
	// Memory is what the next Read wants.
	Memory Memory
}

// Memory is what each file gave last, to be kept on disk: source directory →
// file name → PEM blocks of the anchors. JSON-able.
type Memory map[string]map[string][]string

// Config is what Read reads, and what it takes.
type Config struct {
	Dirs []string
	// Allow are SHA-256 fingerprints in lower-case hex; empty: any valid CA.
	// It holds for what is remembered too.
	Allow []string
	// Registries are host:port of the registries for which a leaf that has
	// their name may be taken.
	Registries []string
	Now        func() time.Time
}

// Read reads all sources. It never fails as a whole: what could not be read is
// in Refused or Broken.
func Read(cfg Config, last Memory) Reading { panic("not yet") }
