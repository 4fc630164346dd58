package place

import (
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"
)

// Since is when an anchor that is in the bundle came into it, as far as files
// tell: it may have been earlier, and a file of our own (ours: whoever wrote it
// saw to what follows from that) may be some seconds older. Zero: there is no
// bundle.
func (s *Store) Since(fingerprint string, ours bool) time.Time {
	bundle, err := s.h.Stat(s.Bundle())
	if err != nil {
		return time.Time{}
	}
	since := bundle.ModTime()
	earlier := func(fi fs.FileInfo, err error) {
		if err != nil {
			return
		}
		// Not mtime, which is copied with a file.
		if at := time.Unix(fi.Sys().(*syscall.Stat_t).Ctim.Unix()); at.Before(since) {
			since = at
		}
	}
	if ours {
		earlier(s.h.Lstat(s.layout.ownPath(fingerprint)))
	}
	if s.layout.links == "" || s.layout.links == s.layout.anchors {
		return since
	}
	st, err := s.look()
	if err != nil {
		return since
	}
	for _, f := range st.foreign {
		if f.has(fingerprint) {
			// A run that makes the link puts the file into the bundle, and later
			// runs leave the link alone.
			earlier(s.h.Lstat(path.Join(s.layout.links, linkName(f.path))))
		}
	}
	return since
}

// linkName is the name that Debian's update-ca-certificates gives to its link to
// a file.
func linkName(file string) string {
	name := strings.TrimSuffix(path.Base(file), ".crt")
	return strings.NewReplacer(" ", "_", "(", "=", ")", "=", ",", "_").Replace(name) + ".pem"
}
