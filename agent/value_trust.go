package agent

import (
	"fmt"
	"regexp"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/place"
)

// Directories is a set of directories.
type Directories []Directory

// String gives the directories as a flag takes them.
func (d Directories) String() string { return join(d) }

// Fingerprint is the SHA-256 of a certificate's DER, in lower-case hex.
type Fingerprint string

// UnmarshalText takes what anchor.ParseFingerprint does: hexadecimal digits of
// either case, with or without colons, as openssl and browsers show them.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	plain, err := anchor.ParseFingerprint(string(text))
	if err != nil {
		return fmt.Errorf("%q is no SHA-256 fingerprint: want 64 hexadecimal digits, as openssl x509 -noout -fingerprint -sha256 shows them", text)
	}
	*f = Fingerprint(plain)
	return nil
}

// Fingerprints is a set of fingerprints; an empty one allows any.
type Fingerprints []Fingerprint

// String gives the fingerprints as a flag takes them.
func (f Fingerprints) String() string { return join(f) }

// Overlap is a time that may be zero.
type Overlap time.Duration

// String gives the time as a flag takes it.
func (o Overlap) String() string { return time.Duration(o).String() }

// UnmarshalText takes 0 to 8760h, a year.
func (o *Overlap) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 || v > 8760*time.Hour {
		return fmt.Errorf("%q is no duration from 0s to 8760h: want one such as 72h", text)
	}
	*o = Overlap(v)
	return nil
}

// Registry is an image registry as it stands before the first slash of an
// image's name: host:port, or host.
type Registry string

// UnmarshalText takes host:port, and a host with a dot in its name.
func (r *Registry) UnmarshalText(text []byte) error {
	if err := place.CheckRegistry(string(text)); err != nil {
		return err
	}
	*r = Registry(text)
	return nil
}

// Registries is a set of registries.
type Registries []Registry

// String gives the registries as a flag takes them.
func (r Registries) String() string { return join(r) }

// unitName is what systemd takes as the name of a service (systemd.unit(5)).
var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]{1,247}\.service$`)

// Unit is the name of a systemd service.
type Unit string

// UnmarshalText takes a name that ends with .service.
func (u *Unit) UnmarshalText(text []byte) error {
	if !unitName.Match(text) {
		return fmt.Errorf("%q is no systemd service: want one such as docker.service", text)
	}
	*u = Unit(text)
	return nil
}

// Restart is when a daemon is restarted.
type Restart daemon.Policy

// UnmarshalText takes auto, always or never.
func (r *Restart) UnmarshalText(text []byte) error {
	switch got := daemon.Policy(text); got {
	case daemon.Auto, daemon.Always, daemon.Never:
		*r = Restart(got)
		return nil
	default:
		return fmt.Errorf("%q says no time to restart: want auto, always or never", text)
	}
}
