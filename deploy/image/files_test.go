package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file is an entry of an archive.
type file struct {
	header  *tar.Header
	content []byte
}

// export returns what a container of an image has, by name.
func (m machine) export(t *testing.T, image string) map[string]file {
	t.Helper()
	container := m.run(t, "docker", "create", image)
	files := untar(t, m.run(t, "docker", "export", container))
	m.run(t, "docker", "rm", container)
	return files
}

func untar(t *testing.T, archive string) map[string]file {
	t.Helper()
	files := make(map[string]file)
	in := tar.NewReader(strings.NewReader(archive))
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		files[path.Clean(header.Name)] = file{header, b}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkFiles proves that the image has the binary, its licence and no other file,
// and that the binary needs none.
func checkFiles(t *testing.T, files map[string]file, arch string) {
	// docker makes these in each container; they are empty.
	want := []string{
		".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "sys",
		"LICENSE", "nodestead",
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(files))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for name, f := range files {
		if name != "LICENSE" && name != "nodestead" && len(f.content) > 0 {
			t.Errorf("%s has %d bytes", name, len(f.content))
		}
	}
	if !bytes.Equal(files["LICENSE"].content, read(t, filepath.Join(root, "LICENSE"))) {
		t.Error("its licence is another one")
	}
	binary := files["nodestead"]
	if h := binary.header; h == nil || h.FileInfo().Mode() != 0o755 || h.Uid != 0 || h.Gid != 0 {
		t.Fatalf("the binary is %+v", h)
	}
	f, err := elf.NewFile(bytes.NewReader(binary.content))
	if err != nil {
		t.Fatal(err)
	}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	if f.Machine != machines[arch] {
		t.Errorf("it is for %v", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a part %v: it is not static", p.Type)
		}
	}
	if s := f.Section(".symtab"); s != nil {
		t.Error("it has a symbol table")
	}
}

// checkContext proves that docker build gets what the binary is made of, and
// nothing else of a checkout with things in it that are nobody's business.
func (m machine) checkContext(t *testing.T) {
	var want []string
	for _, pattern := range []string{"LICENSE", "go.mod", "go.sum", "*/*.go", "certsync/*/*.go", "cmd/*/*.go", "agent/page/*"} {
		names, err := fs.Glob(os.DirFS(root), pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", pattern, names, err)
		}
		want = append(want, names...)
	}
	want = slices.DeleteFunc(want, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	slices.Sort(want)

	checkout := t.TempDir()
	if err := os.CopyFS(checkout, os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		".env", "ca.key", "secret.go", "bin/nodestead", "docs/secret.go", "agent/agent.test", "cmd/nodestead/nodestead", "lookup/testdata/x.go",
	} {
		name = filepath.Join(checkout, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("secret"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(m.Root(), "srv/Dockerfile"), "FROM scratch\nCOPY . /\n")
	err := m.BuildImage(t.Context(), checkout, "localhost/context", "--file", "/srv/Dockerfile", "--output", "type=tar,dest=/srv/context.tar")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for name, f := range untar(t, string(read(t, filepath.Join(m.Root(), "srv/context.tar")))) {
		if f.header.Typeflag != tar.TypeDir {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
