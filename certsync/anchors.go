package certsync

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// overlap adds to what the sources give what they dropped a short while ago.
func overlap(r anchor.Reading, st state, cfg Config, now time.Time) ([]anchor.Anchor, map[string]leaving) {
	wanted := r.Anchors
	left := make(map[string]leaving)
	if cfg.Overlap <= 0 {
		return wanted, left
	}
	has := make(map[string]bool)
	for _, a := range wanted {
		has[a.Fingerprint] = true
	}
	keep := func(fingerprint string, l leaving) {
		if has[fingerprint] || len(cfg.Allow) > 0 && !slices.Contains(cfg.Allow, fingerprint) {
			return
		}
		if l.Since.After(now) { // the clock was set back
			l.Since = now
		}
		if now.Sub(l.Since) >= cfg.Overlap {
			return
		}
		left[fingerprint] = l
		has[fingerprint] = true
		wanted = append(wanted[:len(wanted):len(wanted)], anchor.Stored([]byte(l.PEM), "overlap")...)
	}
	for fingerprint, l := range st.Leaving {
		keep(fingerprint, l)
	}
	for _, files := range st.Memory {
		for _, blocks := range files {
			for _, a := range anchor.Stored([]byte(strings.Join(blocks, "")), "") {
				keep(a.Fingerprint, leaving{PEM: string(a.PEM()), Since: now})
			}
		}
	}
	return sorted(wanted), left
}

// keep adds to what shall be what is kept since the state was lost, as far as it
// is allowed and no source gives it. Once all sources can be read nothing is kept.
func keep(r *anchor.Reading, wanted []anchor.Anchor, kept map[string]string, allowed func([]anchor.Anchor) []anchor.Anchor) ([]anchor.Anchor, map[string]string) {
	left := make(map[string]string)
	broken := len(r.Broken) > 0 || slices.ContainsFunc(r.Refused, func(r anchor.Refusal) bool { return r.Reason != anchor.NotAllowed })
	if !broken {
		return wanted, left
	}
	for _, fingerprint := range slices.Sorted(maps.Keys(kept)) {
		for _, a := range allowed(anchor.Stored([]byte(kept[fingerprint]), "the node's trust store")) {
			if slices.ContainsFunc(wanted, func(w anchor.Anchor) bool { return w.Fingerprint == a.Fingerprint }) {
				continue
			}
			left[fingerprint] = kept[fingerprint]
			wanted = append(wanted[:len(wanted):len(wanted)], a)
			r.Warnings = append(r.Warnings, anchor.Refusal{
				Source: a.Source, Reason: anchor.Remembered,
				Detail: fingerprint[:16] + ": stays, because the state of trust was lost and a source cannot be read wholly",
			})
		}
	}
	return sorted(wanted), left
}

func sorted(all []anchor.Anchor) []anchor.Anchor {
	return slices.SortedFunc(slices.Values(all), func(a, b anchor.Anchor) int { return strings.Compare(a.Fingerprint, b.Fingerprint) })
}

// storeAnchors are those that go into a trust store.
func storeAnchors(all []anchor.Anchor) []anchor.Anchor {
	return slices.DeleteFunc(slices.Clone(all), func(a anchor.Anchor) bool { return a.Leaf })
}

func fingerprints(all []anchor.Anchor) []string {
	var f []string
	for _, a := range all {
		f = append(f, a.Fingerprint)
	}
	return f
}

// setOf names a set of anchors.
func setOf(all []anchor.Anchor) string {
	sum := sha256.Sum256([]byte(strings.Join(fingerprints(all), "\n")))
	return hex.EncodeToString(sum[:8])
}

// wantsStore tells whether a daemon's trust in the store matters.
func wantsStore(w work) bool { return w.store != nil && len(storeAnchors(w.wanted)) > 0 }
