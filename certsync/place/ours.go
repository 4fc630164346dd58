package place

import (
	"path"

	"github.com/nodestead/nodestead/certsync/anchor"
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
		all = append(all, stored(s.h.ReadFile, path.Join(s.layout.anchors, e.Name()))...)
	}
	return all
}

// Installed implements Target.
func (c *Certs) Installed() []anchor.Anchor {
	var all []anchor.Anchor
	for _, dir := range c.dirs() {
		all = append(all, stored(c.h.ReadFile, path.Join(dir, certsFile))...)
	}
	return all
}

// stored reads the anchors in a file of ours. One that cannot be read has none.
func stored(read func(string, int64) ([]byte, error), name string) []anchor.Anchor {
	content, err := read(name, maxFile)
	if err != nil {
		return nil
	}
	return anchor.Stored(content, name)
}
