package lab

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInstall proves, with a machine's apt-get and dpkg-query played by scripts,
// that only what is missing is installed, and the package lists are fetched
// only when it does not work without.
func TestInstall(t *testing.T) {
	for _, test := range []struct {
		name      string
		lists     bool
		installed []string
		want      []string
		err       string
	}{
		{"nothing missing", false, []string{"gcc", "musl-tools"}, nil, ""},
		{"one missing", true, []string{"gcc"}, []string{"install musl-tools"}, ""},
		{"no lists", false, nil, []string{"install gcc musl-tools", "update", "install gcc musl-tools"}, ""},
		{"not to be had", true, []string{"gcc", "unknown"}, []string{"install musl-tools", "update", "install musl-tools"}, "no such package"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", dir+":/usr/bin:/bin")
			t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
			t.Setenv("LAB_TEST", dir)
			for _, p := range test.installed {
				write(t, filepath.Join(dir, p+".installed"), "")
			}
			if test.lists {
				write(t, filepath.Join(dir, "lists"), "")
			}
			write(t, filepath.Join(dir, "dpkg-query"), `#!/bin/sh
[ -e "$LAB_TEST/$3.installed" ] || exit 1
printf installed
`)
			write(t, filepath.Join(dir, "apt-get"), `#!/bin/sh
[ "$DEBIAN_FRONTEND" = noninteractive ] || exit 3
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
case $1 in
update)
	echo update >> "$LAB_TEST/calls"; > "$LAB_TEST/lists" ;;
install)
	shift 3
	echo install "$@" >> "$LAB_TEST/calls"
	[ -e "$LAB_TEST/lists" ] && [ ! -e "$LAB_TEST/unknown.installed" ] || { echo no such package; exit 100; } ;;
esac
`)
			err := Install(t.Context(), slog.New(slog.DiscardHandler), "gcc", "musl-tools")
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			var got []string
			if calls, err := os.ReadFile(filepath.Join(dir, "calls")); err == nil {
				got = strings.Split(strings.TrimSpace(string(calls)), "\n")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("calls of apt-get (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDownload proves, with the same players, that a package is unpacked, and the
// package lists are fetched only when it does not work without.
func TestDownload(t *testing.T) {
	for _, test := range []struct {
		name  string
		lists bool
		want  []string
		err   string
	}{
		{"known", true, []string{"download"}, ""},
		{"known", false, []string{"download", "update", "download"}, ""},
		{"unknown", true, []string{"download", "update", "download"}, "no such package"},
		{"nothing", true, []string{"download"}, "got []"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, to := t.TempDir(), t.TempDir()
			t.Setenv("PATH", dir+":/usr/bin:/bin")
			t.Setenv("LAB_TEST", dir)
			if test.lists {
				write(t, filepath.Join(dir, "lists"), "")
			}
			write(t, filepath.Join(dir, "apt-get"), `#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
echo "$1" >>"$LAB_TEST/calls"
case "$1 $2" in
"update ") : >"$LAB_TEST/lists" ;;
"download known") [ -e "$LAB_TEST/lists" ] && : >known_1.0_all.deb ;;
"download nothing") ;;
*) echo no such package; exit 100 ;;
esac
`)
			write(t, filepath.Join(dir, "dpkg-deb"), `#!/bin/sh
[ "$1" = --extract ] && [ -e "$2" ] && echo unpacked >"$3/file"
`)
			err := download(t.Context(), to, test.name)
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if _, missing := os.Stat(filepath.Join(to, "file")); (missing == nil) != (test.err == "") {
				t.Errorf("unpacked: %v", missing)
			}
			calls, err := os.ReadFile(filepath.Join(dir, "calls"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, strings.Fields(string(calls))); diff != "" {
				t.Errorf("calls of apt-get (-want +got):\n%s", diff)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}
