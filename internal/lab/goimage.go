package lab

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// goImageLine is the line of a Dockerfile that names the image with Go.
var goImageLine = regexp.MustCompile(`(?m)^FROM (?:--platform=\S+ )?(golang:([0-9.]+)\S*)`)

// Where the image with Go has what it can't get from the internet.
const (
	goProxyDir = "goproxy" // the modules
	goCacheDir = "gocache" // what others wrote, compiled
)

// goImage gives dockerd the image with Go that the Dockerfile in root names. It
// is made of Go itself in that very release, a shell, and the modules that go.mod
// needs. To save minutes it also has, compiled, all that is not nodestead's own.
func (b *Box) goImage(ctx context.Context, root string) error {
	dockerfile, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		return err
	}
	m := goImageLine.FindSubmatch(dockerfile)
	if m == nil {
		return errors.New("the Dockerfile names no image of golang")
	}
	name, release := string(m[1]), "go"+string(m[2])
	if out, err := b.Run(ctx, "docker", "images", "--quiet", name); err != nil || out != "" {
		return err
	}
	if err := b.importGo(ctx, root, name, release); err != nil {
		return fmt.Errorf("make the image %s: %w", name, err)
	}
	return nil
}

func (b *Box) importGo(ctx context.Context, root, name, release string) error {
	goroot, err := goRoot(ctx, release)
	if err != nil {
		return err
	}
	parts, err := b.lab.goParts(ctx, root, goroot, release)
	if err != nil {
		return err
	}
	shell, err := b.lab.busybox(ctx)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error {
		err := writeGoImage(w, goroot, parts, shell)
		return errors.Join(err, w.Close())
	})
	g.Go(func() error {
		// As the image of that name has them, and where the rest is.
		_, err := b.run(ctx, r, "docker", "import",
			"--change", "ENV PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"--change", "ENV GOTOOLCHAIN=local", "--change", "ENV GOPATH=/go", "--change", "WORKDIR /go",
			"--change", "ENV GOPROXY=file:///"+goProxyDir, "--change", "ENV GOCACHE=/"+goCacheDir,
			"-", name)
		return errors.Join(err, r.Close()) // a writer must not wait for a reader that has ended
	})
	return g.Wait()
}

// goRoot is where this machine has Go of this release ("go1.26.8"). Go gets it by
// itself, as a module, when it is another than its own.
func goRoot(ctx context.Context, release string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOROOT")
	cmd.Dir = os.TempDir()
	cmd.Env = append(goEnv(""), "GOTOOLCHAIN="+release)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", release, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// busybox returns the path of Debian's static busybox in the cache.
func (l *Lab) busybox(ctx context.Context) (string, error) {
	const name = "busybox"
	return cached(ctx, name, []string{"busybox-static", runtime.GOARCH}, func(dir string) error {
		l.log.Info("downloading a package", "package", "busybox-static")
		if err := download(ctx, dir, "busybox-static"); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, name))
	})
}

// goParts returns the directory in the cache with the modules that the checkout
// at root needs, and what is compiled of them and of Go itself, for both
// architectures.
func (l *Lab) goParts(ctx context.Context, root, goroot, release string) (string, error) {
	const name = "go-parts"
	inputs := []string{release, runtime.GOARCH, "1"} // another one when makeGoParts makes something else
	for _, file := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			return "", err
		}
		inputs = append(inputs, string(b))
	}
	return cached(ctx, name, inputs, func(dir string) error {
		l.log.Info("compiling what nodestead is built on, for its image, which takes some minutes")
		return makeGoParts(ctx, root, filepath.Join(goroot, "bin/go"), dir, filepath.Join(dir, name))
	})
}

// makeGoParts makes the directory to, with temp for what is not kept.
func makeGoParts(ctx context.Context, root, program, temp, to string) error {
	settings, err := exec.CommandContext(ctx, program, "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	modules, proxy, _ := strings.Cut(strings.TrimSpace(string(settings)), "\n")
	modcache := filepath.Join(temp, "modules")
	goRun := func(goarch string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = root
		cmd.Env = append(goEnv(""), "GOTOOLCHAIN=local", "GOFLAGS=-modcacherw -mod=readonly", "GOMODCACHE="+modcache,
			"GOCACHE="+filepath.Join(to, goCacheDir), "GOPROXY=file://"+filepath.Join(modules, "cache/download")+","+proxy, "GOARCH="+goarch)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("go %s: %w: %s", args[0], err, tail([]byte(stderr.String())))
		}
		return string(out), nil
	}
	if _, err := goRun("", "mod", "download"); err != nil {
		return err
	}
	for _, goarch := range []string{"amd64", "arm64"} {
		const others = `{{if .Standard}}{{.ImportPath}}{{else if not .Module.Main}}{{.ImportPath}}{{end}}`
		out, err := goRun(goarch, "list", "-deps", "-f", others, "./cmd/nodestead")
		if err != nil {
			return err
		}
		packages := slices.DeleteFunc(strings.Fields(out), func(p string) bool {
			return strings.HasPrefix(p, "vendor/") || slices.Contains(strings.Split(p, "/"), "internal") // come with those that need them
		})
		if _, err := goRun(goarch, append([]string{"build", "-trimpath", "-buildvcs=false"}, packages...)...); err != nil {
			return err
		}
	}
	return os.Rename(filepath.Join(modcache, "cache/download"), filepath.Join(to, goProxyDir))
}

// writeGoImage writes the files of the image with Go as a tar archive.
func writeGoImage(w io.Writer, goroot, parts, shell string) error {
	out := tar.NewWriter(w)
	b, err := os.ReadFile(shell)
	if err != nil {
		return err
	}
	err = errors.Join(
		addFile(out, "bin/sh", 0o755, b),
		addFile(out, "etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")),
		out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		addTree(out, "usr/local/go", goroot, func(name string) bool {
			top, _, _ := strings.Cut(name, "/")
			return slices.Contains([]string{".", "bin", "pkg", "src", "lib", "VERSION", "go.env"}, top) && name != "src/cmd" && path.Base(name) != "testdata"
		}),
		addTree(out, "", parts, func(name string) bool { return path.Ext(name) != ".lock" }),
	)
	return errors.Join(err, out.Close())
}

// addTree adds the files under dir that are wanted, under a prefix. What is
// compiled must look new, or Go would throw it away.
func addTree(out *tar.Writer, prefix, dir string, wanted func(name string) bool) error {
	now := time.Now()
	source := os.DirFS(dir)
	return fs.WalkDir(source, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !wanted(name) && d.IsDir():
			return fs.SkipDir
		case !wanted(name) || !d.Type().IsRegular():
			return nil // the directories come with their files
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		header, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		*header = tar.Header{Typeflag: tar.TypeReg, Name: path.Join(prefix, name), Mode: header.Mode, Size: header.Size, ModTime: now}
		if err := out.WriteHeader(header); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
		f, err := source.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(out, f); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
		return nil
	})
}
