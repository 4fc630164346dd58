package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSnapshot proves that every change of a file is seen, and reading is none.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	b := boot(t, ForTest(t), BoxConfig{Setup: `
mkdir -p /srv/d/e
echo one >/srv/d/e/file
ln -s file /srv/d/e/link
ln -s /nowhere /srv/d/dangling
mkfifo /srv/d/fifo
`})
	snapshot := func(paths ...string) map[string]FileState {
		t.Helper()
		s, err := b.Snapshot(paths...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := snapshot("/srv", "srv/missing", "/etc/hostname")
	var names []string
	for _, name := range []string{"/etc/hostname", "/srv", "/srv/d", "/srv/d/dangling", "/srv/d/e", "/srv/d/e/file", "/srv/d/e/link", "/srv/d/fifo"} {
		if _, ok := before[name]; ok {
			names = append(names, name)
		}
	}
	if len(before) != 8 || len(names) != 8 {
		t.Errorf("seen: %v", before)
	}
	if got := before["/srv/d/e/file"]; got.Size != 4 || got.SHA256 != "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806" || got.Mode != 0o644 {
		t.Errorf("the file is %+v", got)
	}
	runInBox(t, b, "cat", "/srv/d/e/file")
	if diff := cmp.Diff(before, snapshot("/srv", "/etc/hostname")); diff != "" {
		t.Errorf("reading changed (-before +after):\n%s", diff)
	}
	last := before
	for _, change := range []string{
		"printf 'two\\n' >/srv/d/e/file",
		"chmod 600 /srv/d/e/file",
		"chown 1:0 /srv/d/e/file",
		"chgrp 1 /srv/d",
		"ln -sfn other /srv/d/e/link",
		"touch /srv/d/e/new",
		"rm /srv/d/fifo",
	} {
		runInBox(t, b, "sh", "-c", change)
		now := snapshot("/srv", "/etc/hostname")
		if cmp.Equal(last, now) {
			t.Errorf("%s is not seen", change)
		}
		last = now
	}
	if n := len(snapshot("/etc")); n < 300 {
		t.Errorf("/etc has %d files", n)
	}
	if _, err := b.Snapshot("/srv/../../etc/hostname"); err != nil {
		t.Errorf("a path that leaves and comes back: %v", err)
	}
	runInBox(t, b, "ln", "-s", "/etc", "/srv/out")
	if _, err := b.Snapshot("/srv/out/hostname"); err == nil {
		t.Error("an absolute link on the way leads to the machine's files")
	}
}
