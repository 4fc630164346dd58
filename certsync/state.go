package certsync

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/host"
)

// What certsync keeps on the node, beside the anchors themselves.
const (
	stateDir  = "/var/lib/nodestead"
	stateFile = stateDir + "/trust.json"
	lockFile  = "/run/lock/nodestead.lock"
	// maxState is more than a state with all that a source may give.
	maxState = 8 << 20
	// stateVersion is another one when an older agent would misread the file.
	stateVersion = 1
)

// state is what has to outlive the agent, which may be killed by the very
// restart that it asked for.
type state struct {
	Version int           `json:"version"`
	Memory  anchor.Memory `json:"memory"`
	// Leaving are anchors that their source dropped, by fingerprint.
	Leaving map[string]leaving `json:"leaving,omitempty"`
	// Installed is when an anchor came into the store's bundle, by fingerprint:
	// a daemon that was started after it has loaded it.
	Installed map[string]time.Time         `json:"installed,omitempty"`
	Runtimes  map[daemon.Name]runtimeState `json:"runtimes,omitempty"`
	// Kept are anchors of ours that were installed when the state was lost, by
	// fingerprint, as PEM: what the sources gave then is not known, so they stay
	// until a source gives them, or all sources can be read.
	Kept map[string]string `json:"kept,omitempty"`
	// CertDirs are the certs.d directories that were written to, by runtime.
	CertDirs map[daemon.Name][]string `json:"cert_dirs,omitempty"`
}

// leaving is an anchor on its way out.
type leaving struct {
	PEM   string    `json:"pem"`
	Since time.Time `json:"since"`
}

// runtimeState is what was done to a daemon.
type runtimeState struct {
	History daemon.History `json:"history"`
	// Intent is written before a restart is asked for, and taken back after it.
	Intent *intent `json:"intent,omitempty"`
	// Loaded are the anchors that one run of the daemon has loaded from the
	// store: it was started when they were in.
	Loaded loaded `json:"loaded"`
}

// intent is a restart that was about to be asked for.
type intent struct {
	Set        string    `json:"set"`
	Invocation string    `json:"invocation"` // of the run that shall end
	At         time.Time `json:"at"`
}

// loaded is what one run of a daemon has loaded.
type loaded struct {
	Invocation   string   `json:"invocation,omitempty"`
	Fingerprints []string `json:"fingerprints,omitempty"`
}

func newState() state {
	return state{
		Version: stateVersion, Memory: anchor.Memory{}, Leaving: map[string]leaving{},
		Installed: map[string]time.Time{}, Runtimes: map[daemon.Name]runtimeState{},
		Kept: map[string]string{}, CertDirs: map[daemon.Name][]string{},
	}
}

// readState reads the state of the node. A new one comes with found false; so
// does one that cannot be read, together with the reason.
func readState(h *host.Host) (st state, found bool, err error) {
	st = newState()
	b, err := h.ReadFile(stateFile, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return st, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err == nil && st.Version != stateVersion {
		err = fmt.Errorf("it has version %d, this release knows %d", st.Version, stateVersion)
	}
	if err != nil {
		return newState(), false, fmt.Errorf("read %s: %w", stateFile, err)
	}
	empty := newState()
	if st.Memory == nil {
		st.Memory = empty.Memory
	}
	if st.Leaving == nil {
		st.Leaving = empty.Leaving
	}
	if st.Installed == nil {
		st.Installed = empty.Installed
	}
	if st.Runtimes == nil {
		st.Runtimes = empty.Runtimes
	}
	if st.Kept == nil {
		st.Kept = empty.Kept
	}
	if st.CertDirs == nil {
		st.CertDirs = empty.CertDirs
	}
	return st, true, nil
}

// equal compares states as they are on disk.
func (st state) equal(other state) bool {
	a, err1 := json.Marshal(st)
	b, err2 := json.Marshal(other)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}

// write writes the state, if it is another one than on disk.
func (st state) write(h *host.Host) error {
	b, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return fmt.Errorf("write %s: %w", stateFile, err)
	}
	if _, err := h.MkdirOwn(stateDir); err != nil {
		return fmt.Errorf("write %s: %w", stateFile, err)
	}
	if _, err := h.WriteFile(stateFile, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", stateFile, err)
	}
	return nil
}

// installedAt notes the anchors that are in the bundle. New are those that came
// with its last change, which is over now; of others that are not known yet, since
// tells.
func (st *state) installedAt(fingerprints []string, isNew map[string]bool, now time.Time, since func(string) time.Time) {
	for _, f := range fingerprints {
		if isNew[f] {
			st.Installed[f] = now
		} else if _, known := st.Installed[f]; !known {
			st.Installed[f] = since(f)
		}
	}
	maps.DeleteFunc(st.Installed, func(f string, _ time.Time) bool { return !slices.Contains(fingerprints, f) })
}

// loadedSince is since when the store has those of the anchors that this run of
// a daemon has not been seen to have loaded: it has, if it was started after
// that. It is started itself when there are none.
func (st state) loadedSince(name daemon.Name, invocation string, started time.Time, fingerprints []string) time.Time {
	seen := st.Runtimes[name].Loaded
	var last time.Time
	for _, f := range fingerprints {
		if seen.Invocation == invocation && invocation != "" && slices.Contains(seen.Fingerprints, f) {
			continue
		}
		if at := st.Installed[f]; at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return started
	}
	return last
}
