package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The images of a box, which it has from the start. None can be pulled.
const (
	pauseImage = "localhost/lab/pause:1"
	// ResolversImage has the programs of the resolvers, see ClientPath. It waits forever.
	ResolversImage = "localhost/lab/resolvers:1"
)

//go:embed box/init.sh box/pause.c
var boxSources embed.FS

// Image is a container image with nothing but these files, of which each can be
// executed, and those that libc wants.
type Image struct {
	Name       string // as pods and docker have it: "localhost/lab/agent:1"
	Entrypoint []string
	// Files are what is in it: the path there, without the first slash, and the
	// path of the file on this machine.
	Files map[string]string
}

// Load gives images to containerd and, when it runs, to dockerd. They can't be
// pulled: a pod or container has them by their names.
func (b *Box) Load(ctx context.Context, images ...Image) error {
	archive, err := archiveOf(images)
	if err != nil {
		return fmt.Errorf("make images: %w", err)
	}
	var names []string
	for _, img := range images {
		names = append(names, img.Name)
	}
	file, err := os.CreateTemp(b.dir, "images-*.tar")
	if err != nil {
		return err
	}
	path := file.Name()
	_, err = file.Write(archive)
	if err = errors.Join(err, file.Close()); err == nil {
		err = b.load(ctx, path, names)
	}
	if _, inactive := b.Run(ctx, "systemctl", "--quiet", "is-active", "docker.service"); err == nil && inactive == nil {
		err = b.dockerLoad(ctx, path)
	}
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return fmt.Errorf("load images %v: %w", names, err)
	}
	return nil
}

// load loads an archive of images into containerd, which learns of them a moment
// later.
func (b *Box) load(ctx context.Context, path string, names []string) error {
	archive, err := os.Open(path)
	if err != nil {
		return err
	}
	defer archive.Close()
	if _, err := b.run(ctx, archive, "ctr", "--namespace", "k8s.io", "images", "import", "-"); err != nil {
		return err
	}
	return Until(ctx, bootTime, func() error {
		for _, name := range names {
			status, err := cri.NewImageServiceClient(b.conn).ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
			if err != nil {
				return err
			}
			if status.GetImage() == nil {
				return fmt.Errorf("no image %s", name)
			}
		}
		return nil
	})
}

// dockerLoad loads an archive of images into dockerd.
func (b *Box) dockerLoad(ctx context.Context, path string) error {
	archive, err := os.Open(path)
	if err != nil {
		return err
	}
	defer archive.Close()
	_, err = b.run(ctx, archive, "docker", "load", "--quiet")
	return err
}

// boxImages returns the path of an archive with the images of a box, and builds
// it when the cache has none.
func (l *Lab) boxImages() (string, error) {
	pause, err := l.buildPause(l.ctx)
	if err != nil {
		return "", fmt.Errorf("build pause: %w", err)
	}
	resolvers := Image{Name: ResolversImage, Entrypoint: []string{"/pause"}, Files: map[string]string{"pause": pause}}
	for _, r := range Resolvers() {
		client, err := l.Client(r)
		if err != nil {
			return "", err
		}
		resolvers.Files[ClientPath(r)[1:]] = client
		libraries, err := libraries(l.ctx, client)
		if err != nil {
			return "", fmt.Errorf("find the libraries of %s: %w", client, err)
		}
		for _, path := range libraries {
			resolvers.Files[path[1:]] = path
		}
	}
	images := []Image{
		{Name: pauseImage, Entrypoint: []string{"/pause"}, Files: map[string]string{"pause": pause}},
		resolvers,
	}
	archive, err := archiveOf(images)
	if err != nil {
		return "", fmt.Errorf("make images: %w", err)
	}
	sum := sha256.Sum256(archive)
	return cached(l.ctx, "images.tar", []string{hex.EncodeToString(sum[:])}, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "images.tar"), archive, 0o644)
	})
}

// ClientPath is where a CRIPod's containers have the program of a resolver.
func ClientPath(r Resolver) string { return "/bin/resolve-" + string(r) }

func (l *Lab) buildPause(ctx context.Context) (string, error) {
	if err := Install(ctx, l.log, "gcc", "libc6-dev", "musl-tools"); err != nil {
		return "", err
	}
	source, err := boxSources.ReadFile("box/pause.c")
	if err != nil {
		return "", err
	}
	return cached(ctx, "pause", []string{string(source), runtime.GOARCH}, func(dir string) error {
		cmd := exec.CommandContext(ctx, "musl-gcc", "-static", "-O2", "-Wall", "-Werror", "-x", "c", "-o", "pause", "-")
		cmd.Dir = dir
		cmd.Stdin = bytes.NewReader(source)
		return run(cmd)
	})
}

// libraries are the paths of the loader and of the shared libraries that a
// program needs. The loader of musl is its only library.
func libraries(ctx context.Context, program string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".interp")
	if section == nil {
		return nil, nil
	}
	b, err := section.Data()
	if err != nil {
		return nil, err
	}
	loader := strings.TrimRight(string(b), "\x00")
	out, err := exec.CommandContext(ctx, loader, "--list", program).Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list %s: %w", loader, program, err)
	}
	paths := []string{loader}
	for line := range strings.Lines(string(out)) {
		// NAME => PATH (ADDRESS); musl says of itself: libc.so => LOADER
		_, path, ok := strings.Cut(line, " => ")
		path, _, _ = strings.Cut(strings.TrimSpace(path), " ")
		if ok && filepath.IsAbs(path) && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// archiveOf makes an archive of images as "docker save" does. It is the same
// for the same images.
func archiveOf(images []Image) ([]byte, error) {
	type manifest struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var (
		archive   bytes.Buffer
		manifests []manifest
	)
	out := tar.NewWriter(&archive)
	for i, img := range images {
		layer, err := layerOf(img)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		config, err := configOf(img.Entrypoint, layer)
		if err != nil {
			return nil, err
		}
		m := manifest{fmt.Sprintf("%d.json", i), []string{img.Name}, []string{fmt.Sprintf("%d.tar", i)}}
		manifests = append(manifests, m)
		if err := errors.Join(addFile(out, m.Config, 0o644, config), addFile(out, m.Layers[0], 0o644, layer)); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(manifests)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(addFile(out, "manifest.json", 0o644, b), out.Close()); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}

// layerOf makes the only layer of an image.
func layerOf(img Image) ([]byte, error) {
	var layer bytes.Buffer
	out := tar.NewWriter(&layer)
	err := errors.Join(
		addFile(out, "etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n")),
		addFile(out, "etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n")),
	)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(img.Files)) {
		b, err := os.ReadFile(img.Files[name])
		if err != nil {
			return nil, err
		}
		if err := addFile(out, name, 0o755, b); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}

func addFile(out *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}
	if err := out.WriteHeader(header); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	if _, err := io.Copy(out, bytes.NewReader(content)); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	return nil
}
