package place

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/nodestead/nodestead/certsync/anchor"
)

const storeName = "store"

// plan compares a store with the anchors that shall be in it. had are those that
// were in it when all was last seen in order, nil if that was never seen.
func (l layout) plan(st state, tool string, anchors []anchor.Anchor, had map[string]bool) Plan {
	p := Plan{Target: storeName, Problems: l.problems(st)}
	d := l.differences(st, anchors, had)
	if st.unsafe != "" && len(d.changes) > 0 {
		p.Problems = append(p.Problems, Problem{l.anchors, "unsafe_directory", "nothing is written to it: " + st.unsafe})
		return p
	}
	if lost := l.besidesLost(st); len(lost) > 0 && d.runs() {
		p.Problems = append(p.Problems, Problem{l.besides, "anchors_elsewhere", fmt.Sprintf(
			"the bundle has certificates of %s, which it would lose: copy them to %s", strings.Join(lost, ", "), l.anchors)})
		return p
	}
	if i := slices.IndexFunc(p.Problems, func(p Problem) bool { return p.Reason == "foreign_private_key" }); i >= 0 && d.runs() {
		p.Problems = append(p.Problems, Problem{p.Problems[i].Path, "would_publish_key",
			"the tool is not run while that file is there, because it would publish the private key: " + strings.Join(d.why, "; ")})
		return p
	}
	p.Changes, p.Drift, p.Why = d.changes, d.drift, strings.Join(d.why, "; ")
	slices.Sort(d.missing)
	p.Missing = d.missing
	p.Problems = append(p.Problems, d.problems...)
	if d.runs() {
		args := l.args
		if d.fresh {
			args = l.fresh
		}
		p.Tool = append([]string{tool}, args...)
	}
	return p
}

// differences are what is between a store and what it shall be.
type differences struct {
	changes  []Change
	why      []string
	missing  []string // anchors that the bundle lacks
	problems []Problem
	// fresh: what is there has to be made anew, not only added to.
	fresh, drift bool
}

func (d *differences) runs() bool { return len(d.why) > 0 }

// because notes a reason, if there is anything that it is about.
func (d *differences) because(n int, one, many string) {
	switch {
	case n == 1:
		d.why = append(d.why, one)
	case n > 1:
		d.why = append(d.why, fmt.Sprintf(many, n))
	}
}

// differences finds them.
func (l layout) differences(st state, anchors []anchor.Anchor, had map[string]bool) differences {
	var d differences
	want := d.files(l, st, anchors, had)
	ours := len(want) > 0 || len(st.own) > 0
	must := l.must(st)

	var lacks, othersLack, extra, twice, unlinked int
	for fp := range want {
		if !st.bundle.has(fp) {
			lacks++
			d.missing = append(d.missing, fp)
			d.drift = d.drift || had[fp]
		}
		if _, mine := st.own[fp]; mine && st.hashed && !st.linked[fp] {
			unlinked++
			d.drift = d.drift || had[fp]
		}
	}
	for fp := range must {
		if !st.bundle.has(fp) && !want[fp] {
			othersLack++
		}
	}
	for fp, n := range st.bundle.certs {
		switch files := must[fp] + st.own[fp].certs[fp]; {
		case l.conf == "":
		case files == 0:
			extra++
		case n > files:
			twice++
		}
	}
	if len(d.changes) == 0 { // otherwise the tool runs anyway
		d.because(lacks, "the bundle lacks an anchor", "the bundle lacks %d anchors")
		d.because(unlinked, "an anchor has no hash link", "%d anchors have no hash link")
	}
	repairs := len(d.why)
	if ours {
		d.because(othersLack, "the bundle lacks a certificate of others", "the bundle lacks %d certificates of others")
		d.because(twice, "the bundle has a certificate twice", "the bundle has %d certificates twice")
		if st.unfinished {
			d.because(1, "a run of the tool was killed", "")
		}
	}
	if ours || l.conf == "" { // Flatcar's may be all that is left of ours
		d.because(len(st.danglingHashes), "a hash link leads to nothing", "%d hash links lead to nothing")
	}
	d.because(len(st.dangling), "a link to a file of ours leads to nothing", "%d links to files of ours lead to nothing")
	// What a run that was killed has not done yet cannot be told from a removal by
	// somebody else who has yet to run the tool. To run it is right in both cases.
	if st.older && len(d.changes) == 0 && (l.conf == "" && l.links == "" || l.conf != "" && extra > 0) {
		d.because(1, "the bundle is older than the last change of the anchors", "")
	}
	if len(d.why) > repairs && had != nil && len(d.changes) == 0 {
		d.drift = true
	}
	d.fresh = d.fresh || len(d.changes) == 0 || len(d.why) > repairs
	return d
}

