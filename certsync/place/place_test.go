package place

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newAnchor makes an anchor with a new key.
func newAnchor(t *testing.T, name string, options ...lab.CAOption) anchor.Anchor {
	t.Helper()
	ca, err := lab.NewCA(name, options...)
	if err != nil {
		t.Fatal(err)
	}
	return anchor.Anchor{Cert: ca.Cert, Fingerprint: anchor.Fingerprint(ca.Cert), Leaf: !ca.Cert.IsCA}
}

// sorted are anchors as a source gives them.
func sorted(anchors ...anchor.Anchor) []anchor.Anchor {
	slices.SortFunc(anchors, func(a, b anchor.Anchor) int { return cmp.Compare(a.Fingerprint, b.Fingerprint) })
	return anchors
}

// newHost makes a node's root from files: path → content. A path that ends in a
// slash is a directory; content that begins with -> is a link.
func newHost(t *testing.T, files map[string]string) (*host.Host, string) {
	t.Helper()
	root := t.TempDir()
	put(t, root, files)
	h, err := host.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, root
}

// put writes files below a root, see newHost. Modes are what they are, whatever
// the umask.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		dir, isDir := filepath.Dir(path), name[len(name)-1] == '/'
		if isDir {
			dir = path
		}
		err := os.MkdirAll(dir, 0o755)
		switch target, isLink := cutPrefix(content, "->"); {
		case err != nil || isDir:
		case isLink:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return s, false
	}
	return s[len(prefix):], true
}

// readTree reads all files below a directory: path → content, or -> and the target
// of a link.
func readTree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			entries, err := os.ReadDir(path)
			if len(entries) == 0 {
				files[name+"/"] = ""
			}
			return err
		case e.Type() == os.ModeSymlink:
			target, err := os.Readlink(path)
			files[name] = "->" + target
			return err
		}
		content, err := os.ReadFile(path)
		files[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// reasons are the reasons of a plan's problems.
func reasons(p Plan) []string {
	var all []string
	for _, problem := range p.Problems {
		all = append(all, problem.Reason)
	}
	return all
}
