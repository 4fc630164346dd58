package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxAnswer is the largest answer that is taken from a daemon.
const maxAnswer = 16 << 20

// dockerAPI asks docker's API without a version, which all dockers answer.
type dockerAPI struct{ client *http.Client }

func dialDocker(socket string) *dockerAPI {
	return &dockerAPI{client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

func (d *dockerAPI) close() { d.client.CloseIdleConnections() }

// dockerInfo are the fields of GET /info that matter.
type dockerInfo struct {
	ServerVersion      string
	LiveRestoreEnabled bool
	ContainersRunning  int
	ContainersPaused   int
}

func (d *dockerAPI) info(ctx context.Context) (dockerInfo, error) {
	var info dockerInfo
	code, err := d.read(ctx, "/info", &info)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("GET /info: status %d", code)
	}
	return info, err
}

// distribution asks docker for an image of a registry. It returns docker's
// words, "" when there is such an image.
func (d *dockerAPI) distribution(ctx context.Context, image string) (string, error) {
	var answer struct {
		Message string `json:"message"`
	}
	code, err := d.read(ctx, "/distribution/"+image+"/json", &answer)
	switch {
	case err != nil:
		return "", err
	case code == http.StatusOK:
		return "", nil
	case answer.Message == "":
		return "", fmt.Errorf("status %d without a message", code)
	default:
		return answer.Message, nil
	}
}

func (d *dockerAPI) read(ctx context.Context, path string, into any) (code int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, http.NoBody)
	if err != nil {
		return 0, err
	}
	res, err := d.client.Do(req)
	if err != nil {
		return 0, err
	}
	err = json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(into)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return res.StatusCode, fmt.Errorf("GET %s: status %d: %w", path, res.StatusCode, err)
	}
	return res.StatusCode, nil
}
