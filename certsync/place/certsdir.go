package place

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
)

// certsDir is what is in a registry's directory.
type certsDir struct {
	path   string
	there  bool
	unsafe string
	own    *file // nil: it has no file of ours
	crt    []file
	// keyless are client certificates without their keys.
	keyless []string
	toml    hostsTOML
	more    bool // it has other files of others
}

// foreign tells whether the directory has anything of others.
func (d certsDir) foreign() bool {
	return len(d.crt)+len(d.keyless) > 0 || d.more || d.toml.there
}

// given tells whether others have put an anchor where the daemon reads it.
func (d certsDir) given(fingerprint string) bool {
	in := func(files []file) bool {
		return slices.ContainsFunc(files, func(f file) bool { return f.has(fingerprint) })
	}
	switch {
	case !d.toml.counts():
		return in(d.crt)
	case d.toml.hostless:
		return in(d.crt) && in(d.toml.files)
	}
	return in(d.toml.files)
}

// givesAll tells whether others have put all anchors there.
func (d certsDir) givesAll(anchors []anchor.Anchor) bool {
	return !slices.ContainsFunc(anchors, func(a anchor.Anchor) bool { return !d.given(a.Fingerprint) })
}

// fingerprints are the certificates in a file, sorted.
func (f file) fingerprints() []string {
	var all []string
	for fp := range f.certs {
		all = append(all, fp)
	}
	slices.Sort(all)
	return all
}

// readCertsDir reads it. A directory that is not there, or has no name, is empty.
func readCertsDir(h *host.Host, dir string) (certsDir, error) {
	d := certsDir{path: dir}
	if dir == "" {
		return d, nil
	}
	fi, err := h.Stat(dir)
	if err != nil {
		return d, ignoreMissing(err)
	}
	d.there, d.unsafe = true, unsafeBy(fi)
	link, err := h.Lstat(dir)
	if err != nil {
		return d, ignoreMissing(err)
	}
	linked := link.Mode().Type() == fs.ModeSymlink
	if linked { // what it leads to is somebody else's
		d.unsafe = "it is a link"
	}
	if !fi.IsDir() {
		d.unsafe = "it is no directory"
		return d, nil
	}
	entries, err := h.ReadDir(dir)
	if err != nil {
		return d, err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch ext := path.Ext(e.Name()); {
		case e.Name() == certsFile && !linked:
			f := readAnchors(h, entry{name, e.Type()}, false)
			if e.Type() == fs.ModeSymlink {
				f = file{path: name, irregular: true} // it is replaced, whatever it leads to
			}
			if err := f.stat(h); err != nil {
				return d, err
			}
			d.own = &f
		case e.Name() == hostsFile:
			d.toml = readHostsTOML(h, dir)
		case strings.HasPrefix(e.Name(), tempPrefix):
		case ext == ".crt":
			d.crt = append(d.crt, readAnchors(h, entry{name, e.Type()}, false))
		case ext == ".cert" && !hasEntry(entries, strings.TrimSuffix(e.Name(), ext)+".key"):
			d.keyless = append(d.keyless, name)
		default:
			d.more = true
		}
	}
	return d, nil
}

func hasEntry(entries []fs.DirEntry, name string) bool {
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
}

// problems are what others have put there and what keeps the daemon from what it
// shall trust.
//
// A .crt that it cannot read makes dockerd refuse every pull of the registry; one
// without a certificate does that to containerd. So does, in dockerd and CRI-O, a
// client certificate without its key.
func (d certsDir) problems(runtime string) []Problem {
	var problems []Problem
	if d.toml.broken != "" {
		problems = append(problems, Problem{path.Join(d.path, hostsFile), "broken_hosts_toml", "it does not count: " + d.toml.broken})
	}
	for _, f := range d.crt {
		switch {
		case f.err != nil:
			problems = append(problems, Problem{f.path, "foreign_unreadable",
				"while it is there, every pull of this registry fails: " + f.err.Error()})
		case len(f.certs) == 0 && runtime == "containerd":
			problems = append(problems, Problem{f.path, "foreign_no_certificate",
				"while it is there, every pull of this registry fails: no certificate can be read from it"})
		}
	}
	for _, name := range d.keyless {
		if runtime != "containerd" {
			problems = append(problems, Problem{name, "foreign_client_key_missing",
				"while it is there without its key, every pull of this registry fails"})
		}
	}
	return problems
}
