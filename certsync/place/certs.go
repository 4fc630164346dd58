package place

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
)

// certsFile is the name of our file in a registry's directory.
const certsFile = "nodestead.crt"

// certsHead is its first line, for people.
const certsHead = "# Managed by nodestead: changes are undone.\n"

// Certs is the directory of one registry in a runtime's certs.d, which the daemon
// reads at each access to that registry.
type Certs struct {
	h        *host.Host
	runtime  string
	dir      string // certs.d
	registry string
}

// NewCerts is the directory of a registry (see CheckRegistry) in a runtime's
// certs.d: "docker" and /etc/docker/certs.d, "containerd" and its config_path,
// "crio" and /etc/containers/certs.d.
func NewCerts(h *host.Host, runtime, dir, registry string) *Certs {
	return &Certs{h: h, runtime: runtime, dir: path.Clean(dir), registry: registry}
}

// ListCerts are the registries in a runtime's certs.d that have our file.
func ListCerts(h *host.Host, runtime, dir string) []Target {
	entries, err := h.ReadDir(dir)
	if err != nil {
		return nil // it is not there, or nothing of ours can be in it
	}
	var targets []Target
	var names []string
	for _, e := range entries {
		registry := e.Name()
		if m := portDir.FindStringSubmatch(registry); m != nil && runtime == "containerd" {
			registry = m[1] + ":" + m[2]
		}
		if CheckRegistry(registry) != nil || slices.Contains(names, registry) {
			continue
		}
		if _, err := h.Lstat(path.Join(dir, e.Name(), certsFile)); err != nil {
			continue
		}
		names = append(names, registry)
		targets = append(targets, NewCerts(h, runtime, dir, registry))
	}
	return targets
}

// portDir matches a registry's directory as containerd looks for it first.
var portDir = regexp.MustCompile(`^(.+)_([0-9]+)_$`)

// Name implements Target.
func (c *Certs) Name() string { return c.runtime + "/" + c.registry }

// dirs are the directories that the daemon looks for, in its order: it reads the
// first that is there, and no other. The last has the plain name.
//
// containerd: core/remotes/docker/config, hostPaths.
func (c *Certs) dirs() []string {
	var dirs []string
	if i := strings.LastIndexByte(c.registry, ':'); i > 0 && c.runtime == "containerd" {
		dirs = append(dirs, path.Join(c.dir, c.registry[:i]+"_"+c.registry[i+1:]+"_"))
	}
	return append(dirs, path.Join(c.dir, c.registry))
}

// hides is the directory that the daemon reads for a registry that has none of
// its own; to make that one would switch it off. Empty: it reads none.
//
// CRI-O: github.com/containers/image, dockerCertDir.
func (c *Certs) hides() string {
	switch c.runtime {
	case "containerd":
		return path.Join(c.dir, "_default")
	case "crio":
		return path.Join("/etc/docker/certs.d", c.registry)
	}
	return ""
}

// Plan implements Target.
func (c *Certs) Plan(anchors []anchor.Anchor) (Plan, error) {
	p := Plan{Target: c.Name()}
	if err := CheckRegistry(c.registry); err != nil {
		return p, err
	}
	var dirs []certsDir
	for _, name := range append(c.dirs(), c.hides()) {
		d, err := readCertsDir(c.h, name)
		if err != nil {
			return p, fmt.Errorf("look at %s: %w", name, err)
		}
		if c.runtime == "crio" { // it knows no hosts.toml
			d.toml = hostsTOML{}
		}
		dirs = append(dirs, d)
	}
	last := len(dirs) - 1
	planCerts(&p, c.runtime, dirs[:last], dirs[last], c.mine(anchors))
	if p.Empty() {
		return p, p.blocked()
	}
	return p, nil
}

// mine are the anchors that are meant for the registry, sorted.
func (c *Certs) mine(anchors []anchor.Anchor) []anchor.Anchor {
	hostname, _, err := splitRegistry(c.registry)
	mine := slices.DeleteFunc(slices.Clone(anchors), func(a anchor.Anchor) bool {
		return a.Leaf && (err != nil || a.Cert.VerifyHostname(hostname) != nil)
	})
	slices.SortFunc(mine, func(a, b anchor.Anchor) int { return cmp.Compare(a.Fingerprint, b.Fingerprint) })
	return slices.CompactFunc(mine, func(a, b anchor.Anchor) bool { return a.Fingerprint == b.Fingerprint })
}

