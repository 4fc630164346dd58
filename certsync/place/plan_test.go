package place

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
)

// layoutOf is the layout of that name.
func layoutOf(t *testing.T, name string) layout {
	t.Helper()
	all := layouts()
	i := slices.IndexFunc(all, func(l layout) bool { return l.name == name })
	if i < 0 {
		t.Fatalf("no layout %s", name)
	}
	return all[i]
}

// fileOf is a file with these anchors, as it is read.
func fileOf(path string, anchors ...anchor.Anchor) file {
	var content []byte
	for _, a := range anchors {
		content = append(content, a.PEM()...)
	}
	return file{path: path, found: scan(content, false), content: content, mode: anchorMode}
}

func TestPlan(t *testing.T) {
	a, b, theirs, dist := newAnchor(t, "a"), newAnchor(t, "b"), newAnchor(t, "theirs"), newAnchor(t, "dist")
	const theirFile, distFile = "/usr/local/share/ca-certificates/x.crt", "/usr/share/ca-certificates/dist.crt"
	deb := layoutOf(t, "Debian")
	had := func(anchors ...anchor.Anchor) map[string]bool {
		m := map[string]bool{}
		for _, a := range anchors {
			m[a.Fingerprint] = true
		}
		return m
	}
	// good is a store in which all is in order, with a.
	good := func(change func(st *state)) state {
		st := state{
			own:     map[string]file{a.Fingerprint: fileOf(deb.ownPath(a.Fingerprint), a)},
			foreign: []file{fileOf(distFile, dist)},
			bundle:  fileOf("", dist, a).found,
			hashed:  true, linked: map[string]bool{a.Fingerprint: true, dist.Fingerprint: true},
		}
		change(&st)
		return st
	}
	without := func(st *state) { st.own, st.bundle = map[string]file{}, fileOf("", dist).found }
	for _, tt := range []struct {
		name    string
		layout  string // Debian
		state   state
		anchors []anchor.Anchor
		had     map[string]bool
		changes string // + or - and the anchors' names
		tool    string
		why     string
		drift   bool
		reasons []string
	}{
		{name: "in order", state: good(func(*state) {}), anchors: []anchor.Anchor{a}},
		{name: "nothing of ours, nothing wanted", state: good(without)},
		{name: "nothing wanted, and others are at work", state: good(func(st *state) {
			without(st)
			st.foreign, st.unfinished, st.danglingHashes = append(st.foreign, fileOf(theirFile, theirs)), true, []string{"x"}
		})},
		{name: "one is new", state: good(func(*state) {}), anchors: []anchor.Anchor{a, b}, changes: "+b", tool: "tool", why: "an anchor is new"},
		{name: "two are new", state: good(without), anchors: []anchor.Anchor{a, b}, changes: "+a+b", tool: "tool", why: "2 anchors are new"},
		{name: "one goes", state: good(func(*state) {}), changes: "-a", tool: "tool --fresh", why: "an anchor has to go"},
		{name: "one comes, one goes", state: good(func(*state) {}), anchors: []anchor.Anchor{b}, changes: "+b-a", tool: "tool --fresh",
			why: "an anchor is new; an anchor has to go"},
		{name: "our file was taken away", state: good(without), anchors: []anchor.Anchor{a}, had: had(a), changes: "+a", tool: "tool --fresh",
			why: "a file of ours was changed or removed", drift: true},
		{name: "our file was changed", state: good(func(st *state) { st.own[a.Fingerprint] = fileOf(deb.ownPath(a.Fingerprint), b) }),
			anchors: []anchor.Anchor{a}, changes: "+a", tool: "tool --fresh", why: "a file of ours was changed or removed", drift: true},
		{name: "a leaf is not for the store", state: good(without), anchors: []anchor.Anchor{{Cert: b.Cert, Fingerprint: b.Fingerprint, Leaf: true}}},
		{name: "theirs counts", state: good(func(st *state) {
			without(st)
			st.foreign, st.bundle = append(st.foreign, fileOf(theirFile, theirs)), fileOf("", dist, theirs).found
			st.linked[theirs.Fingerprint] = true
		}), anchors: []anchor.Anchor{theirs}},
		{name: "theirs is in a file with another", state: good(func(st *state) {
			without(st)
			st.foreign, st.bundle = append(st.foreign, fileOf(theirFile, theirs, b)), fileOf("", dist, theirs, b).found
		}), anchors: []anchor.Anchor{theirs}, changes: "+theirs", tool: "tool", why: "an anchor is new"},
		{name: "theirs was put there after ours", state: good(func(st *state) {
			st.foreign, st.bundle = append(st.foreign, fileOf(theirFile, a)), fileOf("", dist, a, a).found
		}), anchors: []anchor.Anchor{a}},
		{name: "ours goes, theirs stays", state: good(func(st *state) {
			st.foreign, st.bundle = append(st.foreign, fileOf(theirFile, a)), fileOf("", dist, a, a).found
		}), changes: "-a", tool: "tool --fresh", why: "an anchor has to go"},
		{name: "the tool has not run", state: good(func(st *state) { st.bundle = fileOf("", dist).found }), anchors: []anchor.Anchor{a},
			tool: "tool --fresh", why: "the bundle lacks an anchor"},
		{name: "the bundle lost ours", state: good(func(st *state) { st.bundle = fileOf("", dist).found }), anchors: []anchor.Anchor{a}, had: had(a),
			tool: "tool --fresh", why: "the bundle lacks an anchor", drift: true},
		{name: "the bundle lost theirs", state: good(func(st *state) { st.bundle = fileOf("", a).found }), anchors: []anchor.Anchor{a}, had: had(a),
			tool: "tool --fresh", why: "the bundle lacks a certificate of others", drift: true},
		{name: "the bundle is doubled", state: good(func(st *state) { st.bundle = fileOf("", a, dist, a, dist).found }), anchors: []anchor.Anchor{a}, had: had(a),
			tool: "tool --fresh", why: "the bundle has 2 certificates twice", drift: true},
		{name: "the bundle has one that somebody appended", state: good(func(st *state) { st.bundle = fileOf("", a, dist, b).found }), anchors: []anchor.Anchor{a}},
		{name: "a removal was not finished", state: good(func(st *state) { st.own, st.older = map[string]file{}, true }),
			tool: "tool --fresh", why: "the bundle is older than the last change of the anchors"},
		{name: "the directory is newer, and all is in order", state: good(func(st *state) { st.older = true }), anchors: []anchor.Anchor{a}},
		{name: "no hash link", state: good(func(st *state) { delete(st.linked, a.Fingerprint) }), anchors: []anchor.Anchor{a}, had: had(a),
			tool: "tool --fresh", why: "an anchor has no hash link", drift: true},
		{name: "no hash links at all", state: good(func(st *state) { st.hashed, st.linked = false, nil }), anchors: []anchor.Anchor{a}, had: had(a)},
		{name: "a killed run", state: good(func(st *state) { st.unfinished = true }), anchors: []anchor.Anchor{a}, had: had(a),
			tool: "tool --fresh", why: "a run of the tool was killed", drift: true},
		{name: "links of ours to nothing", state: good(func(st *state) { without(st); st.dangling = []string{"x", "y"} }),
			tool: "tool --fresh", why: "2 links to files of ours lead to nothing"},
		{name: "the directory is not safe", state: good(func(st *state) { st.unsafe = "it is owned by user 7" }), anchors: []anchor.Anchor{a, b},
			reasons: []string{"unsafe_directory"}},
		{name: "our file is not safe", state: good(func(st *state) {
			f := st.own[a.Fingerprint]
			f.unsafe = "it is owned by user 7"
			st.own[a.Fingerprint] = f
		}), anchors: []anchor.Anchor{a}, reasons: []string{"unsafe_file"}},
		{name: "foreign junk", state: good(func(st *state) {
			st.foreign = append(st.foreign, file{path: "/junk.crt"}, file{path: "/key.crt", found: found{key: true}})
			st.bundle.key = true
		}), anchors: []anchor.Anchor{a}, reasons: []string{"foreign_no_certificate", "foreign_private_key"}},
		{name: "a key in the bundle alone", state: good(func(st *state) { st.bundle.key = true }), anchors: []anchor.Anchor{a}, reasons: []string{"bundle_private_key"}},
		// p11-kit's bundle has certificates that are nowhere else in files.
		{name: "RHEL in order", layout: "RHEL", state: good(func(st *state) { st.foreign, st.hashed = nil, false }), anchors: []anchor.Anchor{a}},
		{name: "RHEL, one goes", layout: "RHEL", state: good(func(st *state) { st.foreign, st.hashed = nil, false }), changes: "-a", tool: "tool extract", why: "an anchor has to go"},
		{name: "RHEL, a removal was not finished", layout: "RHEL", state: good(func(st *state) { st.own, st.foreign, st.hashed, st.older = nil, nil, false, true }),
			tool: "tool extract", why: "the bundle is older than the last change of the anchors"},
		{name: "SUSE, one is new", layout: "SUSE", state: good(without), anchors: []anchor.Anchor{a}, changes: "+a", tool: "tool", why: "an anchor is new"},
		{name: "SUSE, the bundle lost ours", layout: "SUSE", state: good(func(st *state) { st.bundle = fileOf("", dist).found }), anchors: []anchor.Anchor{a}, had: had(a),
			tool: "tool --fresh", why: "the bundle lacks an anchor", drift: true},
		{name: "Arch, one is new", layout: "Arch", state: good(without), anchors: []anchor.Anchor{a}, changes: "+a", tool: "tool extract-compat", why: "an anchor is new"},
		{name: "Flatcar, one goes", layout: "Flatcar", state: good(func(*state) {}), changes: "-a", tool: "tool", why: "an anchor has to go"},
		{name: "Garden Linux, one goes", layout: "Garden Linux", state: good(func(*state) {}), changes: "-a",
			tool: "tool --fresh --localcertsdir /var/lib/ca-certificates-local", why: "an anchor has to go"},
		{name: "Garden Linux, with anchors where the tool would not look", layout: "Garden Linux", state: good(func(st *state) {
			st.besides, st.bundle = []file{fileOf("/usr/local/share/ca-certificates/x.crt", theirs)}, fileOf("", dist, a, theirs).found
		}), reasons: []string{"anchors_elsewhere"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := deb
			if tt.layout != "" {
				l = layoutOf(t, tt.layout)
			}
			p := l.plan(tt.state, "tool", tt.anchors, tt.had)
			var changes strings.Builder
			for _, c := range p.Changes {
				sign, fp := "+", c.Fingerprints[0]
				if c.Content == nil {
					sign = "-"
				}
				for name, an := range map[string]anchor.Anchor{"a": a, "b": b, "theirs": theirs, "dist": dist} {
					if an.Fingerprint == fp {
						changes.WriteString(sign + name)
						if sign == "+" && (c.Path != l.ownPath(fp) || string(c.Content) != string(an.PEM())) {
							t.Errorf("%s is written to %s", name, c.Path)
						}
					}
				}
			}
			type result struct {
				Changes, Tool, Why string
				Drift              bool
				Reasons            []string
			}
			want := result{tt.changes, tt.tool, tt.why, tt.drift, tt.reasons}
			got := result{changes.String(), strings.Join(p.Tool, " "), p.Why, p.Drift, reasons(p)}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
