package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nodestead/nodestead/internal/lab"
)

// helpWith is what a helper process does to a root.
func helpWith(h *Host, what string, args []string) error {
	switch what {
	case "write":
		_, err := h.WriteFile(args[0], []byte(args[1]), 0o644)
		return err
	case "mkdir":
		_, err := h.MkdirOwn(args[0])
		return err
	case "remove":
		return h.Remove(args[0])
	case "lock":
		return helpLock(h, args[0])
	case "tool":
		return h.Tool(background(), args[0], args[1:])
	}
	return fmt.Errorf("what is %q", what)
}

// TestWriteFile proves that a file is what was asked for in spite of the umask,
// and that it is left alone when it is already.
func TestWriteFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "usr/share/", "usr/local -> /usr/share", "etc/x/hosts.toml", "0664 etc/x/foreign.crt")
	h := open(t, root)
	var steps []string
	h.OnStep(func(step string) { steps = append(steps, step) })

	all := []string{"temporary file created", "temporary file written", "temporary file synced", "renamed", "directory synced"}
	for _, test := range []struct {
		why     string
		content string
		mode    fs.FileMode
		changed bool
	}{
		{"new", "one", 0o644, true},
		{"the same", "one", 0o644, false},
		{"another content of the same size", "two", 0o644, true},
		{"longer", "three", 0o644, true},
		{"another mode", "three", 0o600, true},
		{"the same again", "three", 0o600, false},
		{"empty", "", 0o444, true},
		{"still empty", "", 0o444, false},
	} {
		steps = nil
		changed, err := h.WriteFile("/usr/local/a.crt", []byte(test.content), test.mode)
		if err != nil || changed != test.changed {
			t.Errorf("%s: changed %v, %v", test.why, changed, err)
		}
		var want []string
		if test.changed {
			want = all
		}
		if diff := cmp.Diff(want, steps); diff != "" {
			t.Errorf("%s: steps (-want +got):\n%s", test.why, diff)
		}
		is, err := os.ReadFile(filepath.Join(root, "usr/share/a.crt"))
		must(t, err)
		fi, err := os.Lstat(filepath.Join(root, "usr/share/a.crt"))
		must(t, err)
		if string(is) != test.content || fi.Mode() != test.mode {
			t.Errorf("%s: %q, %v", test.why, is, fi.Mode())
		}
	}
	if _, err := h.WriteFile("/usr/none/a.crt", nil, 0o644); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its directory: %v", err)
	}
	if _, err := h.WriteFile("/", nil, 0o644); err == nil {
		t.Error("the root was written")
	}

	// A helper process has a umask that lets nobody else read.
	if killed(t, helper(t, root, 0, "write", "/usr/share/b.crt", "b")) || killed(t, helper(t, root, 0, "mkdir", "/usr/b/c")) {
		t.Fatal("a helper was killed")
	}
	for name, want := range map[string]fs.FileMode{"usr/share/b.crt": 0o644, "usr/b": fs.ModeDir | 0o755, "usr/b/c": fs.ModeDir | 0o755} {
		if fi, err := os.Lstat(filepath.Join(root, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, fi, err, want)
		}
	}
}

