package lab

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pull has dockerd pull an image. The error has what docker says.
func (b *Box) Pull(ctx context.Context, ref string) error {
	_, err := b.Run(ctx, "docker", "pull", "--quiet", ref)
	return err
}

// CRIPull has containerd pull an image, as kubelet does. The error has what
// containerd says.
func (b *Box) CRIPull(ctx context.Context, ref string) error {
	// After a restart its socket is there before it is.
	err := Until(ctx, bootTime, func() error { return b.podsReady(ctx) })
	if err == nil {
		_, err = cri.NewImageServiceClient(b.conn).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	}
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	return nil
}

// RunContainer runs a container with this name by dockerd that waits forever,
// and returns the pid of its first process as the box sees it.
func (b *Box) RunContainer(ctx context.Context, name string) (pid int, err error) {
	return b.DockerRun(ctx, "--name", name, pauseImage)
}

// DockerRun is "docker run --detach" with these arguments. Images are those of the
// box, those of Load and what was pulled. --privileged fails where a capability
// is missing, as CAP_SYS_RESOURCE is in many containers; an agent with the node's
// root as a volume needs none but those that docker gives.
func (b *Box) DockerRun(ctx context.Context, args ...string) (pid int, err error) {
	id, err := b.Run(ctx, append([]string{"docker", "run", "--detach"}, args...)...)
	if err != nil {
		return 0, err
	}
	return b.ContainerPid(ctx, strings.TrimSpace(id))
}

// ContainerPid is the pid, as the box sees it, of the first process of one of
// docker's containers, 0 when it does not run.
func (b *Box) ContainerPid(ctx context.Context, name string) (int, error) {
	out, err := b.Run(ctx, "docker", "inspect", "--format", "{{.State.Pid}}", name)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return 0, fmt.Errorf("pid of container %s: %w", name, err)
	}
	return pid, nil
}
