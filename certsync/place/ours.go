package place

import (
	"io/fs"
	"path"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
)

// Installed implements Target.
func (s *Store) Installed() []anchor.Anchor {
	entries, err := s.h.ReadDir(s.layout.anchors)
	if err != nil {
		return nil
	}
	var all []anchor.Anchor
	for _, e := range entries {
		if !ownFile.MatchString(e.Name()) {
			continue
		}
		all = append(all, stored(s.h, path.Join(s.layout.anchors, e.Name()))...)
	}
	return all
}

// Installed implements Target.
func (c *Certs) Installed() []anchor.Anchor {
	var all []anchor.Anchor
	for _, dir := range c.dirs() {
		all = append(all, stored(c.h, path.Join(dir, certsFile))...)
	}
	return all
}

// stored reads the anchors in a file of ours. One that cannot be read, or that
// somebody else could have written, has none.
func stored(h *host.Host, name string) []anchor.Anchor {
	for _, p := range []string{path.Dir(name), name} {
		fi, err := h.Lstat(p)
		if err != nil || fi.Mode().Type()&^fs.ModeDir != 0 || unsafeBy(fi) != "" {
			return nil
		}
	}
	content, err := h.ReadFile(name, maxFile)
	if err != nil {
		return nil
	}
	return anchor.Stored(content, name)
}