// TestTraps plants what must not be written to or through. Nothing may change,
// inside the root or out of it, and the error says where it is.
func TestTraps(t *testing.T) {
	t.Parallel()
	const write, mkdir, remove, removeDir = "write", "make directory", "remove", "remove directory"
	for _, test := range []struct {
		what, name string
		plant      []string
		chown      string // is given to another user
		path       string // that is unsafe
	}{
		{what: write, name: "/d/x", plant: []string{"0777 d/"}, path: "/d"},
		{what: write, name: "/d/x", plant: []string{"1777 d/"}, path: "/d"},
		{what: write, name: "/d/x", plant: []string{"0775 d/"}, path: "/d"},
		{what: write, name: "/a/b/x", plant: []string{"0777 a/", "a/b/"}, path: "/a"},
		{what: write, name: "/d/x", plant: []string{"d -> t", "0777 t/"}, path: "/t"},
		{what: write, name: "/d/x", plant: []string{"d -> /t/l", "t/l -> ../a", "a/", "1777 t/"}, path: "/t"},
		{what: write, name: "/d/x", plant: []string{"0777 ./", "d/"}, path: "/"},
		{what: write, name: "/d/x", plant: []string{"d/x|"}, path: "/d/x"},
		{what: write, name: "/d/x", plant: []string{"d/x/"}, path: "/d/x"},
		{what: write, name: "/d/x", plant: []string{"0666 d/x"}, path: "/d/x"},
		{what: write, name: "/d/x", plant: []string{"0664 d/x"}, path: "/d/x"},
		{what: write, name: "/l/x", plant: []string{"d/x|", "l -> /d"}, path: "/d/x"},
		{what: write, name: "/d/x", plant: []string{"d/x"}, chown: "d/x", path: "/d/x"},
		{what: write, name: "/d/x", plant: []string{"d/x"}, chown: "d", path: "/d"},
		{what: write, name: "/d/e/x", plant: []string{"d/e/x"}, chown: "d", path: "/d"},
		{what: mkdir, name: "/d/x", plant: []string{"0777 d/"}, path: "/d"},
		{what: mkdir, name: "/d/x/y/z", plant: []string{"1777 d/"}, path: "/d"},
		{what: mkdir, name: "/d/x", plant: []string{"0777 d/x/"}, path: "/d/x"},
		{what: mkdir, name: "/d/x", plant: []string{"1775 d/x/"}, path: "/d/x"},
		{what: mkdir, name: "/d/x", plant: []string{"d/x -> ../t", "t/"}, path: "/d/x"},
		{what: mkdir, name: "/d/x", plant: []string{"d/x -> none"}, path: "/d/x"},
		{what: mkdir, name: "/d/x", plant: []string{"d/x"}, path: "/d/x"},
		{what: mkdir, name: "/d/x", plant: []string{"d/x|"}, path: "/d/x"},
		{what: mkdir, name: "/d/x", plant: []string{"d/x/"}, chown: "d/x", path: "/d/x"},
		{what: mkdir, name: "/d/x/y", plant: []string{"d/x/"}, chown: "d/x", path: "/d/x"},
		{what: remove, name: "/d/x", plant: []string{"0777 d/", "d/x"}, path: "/d"},
		{what: remove, name: "/d/x", plant: []string{"d/x/"}, path: "/d/x"},
		{what: remove, name: "/d/x", plant: []string{"d/x|"}, path: "/d/x"},
		{what: remove, name: "/d/x", plant: []string{"d/x"}, chown: "d", path: "/d"},
		{what: removeDir, name: "/d/x", plant: []string{"0777 d/", "d/x/"}, path: "/d"},
		{what: removeDir, name: "/d/x", plant: []string{"d/x"}, path: "/d/x"},
		{what: removeDir, name: "/d/x", plant: []string{"d/x -> ../t", "t/"}, path: "/d/x"},
	} {
		t.Run(fmt.Sprint(test.what, " ", test.name, " ", test.plant, " ", test.chown), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			root := filepath.Join(dir, "root")
			plant(t, root, test.plant...)
			if test.chown != "" {
				needRoot(t)
				must(t, os.Lchown(filepath.Join(root, test.chown), 4711, -1))
			}
			before := snapshot(t, dir)
			h := open(t, root)
			var err error
			var did bool
			switch test.what {
			case write:
				did, err = h.WriteFile(test.name, []byte("new"), 0o644)
			case mkdir:
				did, err = h.MkdirOwn(test.name)
			case remove:
				err = h.Remove(test.name)
			case removeDir:
				err = h.RemoveDir(test.name)
			}
			if did || !errors.Is(err, ErrUnsafe) || !says(err, test.what) || !strings.Contains(err.Error()+" ", test.path+" ") {
				t.Errorf("did %v, %v", did, err)
			}
			if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestReplacesLinks proves that a link where our file must be is replaced, and
// what it leads to stays as it is.
func TestReplacesLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	plant(t, dir, "outside/secret")
	targets := []string{"/etc/passwd", "passwd", "../etc/passwd", "none", dir + "/outside/secret", "../../outside/secret", ".", "/etc"}
	plant(t, root, "etc/passwd")
	want := snapshot(t, dir)
	for i, target := range targets {
		plant(t, root, fmt.Sprintf("etc/%d -> %s", i, target), fmt.Sprintf("etc/gone%d -> %s", i, target))
	}
	h := open(t, root)
	for i := range targets {
		name := fmt.Sprintf("/etc/%d", i)
		changed, err := h.WriteFile(name, []byte("new"), 0o644)
		if err != nil || !changed {
			t.Errorf("%s: changed %v, %v", name, changed, err)
		}
		want["root"+name] = fmt.Sprintf("-rw-r--r-- %d new", os.Geteuid())
		must(t, h.Remove(fmt.Sprintf("/etc/gone%d", i)))
	}
	if diff := cmp.Diff(want, snapshot(t, dir)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMkdirOwn(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "etc/docker -> /srv/docker", "srv/docker/", "0700 srv/docker/private/")
	h := open(t, root)
	for _, test := range []struct {
		name string
		made bool
	}{
		{"/etc/docker/certs.d/registry:5000", true},
		{"/etc/docker/certs.d/registry:5000", false},
		{"/etc/docker/certs.d", false},
		{"/etc/docker/private", false},
		{"/etc/docker/certs.d/other", true},
	} {
		made, err := h.MkdirOwn(test.name)
		if err != nil || made != test.made {
			t.Errorf("%s: made %v, %v", test.name, made, err)
		}
	}
	dir := fmt.Sprintf("drwxr-xr-x %d", os.Geteuid())
	want := map[string]string{
		".": dir, "etc": dir, "srv": dir, "srv/docker": dir,
		"etc/docker":                       fmt.Sprintf("Lrwxrwxrwx %d /srv/docker", os.Geteuid()),
		"srv/docker/private":               fmt.Sprintf("drwx------ %d", os.Geteuid()),
		"srv/docker/certs.d":               dir,
		"srv/docker/certs.d/registry:5000": dir,
		"srv/docker/certs.d/other":         dir,
	}
	if diff := cmp.Diff(want, snapshot(t, root)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "etc/x/a", "etc/x/b", "etc/empty/", "var -> etc")
	h := open(t, root)
	for _, name := range []string{"/var/x/a", "/var/x/a", "/none/a", "/none/x/a"} {
		if err := h.Remove(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"/var/x", "/var/empty", "/var/empty", "/none/x/a"} {
		if err := h.RemoveDir(name); err != nil {
			t.Error(err)
		}
	}
	got := snapshot(t, root)
	for name, want := range map[string]bool{"etc/x/a": false, "etc/x/b": true, "etc/x": true, "etc/empty": false, "var": true} {
		if _, is := got[name]; is != want {
			t.Errorf("%s is there: %v", name, is)
		}
	}
}

// TestReaders looks at a file all the time while it is written: it is always one
// or the other, and no other name that counts is ever seen.
func TestReaders(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	h := open(t, root)
	contents := [][]byte{bytes.Repeat([]byte("one "), 50_000), bytes.Repeat([]byte("the other "), 70_000)}
	_, err := h.WriteFile("a.crt", contents[0], 0o644)
	must(t, err)

	var readers sync.WaitGroup
	stop := make(chan struct{})
	var seen [2]atomic.Bool
	readers.Go(func() {
		for {
			is, err := os.ReadFile(filepath.Join(root, "a.crt"))
			one, other := bytes.Equal(is, contents[0]), bytes.Equal(is, contents[1])
			if err != nil || !one && !other {
				t.Errorf("%d bytes, %v", len(is), err)
				return
			}
			if one {
				seen[0].Store(true)
			} else {
				seen[1].Store(true)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	readers.Go(func() {
		for {
			entries, err := os.ReadDir(root)
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range entries {
				if name := e.Name(); name != "a.crt" && (name[0] != '.' || strings.HasSuffix(name, ".crt") || strings.HasSuffix(name, ".toml")) {
					t.Errorf("%s is to be seen", name)
					return
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	// A hundred times, and until the reader had its turn with both.
	i := 0
	err = lab.Until(t.Context(), time.Minute, func() error {
		for range 100 {
			i++
			if _, err := h.WriteFile("a.crt", contents[i%2], 0o644); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			return nil
		}
		if !seen[0].Load() || !seen[1].Load() {
			return fmt.Errorf("after %d changes the reader has seen one of them: %v, the other: %v", i, seen[0].Load(), seen[1].Load())
		}
		return nil
	})
	close(stop)
	readers.Wait()
	if err != nil {
		t.Error(err)
	}
}

// TestWriters has several agents write into one directory, without a lock: none
// takes another's temporary file for that of a dead one.
func TestWriters(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	var writers sync.WaitGroup
	for i := range 4 {
		h := open(t, root)
		writers.Go(func() {
			for j := range 50 {
				if _, err := h.WriteFile("a", bytes.Repeat(fmt.Append(nil, i, j), 1000), 0o644); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	is, err := os.ReadFile(filepath.Join(root, "a"))
	must(t, err)
	if len(is)%1000 != 0 || !bytes.Equal(is, bytes.Repeat(is[:len(is)/1000], 1000)) {
		t.Errorf("mixed: %d bytes", len(is))
	}
	if all := snapshot(t, root); len(all) != 2 {
		t.Errorf("left: %v", all)
	}
}

// TestKilled kills a writer at each of its steps: the file is the old or the new
// one, and the next change leaves nothing of the dead one's.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"write", "remove", "remove directory"} {
		steps := 0
		for n := 1; ; n++ {
			dir := t.TempDir()
			plant(t, dir, "d/")
			h := open(t, dir)
			_, err := h.WriteFile("/d/a", []byte("old"), 0o644)
			must(t, err)
			if !killed(t, helper(t, dir, n, "write", "/d/a", "new")) {
				break
			}
			steps++
			is, err := os.ReadFile(filepath.Join(dir, "d/a"))
			if err != nil || string(is) != "old" && string(is) != "new" {
				t.Errorf("killed at step %d: %q, %v", n, is, err)
			}
			left := len(snapshot(t, dir)) - 3
			if want := n <= 3; (left == 1) != want || left > 1 {
				t.Errorf("killed at step %d: %d files are left", n, left)
			}
			switch next {
			case "write":
				_, err = h.WriteFile("/d/b", []byte("b"), 0o644)
			case "remove":
				err = h.Remove("/d/b")
			case "remove directory":
				err = h.RemoveDir("/d")
			}
			must(t, err)
			for name := range snapshot(t, dir) {
				if strings.Contains(name, tempPrefix) {
					t.Errorf("killed at step %d, then %s: %s is left", n, next, name)
				}
			}
		}
		if steps != 5 {
			t.Errorf("%d steps, want 5", steps)
		}
	}
	for n := 1; ; n++ {
		dir := t.TempDir()
		plant(t, dir, "a")
		if !killed(t, helper(t, dir, n, "remove", "/a")) {
			if n != 3 {
				t.Errorf("a removal has %d steps", n-1)
			}
			break
		}
		must(t, open(t, dir).Remove("/a"))
	}
	for n := 1; ; n++ {
		dir := t.TempDir()
		if !killed(t, helper(t, dir, n, "mkdir", "/a/b")) {
			if n != 3 {
				t.Errorf("two directories have %d steps", n-1)
			}
			break
		}
		_, err := open(t, dir).MkdirOwn("/a/b")
		must(t, err)
	}
}

// TestForeignTemps leaves alone what only looks like ours.
func TestForeignTemps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plant(t, dir, ".nodestead-a", "nodestead-a.tmp", "a.tmp", ".nodestead-l.tmp -> a.tmp", ".nodestead-f.tmp|", ".nodestead-d.tmp/")
	want := snapshot(t, dir)
	plant(t, dir, ".nodestead-dead.tmp")
	_, err := open(t, dir).WriteFile("new", nil, 0o644)
	must(t, err)
	want["new"] = fmt.Sprintf("-rw-r--r-- %d", os.Geteuid())
	if diff := cmp.Diff(want, snapshot(t, dir)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// waitFor waits until ok returns nil.
func waitFor(t *testing.T, ok func() error) {
	t.Helper()
	if err := lab.Until(t.Context(), 10*time.Second, ok); err != nil {
		t.Fatal(err)
	}
}
