package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// BuildImage has dockerd build an image with this name from the Dockerfile of the
// checkout at root, as "make image" does. The arguments are more of those of
// docker build. There is no internet: the image that the Dockerfile builds on is made
// of what this machine has, see goImage.
func (b *Box) BuildImage(ctx context.Context, root, name string, args ...string) error {
	if err := b.buildImage(ctx, root, name, args); err != nil {
		return fmt.Errorf("build image %s: %w", name, err)
	}
	return nil
}

func (b *Box) buildImage(ctx context.Context, root, name string, args []string) error {
	if err := b.goImage(ctx, root); err != nil {
		return err
	}
	dir, err := b.Run(ctx, "mktemp", "--directory", "/srv/build-XXXXXX")
	if err != nil {
		return err
	}
	dir = strings.TrimSpace(dir)
	checkout := filepath.Join(dir, "checkout")
	err = os.CopyFS(filepath.Join(b.Root(), checkout), os.DirFS(root))
	if err == nil {
		build := []string{"env", "DOCKER_BUILDKIT=1", "docker", "build", "--progress=plain", "--tag", name}
		_, err = b.Run(ctx, append(append(build, args...), checkout)...)
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(b.Root(), dir)))
}

// ShareImages gives images of dockerd to containerd, for pods. There they have
// the same names.
func (b *Box) ShareImages(ctx context.Context, names ...string) error {
	if err := b.shareImages(ctx, names); err != nil {
		return fmt.Errorf("give images %v to containerd: %w", names, err)
	}
	return nil
}

func (b *Box) shareImages(ctx context.Context, names []string) error {
	const archive = "srv/images.tar"
	if _, err := b.Run(ctx, append([]string{"docker", "save", "--output", "/" + archive}, names...)...); err != nil {
		return err
	}
	path := filepath.Join(b.Root(), archive)
	if err := b.load(ctx, path, names); err != nil {
		return err
	}
	return os.Remove(path)
}
