package lab

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestCached(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var builds atomic.Int32
	var all sync.WaitGroup // who wants it; a build ends when all are there
	build := func(dir string) error {
		builds.Add(1)
		all.Wait()
		return os.WriteFile(filepath.Join(dir, "thing"), nil, 0o755)
	}

	wrong := errors.New("wrong")
	_, err := cached(t.Context(), "thing", []string{"v1"}, func(dir string) error {
		return errors.Join(build(dir), wrong)
	})
	if !errors.Is(err, wrong) {
		t.Fatalf("error %v, want that of the build", err)
	}
	builds.Store(0)

	var wg sync.WaitGroup
	all.Add(5)
	for range 5 {
		wg.Go(func() {
			all.Done()
			path, err := cached(t.Context(), "thing", []string{"v1"}, build)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("5 at once built %d times", n)
	}
	path, err := cached(t.Context(), "thing", []string{"v2"}, build)
	if err != nil || builds.Load() != 2 {
		t.Errorf("another input: error %v, %d builds, want 2", err, builds.Load())
	}

	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "thing" && name != "thing.lock" {
			t.Errorf("%s is left beside what was built", name)
		}
	}
}
