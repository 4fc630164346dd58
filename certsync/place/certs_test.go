package place

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

const registry = "registry.example.org:5000"

// certsContent is our file with these anchors.
func certsContent(anchors ...anchor.Anchor) string {
	var content strings.Builder
	content.WriteString(certsHead)
	for _, a := range sorted(anchors...) {
		content.WriteString(string(a.PEM()))
	}
	return content.String()
}

func TestCerts(t *testing.T) {
	a, b := newAnchor(t, "a"), newAnchor(t, "b")
	leaf := newAnchor(t, "leaf", lab.Leaf("registry.example.org"))
	strange := newAnchor(t, "strange", lab.Leaf("other.example.org"))
	const dir, ours = "/certs.d/" + registry, "certs.d/" + registry + "/nodestead.crt"
	const port, oursPort = "certs.d/registry.example.org_5000_", "certs.d/registry.example.org_5000_/nodestead.crt"
	aPEM := string(a.PEM())
	for _, tt := range []struct {
		name     string
		runtime  string // docker
		files    map[string]string
		anchors  []anchor.Anchor
		want     map[string]string // files at the end; those that were there stay
		gone     []string          // but these
		why      string
		drift    bool
		problems []string
		blocked  bool
	}{
		{name: "nothing", files: map[string]string{"etc/": ""}},
		{name: "new", files: map[string]string{"etc/": ""}, anchors: []anchor.Anchor{b, a},
			want: map[string]string{ours: certsContent(a, b)}, why: "our file is not there"},
		{name: "leaves", anchors: []anchor.Anchor{leaf, strange, a}, want: map[string]string{ours: certsContent(a, leaf)}, why: "our file is not there"},
		{name: "in order", files: map[string]string{ours: certsContent(a)}, anchors: []anchor.Anchor{a}},
		{name: "another anchor", files: map[string]string{ours: certsContent(a)}, anchors: []anchor.Anchor{a, b},
			want: map[string]string{ours: certsContent(a, b)}, why: "our file is another one"},
		{name: "changed by somebody", files: map[string]string{ours: aPEM}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is another one", drift: true},
		{name: "a link in our place", files: map[string]string{ours: "->/etc/passwd", "etc/passwd": "root\n"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is another one"},
		{name: "a link to the very content in our place", files: map[string]string{ours: "->/real.crt", "real.crt": certsContent(a)}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is another one"},
		{name: "all goes", files: map[string]string{ours: certsContent(a), "certs.d/other:1/x.crt": aPEM}, gone: []string{ours}, why: "our file has to go"},
		{name: "ours goes, theirs stays", files: map[string]string{ours: certsContent(a), dir + "/client.cert": "x", dir + "/client.key": "y"},
			gone: []string{ours}, why: "our file has to go"},
		{name: "theirs counts", files: map[string]string{dir + "/ca.crt": "their words\n" + string(b.PEM()) + aPEM}, anchors: []anchor.Anchor{a}},
		{name: "theirs counts, and ours has the rest", files: map[string]string{dir + "/ca.crt": aPEM}, anchors: []anchor.Anchor{a, b},
			want: map[string]string{ours: certsContent(b)}, why: "our file is not there"},
		{name: "theirs came after ours", files: map[string]string{dir + "/ca.crt": aPEM, ours: certsContent(a)}, anchors: []anchor.Anchor{a},
			gone: []string{ours}, why: "others have put the anchors there"},
		{name: "names that do not count", files: map[string]string{dir + "/ca.pem": aPEM, dir + "/ca.crt.bak": aPEM, dir + "/crt": aPEM}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "the directory is a link", files: map[string]string{dir: "->/real", "real/ca.cert": "x", "real/ca.key": "x"}, anchors: []anchor.Anchor{a},
			problems: []string{"unsafe_directory"}, blocked: true},
		{name: "the directory is a link to where theirs is", files: map[string]string{dir: "->/real", "real/ca.crt": aPEM}, anchors: []anchor.Anchor{a}},
		{name: "the directory is a link, nothing is ours there", files: map[string]string{dir: "->/real", "real/nodestead.crt": aPEM}},
		{name: "a link to a default would be hidden", runtime: "containerd", files: map[string]string{"certs.d/_default": "->/real", "real/hosts.toml": "x = 1\n"},
			anchors: []anchor.Anchor{a}, problems: []string{"would_be_hidden"}, blocked: true},
		{name: "no directory in its place", files: map[string]string{dir: "a file\n"}, anchors: []anchor.Anchor{a}, problems: []string{"unsafe_directory"}, blocked: true},

		// What makes the daemon refuse every pull.
		{name: "junk in docker", files: map[string]string{dir + "/junk.crt": "junk"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "junk in containerd", runtime: "containerd", files: map[string]string{dir + "/junk.crt": "junk"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there", problems: []string{"foreign_no_certificate"}},
		{name: "a link to nothing", files: map[string]string{dir + "/x.crt": "->nothing"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there", problems: []string{"foreign_unreadable"}},
		{name: "a client certificate without its key", files: map[string]string{dir + "/client.cert": "x"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there", problems: []string{"foreign_client_key_missing"}},
		{name: "a client certificate without its key in containerd", runtime: "containerd", files: map[string]string{dir + "/client.cert": "x"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},

		// hosts.toml
		{name: "a hosts.toml of others", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "server = \"https://mirror\"\n[host]\n"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there", problems: []string{"foreign_hosts_toml"}, blocked: true},
		{name: "it switches their .crt off, too", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "server = \"https://mirror\"\n[host]\n", dir + "/ca.crt": aPEM},
			anchors: []anchor.Anchor{a}, want: map[string]string{ours: certsContent(a)}, why: "our file is not there", problems: []string{"foreign_hosts_toml"}, blocked: true},
		{name: "it names ours", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "[host.\"https://mirror\"]\nca = [\"x.pem\", \"nodestead.crt\"]\n"},
			anchors: []anchor.Anchor{a}, want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "it names ours by its path, and theirs", runtime: "containerd", files: map[string]string{
			dir + "/hosts.toml": "ca = [\"" + dir + "/nodestead.crt\", \"/etc/ca.pem\"]\n[host]\n", "etc/ca.pem": aPEM},
			anchors: []anchor.Anchor{a}, want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "it names a file with the anchor", runtime: "containerd", files: map[string]string{
			dir + "/hosts.toml": "ca = \"../../etc/ca.pem\"\n[host]\n", "etc/ca.pem": aPEM}, anchors: []anchor.Anchor{a}},
		{name: "an empty one does not count", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "", dir + "/ca.crt": aPEM}, anchors: []anchor.Anchor{a}},
		{name: "a broken one does not count", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "ca = [", dir + "/ca.crt": aPEM}, anchors: []anchor.Anchor{a},
			problems: []string{"broken_hosts_toml"}},
		{name: "one without hosts counts for some", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "server = \"x\"\n", dir + "/ca.crt": aPEM},
			anchors: []anchor.Anchor{a}, want: map[string]string{ours: certsContent(a)}, why: "our file is not there", problems: []string{"ambiguous_hosts_toml"}},
		{name: "one without hosts that names what is there", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "ca = \"ca.crt\"\n", dir + "/ca.crt": aPEM},
			anchors: []anchor.Anchor{a}},
		{name: "one without hosts that names ours", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "ca = \"nodestead.crt\"\n", dir + "/ca.crt": aPEM},
			anchors: []anchor.Anchor{a}, want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "one with no table of hosts is broken", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "host = 1\n", dir + "/ca.crt": aPEM},
			anchors: []anchor.Anchor{a}, problems: []string{"broken_hosts_toml"}},
		{name: "CRI-O knows none", runtime: "crio", files: map[string]string{dir + "/hosts.toml": "server = \"x\"\n", dir + "/ca.crt": aPEM}, anchors: []anchor.Anchor{a}},
		{name: "ours goes, and it is named", runtime: "containerd", files: map[string]string{dir + "/hosts.toml": "ca = \"nodestead.crt\"\n", ours: certsContent(a)},
			gone: []string{ours}, why: "our file has to go", problems: []string{"hosts_toml_needs_us"}},

		// The directories that are read instead.
		{name: "containerd reads _port_ first", runtime: "containerd", files: map[string]string{port + "/client.cert": "x", ours: certsContent(a)}, anchors: []anchor.Anchor{a},
			want: map[string]string{oursPort: certsContent(a)}, gone: []string{ours}, why: "our file has to go"},
		{name: "ours goes from both", runtime: "containerd", files: map[string]string{oursPort: certsContent(a), ours: certsContent(a)},
			gone: []string{oursPort, ours}, why: "our file has to go"},
		{name: "docker does not", files: map[string]string{port + "/client.cert": "x"}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "a default would be hidden", runtime: "containerd", files: map[string]string{"certs.d/_default/hosts.toml": "server = \"x\"\n"}, anchors: []anchor.Anchor{a},
			problems: []string{"would_be_hidden"}, blocked: true},
		{name: "the default is hidden already", runtime: "containerd", files: map[string]string{"certs.d/_default/hosts.toml": "server = \"x\"\n", dir + "/": ""},
			anchors: []anchor.Anchor{a}, want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
		{name: "docker's directory would be hidden", runtime: "crio", files: map[string]string{"etc/docker/" + dir + "/ca.crt": aPEM}, anchors: []anchor.Anchor{a, b},
			problems: []string{"would_be_hidden"}, blocked: true},
		{name: "docker's directory has all", runtime: "crio", files: map[string]string{"etc/docker/" + dir + "/ca.crt": aPEM}, anchors: []anchor.Anchor{a}},
		{name: "the default has all", runtime: "containerd", files: map[string]string{"certs.d/_default/ca.crt": aPEM}, anchors: []anchor.Anchor{a}},
		{name: "docker's directory is ours alone", runtime: "crio", files: map[string]string{"etc/docker/" + ours: certsContent(a)}, anchors: []anchor.Anchor{a},
			want: map[string]string{ours: certsContent(a)}, why: "our file is not there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runtime := tt.runtime
			if runtime == "" {
				runtime = "docker"
			}
			h, root := newHost(t, tt.files)
			want := readTree(t, root)
			delete(want, "./") // an empty root
			for _, name := range tt.gone {
				delete(want, name)
			}
			delete(want, strings.TrimPrefix(dir+"/", "/"))
			maps.Copy(want, tt.want)
			c := NewCerts(h, runtime, "/certs.d", registry)
			p, err := c.Plan(tt.anchors)
			blocked := err != nil
			if p.Target != runtime+"/"+registry || p.Why != tt.why || p.Drift != tt.drift || p.Empty() != (tt.why == "") || p.Tool != nil {
				t.Errorf("plan: %+v", p)
			}
			if diff := cmp.Diff(tt.problems, reasons(p)); diff != "" {
				t.Errorf("problems (-want +got):\n%s\n%+v", diff, p.Problems)
			}
			err = c.Apply(t.Context(), p, tt.anchors)
			if (err != nil) != tt.blocked || blocked != (tt.blocked && p.Empty()) {
				t.Errorf("to apply it gives %v; it was blocked before: %v", err, blocked)
			}
			got := readTree(t, root)
			for name := range got { // what has become empty
				if strings.HasSuffix(name, "/") && tt.files[name] == "" {
					delete(got, name)
					delete(want, name)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if len(tt.gone) > 0 && len(tt.anchors) == 0 {
				for _, name := range tt.gone {
					entries, err := os.ReadDir(filepath.Join(root, filepath.Dir(name)))
					if err == nil && len(entries) == 0 {
						t.Errorf("the directory of %s is still there", name)
					}
				}
			}
			if p, err := c.Plan(tt.anchors); (err != nil) != tt.blocked || !p.Empty() {
				t.Errorf("after it there is still something to do: %+v, %v", p, err)
			}
		})
	}
}

func TestCertsBadRegistry(t *testing.T) {
	h, root := newHost(t, map[string]string{"certs.d/": ""})
	a := newAnchor(t, "a")
	for _, registry := range []string{"../..:5000", "..", "", "a/b:1"} {
		c := NewCerts(h, "docker", "/certs.d", registry)
		if _, err := c.Plan([]anchor.Anchor{a}); err == nil {
			t.Errorf("%q can be planned", registry)
		}
		if err := c.Apply(t.Context(), Plan{}, []anchor.Anchor{a}); err == nil {
			t.Errorf("%q can be applied", registry)
		}
	}
	if diff := cmp.Diff(map[string]string{"certs.d/": ""}, readTree(t, root)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestCertsUnsafe(t *testing.T) {
	a := newAnchor(t, "a")
	dir := filepath.Join("certs.d", registry)
	for _, tt := range []struct {
		name   string
		files  map[string]string
		open   string // what others may write to
		reason string
	}{
		{"directory", map[string]string{dir + "/": ""}, dir, "unsafe_directory"},
		{"file", map[string]string{dir + "/nodestead.crt": "x"}, dir + "/nodestead.crt", "unsafe_file"},
		{"certs.d", map[string]string{"certs.d/": ""}, "certs.d", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, root := newHost(t, tt.files)
			if err := os.Chmod(filepath.Join(root, tt.open), 0o777); err != nil {
				t.Fatal(err)
			}
			before := readTree(t, root)
			c := NewCerts(h, "docker", "/certs.d", registry)
			p, blocked := c.Plan([]anchor.Anchor{a})
			err := c.Apply(t.Context(), p, []anchor.Anchor{a})
			if tt.reason == "" {
				if blocked != nil || !errors.Is(err, host.ErrUnsafe) {
					t.Errorf("the errors are %v and %v", blocked, err)
				}
			} else if blocked == nil || err == nil || !p.Empty() || !slices.Contains(reasons(p), tt.reason) {
				t.Errorf("%+v, %v", p, err)
			}
			if diff := cmp.Diff(before, readTree(t, root)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
		})
	}
}

func TestListCerts(t *testing.T) {
	files := map[string]string{
		"certs.d/a.example.org:5000/nodestead.crt":   "x",
		"certs.d/b.example.org_5000_/nodestead.crt":  "x",
		"certs.d/b.example.org:5000/nodestead.crt":   "x",
		"certs.d/c.example.org/nodestead.crt":        "->nothing",
		"certs.d/foreign.example.org:1/ca.crt":       "x",
		"certs.d/_default/nodestead.crt":             "x",
		"certs.d/[fd00::1]:5000/nodestead.crt":       "x",
		"certs.d/nodestead.crt":                      "x",
		"certs.d/not a registry/nodestead.crt":       "x",
		"certs.d/d.example.org:70000/nodestead.crt":  "x",
		"certs.d/e.example.org_70000_/nodestead.crt": "x",
	}
	h, _ := newHost(t, files)
	for runtime, want := range map[string][]string{
		"docker":     {"docker/[fd00::1]:5000", "docker/a.example.org:5000", "docker/b.example.org:5000", "docker/c.example.org"},
		"containerd": {"containerd/[fd00::1]:5000", "containerd/a.example.org:5000", "containerd/b.example.org:5000", "containerd/c.example.org"},
	} {
		var got []string
		for _, target := range ListCerts(h, runtime, "/certs.d") {
			got = append(got, target.Name())
			p, err := target.Plan(nil)
			if err != nil || p.Empty() {
				t.Errorf("%s: %+v, %v", target.Name(), p, err)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", runtime, diff)
		}
	}
	if got := ListCerts(h, "docker", "/nowhere"); got != nil {
		t.Errorf("in a directory that is not there: %v", got)
	}
}
