package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// dockerRuntime asks Docker's API (v1.24 and later), where there is no CRI.
type dockerRuntime struct {
	name   string
	client *http.Client
}

// Labels of containers that the kubelet made by dockershim or cri-dockerd.
const (
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPod       = "io.kubernetes.pod.name"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
	pauseContainer = "POD"
)

// dockerContainer are the fields of GET /containers/<id>/json that matter.
type dockerContainer struct {
	ID    string `json:"Id"`
	Name  string
	State struct {
		Pid       int
		Running   bool
		StartedAt time.Time
	}
	Config          struct{ Labels map[string]string }
	HostConfig      struct{ NetworkMode string }
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
	}
}

// dialDocker connects and asks for the version.
func dialDocker(ctx context.Context, socket string) (*dockerRuntime, error) {
	d := &dockerRuntime{client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	var version struct{ Version string }
	if err := d.read(ctx, "/version", &version); err != nil {
		return nil, errors.Join(fmt.Errorf("ask %s for its version: %w", socket, err), d.close())
	}
	d.name = fmt.Sprintf("docker %s at %s", version.Version, socket)
	return d, nil
}

func (d *dockerRuntime) String() string { return d.name }

func (d *dockerRuntime) close() error {
	d.client.CloseIdleConnections()
	return nil
}

// errNotFound: the container has ended since it was listed.
var errNotFound = errors.New("not found")

func (d *dockerRuntime) open(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := d.client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		err := fmt.Errorf("GET %s: %s", path, res.Status)
		if res.StatusCode == http.StatusNotFound {
			err = fmt.Errorf("GET %s: %w", path, errNotFound)
		}
		return nil, errors.Join(err, res.Body.Close())
	}
	return res.Body, nil
}

func (d *dockerRuntime) read(ctx context.Context, path string, into any) error {
	body, err := d.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxMessage)).Decode(into); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

func (d *dockerRuntime) sandboxes(ctx context.Context) ([]sandbox, error) {
	var running []struct {
		ID string `json:"Id"`
	}
	if err := d.read(ctx, "/containers/json", &running); err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var all []dockerContainer
	for _, r := range running {
		var c dockerContainer
		err := d.read(ctx, "/containers/"+url.PathEscape(r.ID)+"/json", &c)
		if errors.Is(err, errNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect container: %w", err)
		}
		all = append(all, c)
	}
	return dockerSandboxes(all), nil
}

// dockerSandboxes puts the containers that share one network together.
func dockerSandboxes(all []dockerContainer) []sandbox {
	byOwner := make(map[string]*sandbox)
	var order []string
	for _, c := range all {
		if _, joined := strings.CutPrefix(c.HostConfig.NetworkMode, "container:"); joined || !c.State.Running {
			continue
		}
		labels := c.Config.Labels
		s := &sandbox{
			id: c.ID, namespace: labels[labelNamespace], name: labels[labelPod], uid: labels[labelUID],
			host: c.HostConfig.NetworkMode == "host", pid: c.State.Pid, created: c.State.StartedAt,
		}
		for _, n := range c.NetworkSettings.Networks {
			for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if a, err := netip.ParseAddr(text); err == nil {
					s.addrs = append(s.addrs, a.Unmap())
				}
			}
		}
		slices.SortFunc(s.addrs, netip.Addr.Compare) // the map has no order
		byOwner[c.ID] = s
		order = append(order, c.ID)
	}
	for _, c := range all {
		owner, joined := strings.CutPrefix(c.HostConfig.NetworkMode, "container:")
		if !joined {
			owner = c.ID
		}
		name := c.Config.Labels[labelContainer]
		if name == "" {
			name = strings.TrimPrefix(c.Name, "/")
		}
		if s := byOwner[owner]; s != nil && name != pauseContainer {
			s.containers = append(s.containers, container{id: c.ID, name: name})
		}
	}
	list := make([]sandbox, 0, len(order))
	for _, id := range order {
		list = append(list, *byOwner[id])
	}
	return list
}

func (d *dockerRuntime) watch(ctx context.Context, changed func()) error {
	filters := url.QueryEscape(`{"type":["container"],"event":["start","die"]}`)
	body, err := d.open(ctx, "/events?filters="+filters)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch events: %w", err)
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var event struct{}
		if err := events.Decode(&event); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("receive events: %w", err)
		}
		changed()
	}
}
