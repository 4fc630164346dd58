// Package image proves the container image of nodestead: a real dockerd builds it
// from the real Dockerfile, and runs it.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	root    = "../.." // of the checkout
	version = "1.2.3-rc.1"
	commit  = "0123456789abcdef0123456789abcdef01234567"
	// maxSize is what the image may have, in bytes.
	maxSize = 40e6
)

// platforms are those that the image is made for.
var platforms = []string{"amd64", "arm64"}

// machine is a node with a dockerd that has no internet.
type machine struct {
	*lab.Box
	lab *lab.Lab
}

func boot(t *testing.T) machine {
	t.Helper()
	l := lab.ForTest(t)
	b, err := l.Boot(t.Context(), lab.BoxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	return machine{b, l}
}

// run runs a command in the box and returns what it prints, without the last line feed.
func (m machine) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// build builds an image and returns its name.
func (m machine) build(t *testing.T, tag string, args ...string) string {
	t.Helper()
	name := "nodestead/nodestead:" + tag
	args = append(args, "--build-arg", "VERSION="+version, "--build-arg", "COMMIT="+commit)
	if err := m.BuildImage(t.Context(), root, name, args...); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestImage builds the image for each architecture, and looks at it from all sides.
func TestImage(t *testing.T) {
	m := boot(t)
	images := make(map[string]string)
	files := make(map[string]map[string]file)
	for _, arch := range platforms {
		images[arch] = m.build(t, arch, "--platform", "linux/"+arch)
		files[arch] = m.export(t, images[arch])
	}
	native := images[runtime.GOARCH]

	release := ""
	t.Run("version", func(t *testing.T) {
		out := m.run(t, "docker", "run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none", native, "version")
		var ok bool
		if release, ok = strings.CutPrefix(out, "nodestead "+version+", commit "+commit+", "); !ok {
			t.Errorf("it says %q", out)
		}
		if from := "golang:" + strings.TrimPrefix(release, "go") + "-"; !strings.Contains(string(read(t, filepath.Join(root, "Dockerfile"))), from) {
			t.Errorf("the Dockerfile does not name %s…, which it was built by", from)
		}
	})
	for _, arch := range platforms {
		t.Run("config "+arch, func(t *testing.T) { checkConfig(t, m.run(t, "docker", "image", "inspect", images[arch]), arch) })
		t.Run("files "+arch, func(t *testing.T) { checkFiles(t, files[arch], arch) })
	}
	// The machine itself compiles in another directory, with other directories for
	// Go, for modules and for what is compiled.
	t.Run("same binary from a checkout", func(t *testing.T) {
		for _, arch := range platforms {
			if here, there := buildHere(t, release, arch), digest(files[arch]["nodestead"].content); here != there {
				t.Errorf("%s: the image has %s, the checkout makes %s", arch, there, here)
			}
		}
	})
	t.Run("same binary again", func(t *testing.T) {
		again := m.export(t, m.build(t, "again", "--no-cache"))
		if got, want := digest(again["nodestead"].content), digest(files[runtime.GOARCH]["nodestead"].content); got != want {
			t.Errorf("the second build makes %s, the first made %s", got, want)
		}
	})
	t.Run("context", m.checkContext)
	t.Run("make image", func(t *testing.T) { m.checkMake(t, digest(files[runtime.GOARCH]["nodestead"].content)) })
	t.Run("halves", func(t *testing.T) { m.checkHalves(t, native) })
	t.Run("nobody", func(t *testing.T) { m.checkNobody(t, native) })
	t.Run("pod", func(t *testing.T) {
		if err := m.ShareImages(t.Context(), native); err != nil {
			t.Fatal(err)
		}
		pod, err := m.RunPod(t.Context(), lab.CRIPodConfig{
			Name: "agent", Image: native, Command: []string{"/nodestead", "trust"}, Mounts: []lab.Mount{{Host: "/", Container: "/host", Follow: true}},
		})
		if err != nil {
			t.Fatal(err)
		}
		// The name and the binary are right; that it also runs shows that the node has it whole.
		if out, err := pod.Exec(t.Context(), "", "/nodestead", "version"); err != nil || !strings.HasPrefix(out, "nodestead "+version+", ") {
			t.Errorf("in the pod it says %q, %v", out, err)
		}
	})
}

// checkConfig compares what docker says of an image with what it must be.
func checkConfig(t *testing.T, inspected, arch string) {
	type config struct {
		User                  string
		Env, Entrypoint, Cmd  []string
		Volumes, ExposedPorts map[string]any
		Labels                map[string]string
	}
	type image struct {
		Architecture, Os string
		Size             int64
		Config           config
		RootFS           struct{ Layers []string }
	}
	var got []image
	if err := json.Unmarshal([]byte(inspected), &got); err != nil || len(got) != 1 {
		t.Fatalf("%v: %s", err, inspected)
	}
	if size := got[0].Size; size == 0 || size >= maxSize {
		t.Errorf("it has %d bytes, and must have less than %d", size, int(maxSize))
	}
	if n := len(got[0].RootFS.Layers); n != 1 {
		t.Errorf("it has %d layers", n)
	}
	t.Logf("%s: %d bytes", arch, got[0].Size)
	got[0].Size, got[0].RootFS.Layers = 0, nil
	want := image{Architecture: arch, Os: "linux", Config: config{
		User:       "0:0",
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, // BuildKit's own
		Entrypoint: []string{"/nodestead"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "nodestead",
			"org.opencontainers.image.description": "Explains lost DNS lookups on a Kubernetes node, and makes the node trust a private CA",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.source":      "https://github.com/nodestead/nodestead",
			"org.opencontainers.image.version":     version,
			"org.opencontainers.image.revision":    commit,
		},
	}}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// buildHere compiles the binary of the image on this machine, with the Go that the
// image was made with, and returns its digest.
func buildHere(t *testing.T, release, arch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nodestead")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.version="+version+" -X main.commit="+commit, "-o", path, "./cmd/nodestead")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "GOTOOLCHAIN="+release, "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return digest(read(t, path))
}

// checkMake proves that what "make image" runs makes the same image, with the binary
// of this digest.
func (m machine) checkMake(t *testing.T, want string) {
	if err := lab.Install(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), "make"); err != nil {
		t.Fatal(err)
	}
	const name = "localhost/by-make"
	line := exec.CommandContext(t.Context(), "make", "--no-print-directory", "--dry-run", "image", "IMAGE="+name, "VERSION="+version, "COMMIT="+commit)
	line.Dir = root
	command, err := line.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(m.Root(), "srv/checkout"), os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	m.run(t, "sh", "-euc", "cd /srv/checkout; "+string(command))
	checkConfig(t, m.run(t, "docker", "image", "inspect", name), runtime.GOARCH)
	if got := digest(m.export(t, name)["nodestead"].content); got != want {
		t.Errorf("it makes %s, and not %s:\n%s", got, want, command)
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
