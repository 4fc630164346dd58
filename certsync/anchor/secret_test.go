package anchor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// secret is a directory as the kubelet makes it for a Secret.
type secret struct {
	testing.TB
	dir        string
	generation int
}

func newSecret(t testing.TB, content map[string]string) *secret {
	t.Helper()
	s := &secret{TB: t, dir: t.TempDir()}
	s.update(content)
	return s
}

func (s *secret) update(content map[string]string) {
	s.Helper()
	if err := s.swap(content); err != nil {
		s.Fatal(err)
	}
}

// swap exchanges the content as the kubelet's atomic writer does: a new hidden
// directory, the link to it by rename, the links of the files, and then the old
// ones are removed.
func (s *secret) swap(content map[string]string) error {
	s.generation++
	path := func(names ...string) string { return filepath.Join(append([]string{s.dir}, names...)...) }
	data := fmt.Sprint("..2026_03_01_12_00_00.", s.generation)
	if err := os.Mkdir(path(data), 0o755); err != nil {
		return err
	}
	for name, text := range content {
		if err := os.WriteFile(path(data, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	old, err := os.Readlink(path("..data"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.Symlink(data, path("..data_tmp")), os.Rename(path("..data_tmp"), path("..data"))); err != nil {
		return err
	}
	for name := range content {
		if err := os.Symlink("..data/"+name, path(name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if _, ok := content[e.Name()]; !ok && !strings.HasPrefix(e.Name(), "..") {
			err = errors.Join(err, os.Remove(path(e.Name())))
		}
	}
	if old != "" {
		err = errors.Join(err, os.RemoveAll(path(old)))
	}
	return err
}

func TestSecret(t *testing.T) {
	a, b := newRoot(t, "a"), newRoot(t, "b")
	s := newSecret(t, map[string]string{"ca.crt": certPEM(a), "tls.key": "-----BEGIN PRIVATE KEY-----\n"})
	cfg := Config{Dirs: []string{s.dir}, Now: at(noon)}
	r := Read(cfg, nil)
	if diff := cmp.Diff(sorted(a), fingerprints(r.Anchors)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Refusal{{Source: filepath.Join(s.dir, "tls.key"), Reason: PrivateKey}}, r.Refused, ignoreDetail); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	s.update(map[string]string{"new.crt": certPEM(b)})
	r = Read(cfg, r.Memory)
	if diff := cmp.Diff(sorted(b), fingerprints(r.Anchors)); diff != "" || len(r.Refused) > 0 {
		t.Errorf("refused %v (-want +got):\n%s", r.Refused, diff)
	}
}

// A Secret that is exchanged while it is read gives the old content or the new,
// and never some of each.
func TestSecretWhileRead(t *testing.T) {
	var generations []map[string]string
	var sets [][]string
	for range 2 {
		content := make(map[string]string)
		var ders [][]byte
		for i := range 5 {
			der := newRoot(t, fmt.Sprint("root ", i))
			ders = append(ders, der)
			content[fmt.Sprint(i, ".crt")] = certPEM(der)
		}
		generations, sets = append(generations, content), append(sets, sorted(ders...))
	}
	s := newSecret(t, generations[0])
	for round := 1; round <= 100; round++ {
		done := make(chan error)
		go func() { done <- s.swap(generations[round%2]) }()
		r := Read(Config{Dirs: []string{s.dir}, Now: at(noon)}, nil)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := fingerprints(r.Anchors); !cmp.Equal(got, sets[0]) && !cmp.Equal(got, sets[1]) || len(r.Refused) > 0 {
			t.Fatalf("round %d: %d anchors, refused: %v", round, len(got), r.Refused)
		}
	}
}
