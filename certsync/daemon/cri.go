package daemon

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criAPI speaks CRI (runtime.v1) to containerd or CRI-O.
type criAPI struct{ conn *grpc.ClientConn }

func dialCRI(socket string) (*criAPI, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	return &criAPI{conn}, nil
}

// close closes the connection; there is nobody whom its error would tell anything.
func (c *criAPI) close() { _ = c.conn.Close() }

// criState is what a CRI runtime says of itself.
type criState struct {
	version string
	config  string // info["config"] of its status: JSON, if any
	off     bool   // somebody answers, who does not speak CRI
}

func (c *criAPI) state(ctx context.Context) (criState, error) {
	client := cri.NewRuntimeServiceClient(c.conn)
	version, err := client.Version(ctx, &cri.VersionRequest{})
	if status.Code(err) == codes.Unimplemented {
		return criState{off: true}, nil
	}
	if err != nil {
		return criState{}, fmt.Errorf("ask for the version: %w", err)
	}
	answer, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return criState{}, fmt.Errorf("ask for the status: %w", err)
	}
	return criState{version: version.RuntimeVersion, config: answer.Info["config"]}, nil
}

// pull asks for an image and returns the runtime's words, "" when it has pulled it.
func (c *criAPI) pull(ctx context.Context, image string) (string, error) {
	_, err := cri.NewImageServiceClient(c.conn).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	switch s := status.Convert(err); s.Code() {
	case codes.OK:
		return "", nil
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unimplemented:
		return "", err // of the socket, or of our own patience: not its words about a registry
	default:
		return s.Message(), nil
	}
}