// planCerts compares the directories of a registry, of which the daemon reads the
// first that is there, or else hidden, with the anchors that shall be in it.
func planCerts(p *Plan, runtime string, dirs []certsDir, hidden certsDir, anchors []anchor.Anchor) {
	read := len(dirs) - 1
	for i, d := range dirs {
		if d.there {
			read = i
			break
		}
	}
	for i, d := range dirs {
		if i == read {
			p.Problems = append(p.Problems, d.problems(runtime)...)
			if len(anchors) > 0 {
				planFile(p, d, hidden, anchors)
				continue
			}
		}
		if d.own != nil {
			p.Changes = append(p.Changes, Change{Path: path.Join(d.path, certsFile), Fingerprints: d.own.fingerprints()})
			p.Why = "our file has to go"
			if d.toml.names {
				p.Problems = append(p.Problems, Problem{path.Join(d.path, hostsFile), "hosts_toml_needs_us",
					"it names " + certsFile + ", which is removed: containerd refuses every pull until that line is gone"})
			}
		}
	}
}

// planFile plans our file in the directory that is read.
func planFile(p *Plan, d, hidden certsDir, anchors []anchor.Anchor) {
	name := path.Join(d.path, certsFile)
	content := []byte(certsHead)
	var fingerprints []string
	for _, a := range anchors {
		if d.given(a.Fingerprint) && !d.toml.names {
			continue
		}
		content = append(content, a.PEM()...)
		fingerprints = append(fingerprints, a.Fingerprint)
	}
	switch {
	case len(fingerprints) == 0 && d.own == nil:
		return
	case d.unsafe != "":
		p.Problems = append(p.Problems, Problem{d.path, "unsafe_directory", "nothing is written to it: " + d.unsafe})
		return
	case d.own != nil && d.own.unsafe != "":
		p.Problems = append(p.Problems, Problem{name, "unsafe_file", "it is left as it is: " + d.own.unsafe})
		return
	case !d.there && hidden.foreign():
		if !hidden.givesAll(anchors) {
			p.Problems = append(p.Problems, Problem{hidden.path, "would_be_hidden",
				"the daemon reads it for this registry, and would not any more with a directory of our own; put a directory for the registry beside it"})
		}
		return
	}
	if d.toml.counts() && !d.toml.names && len(fingerprints) > 0 {
		problem := Problem{path.Join(d.path, hostsFile), "foreign_hosts_toml",
			`with it the .crt files do not count; add ca = "` + name + `" to its hosts`}
		if d.toml.hostless {
			problem = Problem{problem.Path, "ambiguous_hosts_toml",
				`an old containerd does not read it, and a new one then reads no .crt files; add ca = "` + name + `" and an empty table [host]`}
		}
		p.Problems = append(p.Problems, problem)
	}
	change := Change{Path: name, Content: content, Fingerprints: fingerprints}
	switch {
	case len(fingerprints) == 0:
		change.Content, change.Fingerprints = nil, d.own.fingerprints()
		p.Why = "others have put the anchors there"
	case d.own == nil:
		p.Why = "our file is not there"
	case !d.own.irregular && d.own.mode == anchorMode && bytes.Equal(d.own.content, content):
		return
	default:
		p.Why = "our file is another one"
		// Other anchors, too, make it another one.
		p.Drift = slices.Equal(d.own.fingerprints(), fingerprints)
	}
	p.Changes = append(p.Changes, change)
}

// Apply implements Target. A lock is not needed: all that happens to our file
// happens at once, and each agent writes the same.
func (c *Certs) Apply(ctx context.Context, _ Plan, anchors []anchor.Anchor) error {
	if err := c.apply(ctx, anchors); err != nil {
		return fmt.Errorf("bring the certificates of %s up to date: %w", c.Name(), err)
	}
	return nil
}

func (c *Certs) apply(ctx context.Context, anchors []anchor.Anchor) error {
	p, err := c.Plan(anchors)
	if err != nil {
		return err
	}
	// What is written first, so that there is no time without.
	slices.SortStableFunc(p.Changes, func(a, b Change) int { return cmp.Compare(len(b.Content), len(a.Content)) })
	for _, change := range p.Changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.change(change); err != nil {
			return err
		}
	}
	if p, err = c.Plan(anchors); err == nil && !p.Empty() {
		err = errors.New(p.Why)
	}
	return err
}

func (c *Certs) change(change Change) error {
	dir := path.Dir(change.Path)
	if change.Content == nil {
		if err := c.h.Remove(change.Path); err != nil {
			return err
		}
		// Others have no use for an empty one: it was ours, or could be.
		return c.h.RemoveDir(dir)
	}
	if _, err := c.h.Stat(dir); err != nil {
		if _, err := c.h.MkdirOwn(dir); err != nil {
			return err
		}
	}
	_, err := c.h.WriteFile(change.Path, change.Content, anchorMode)
	return err
}
