package daemon

import "strings"

// Expired tells whether the daemon says that a certificate has expired, which may
// be a root that it has loaded and that was renewed since (see Case.Own).
func (a Answer) Expired() bool { return a.Verdict == Unclear && strings.Contains(a.Text, expired) }
