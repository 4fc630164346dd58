package certsync

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// numbers may change from pass to pass where nothing else does: ports, times.
var numbers = regexp.MustCompile(`[0-9]+`)

// notes log what is wrong once, when it begins or changes, and once more when it
// is over: a pass a minute must not fill the log.
type notes struct {
	log  *slog.Logger
	said map[string]string // by key: what was said last
	// seen are the keys of the pass that goes on.
	seen map[string]bool
}

// begin begins a pass.
func (n *notes) begin() { n.seen = make(map[string]bool) }

// say logs at Warn what is wrong, unless that was said before.
func (n *notes) say(key, msg string, args ...any) {
	n.sayAs(key, numbers.ReplaceAllString(msg+fmt.Sprint(args...), "0"), msg, args...)
}

// sayAs is say where text tells whether it was said before.
func (n *notes) sayAs(key, text, msg string, args ...any) {
	if n.isNew(key, text) {
		n.log.Warn(msg, args...) //nolint:sloglint // each of the callers' is constant
	}
}

// isNew notes a text, and tells whether it was not said before.
func (n *notes) isNew(key, text string) bool {
	n.seen[key] = true
	if n.said[key] == text {
		return false
	}
	n.said[key] = text
	return true
}

// end ends a pass: what was said before and not in this pass is over.
func (n *notes) end() {
	for key := range n.said {
		if !n.seen[key] {
			delete(n.said, key)
			kind, what, _ := strings.Cut(key, " ")
			n.log.Info("no longer wrong", "kind", kind, "what", what)
		}
	}
}
