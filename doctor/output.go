package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Table writes the verdicts for people: a line for each, with its evidence, and
// the remedy below it.
func Table(w io.Writer, verdicts []Verdict) error {
	width := 0
	for _, v := range verdicts {
		width = max(width, len(v.Check))
	}
	var b strings.Builder
	for _, v := range verdicts {
		fmt.Fprintf(&b, "%-8s %-*s  %s\n", v.State, width, v.Check, v.Evidence)
		if v.Remedy != "" {
			fmt.Fprintf(&b, "%-8s %-*s  → %s\n", "", width, "", v.Remedy)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// JSON writes the verdicts as an array of objects.
func JSON(w io.Writer, verdicts []Verdict) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if verdicts == nil {
		verdicts = []Verdict{}
	}
	return e.Encode(verdicts)
}