// files plans our files. It returns the fingerprints of the anchors that shall be
// in the bundle.
func (d *differences) files(l layout, st state, anchors []anchor.Anchor, had map[string]bool) map[string]bool {
	want := map[string]bool{}
	var added, mended, removed int
	for _, a := range anchors {
		if a.Leaf {
			continue
		}
		want[a.Fingerprint] = true
		own, mine := st.own[a.Fingerprint]
		content := a.PEM()
		name := l.ownPath(a.Fingerprint)
		switch {
		case mine && own.unsafe != "":
			d.problems = append(d.problems, Problem{name, "unsafe_file", "it is left as it is: " + own.unsafe})
			continue
		case mine && !own.irregular && bytes.Equal(own.content, content) && own.mode == anchorMode,
			!mine && st.given(a.Fingerprint):
			continue
		case mine || had[a.Fingerprint]:
			mended++
		default:
			added++
		}
		d.changes = append(d.changes, Change{Path: name, Content: content, Fingerprints: []string{a.Fingerprint}})
	}
	for _, fp := range slices.Sorted(maps.Keys(st.own)) {
		if !want[fp] {
			removed++
			d.changes = append(d.changes, Change{Path: st.own[fp].path, Fingerprints: []string{fp}})
		}
	}
	d.because(added, "an anchor is new", "%d anchors are new")
	d.because(mended, "a file of ours was changed or removed", "%d files of ours were changed or removed")
	d.because(removed, "an anchor has to go", "%d anchors have to go")
	d.fresh, d.drift = mended+removed > 0, mended > 0
	return want
}

// ownPath is the path of our file for an anchor.
func (l layout) ownPath(fingerprint string) string {
	return path.Join(l.anchors, "nodestead-"+fingerprint+l.suffix)
}

// must counts the certificates that the bundle has to have because of files of
// others. Only Debian's tool and its like take all of them, and nothing else.
func (l layout) must(st state) map[string]int {
	must := map[string]int{}
	if l.conf == "" {
		return must
	}
	for _, f := range st.foreign {
		for fp, n := range f.certs {
			must[fp] += n
		}
	}
	return must
}

// given tells whether somebody else has put an anchor there.
func (st state) given(fingerprint string) bool {
	return slices.ContainsFunc(st.foreign, func(f file) bool { return f.only(fingerprint) })
}

// besidesLost are the files in layout.besides of which the bundle has
// certificates that a run would lose.
func (l layout) besidesLost(st state) []string {
	must := l.must(st)
	var lost []string
	for _, f := range st.besides {
		for fp := range f.certs {
			if st.bundle.has(fp) && must[fp] == 0 && st.own[fp].path == "" {
				lost = append(lost, f.path)
				break
			}
		}
	}
	return lost
}

// problems are what others have put there and only a person can mend.
func (l layout) problems(st state) []Problem {
	var problems []Problem
	key := false
	for _, f := range st.foreign {
		switch {
		case f.err != nil:
			problems = append(problems, Problem{f.path, "foreign_unreadable", f.err.Error()})
		case l.conf == "": // its tool takes nothing but certificates
		case f.key:
			key = true
			problems = append(problems, Problem{f.path, "foreign_private_key",
				"the tool puts the private key into the bundle, which everybody may read"})
		case len(f.certs) == 0:
			problems = append(problems, Problem{f.path, "foreign_no_certificate",
				"no program takes a certificate from it, and the tool puts its content into the bundle"})
		}
	}
	if st.bundle.key && !key {
		problems = append(problems, Problem{st.bundlePath, "bundle_private_key", "the bundle, which everybody may read, has a private key"})
	}
	return problems
}
