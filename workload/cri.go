package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtime is a source of pods.
type runtime interface {
	// String names it for the log.
	String() string
	// sandboxes lists all that live.
	sandboxes(ctx context.Context) ([]sandbox, error)
	// watch calls changed whenever one has changed. It returns errNoEvents when
	// the runtime cannot tell, nil only when ctx has ended.
	watch(ctx context.Context, changed func()) error
	close() error
}

// errNoEvents: the runtime has no events; what it has must be asked for.
var errNoEvents = errors.New("the runtime reports no events")

// maxMessage is the largest answer taken from a runtime: the kubelet's limit.
const maxMessage = 16 << 20

// criRuntime speaks CRI (runtime.v1) to containerd, CRI-O or cri-dockerd.
type criRuntime struct {
	name   string
	conn   *grpc.ClientConn
	client cri.RuntimeServiceClient
	// settled are sandboxes whose status cannot change any more, except their end.
	settled map[string]sandbox
}

// dialCRI connects and asks for the version, so that what answers is a runtime.
func dialCRI(ctx context.Context, socket string) (*criRuntime, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	client := cri.NewRuntimeServiceClient(conn)
	version, err := client.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask %s for its version: %w", socket, err), conn.Close())
	}
	return &criRuntime{
		name: fmt.Sprintf("%s %s at %s", version.RuntimeName, version.RuntimeVersion, socket),
		conn: conn, client: client, settled: make(map[string]sandbox),
	}, nil
}

func (r *criRuntime) String() string { return r.name }

func (r *criRuntime) close() error { return r.conn.Close() }

func (r *criRuntime) sandboxes(ctx context.Context) ([]sandbox, error) {
	ready := &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}
	pods, err := r.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return nil, fmt.Errorf("list pod sandboxes: %w", err)
	}
	all, err := r.client.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	// Those that have exited count as well: with an init container a pod has
	// two, and which of them asked is not certain.
	containers := make(map[string][]container)
	for _, c := range all.Containers {
		containers[c.PodSandboxId] = append(containers[c.PodSandboxId], container{id: c.Id, name: c.Metadata.GetName()})
	}
	var list []sandbox
	settled := make(map[string]sandbox, len(pods.Items))
	for _, p := range pods.Items {
		if p.State != cri.PodSandboxState_SANDBOX_READY { // a runtime that ignores the filter
			continue
		}
		s, ok := r.settled[p.Id]
		if !ok {
			if s, err = r.sandbox(ctx, p); status.Code(err) == codes.NotFound {
				continue // ended since it was listed
			} else if err != nil {
				return nil, err
			}
		}
		if s.host || len(s.addrs) > 0 {
			settled[p.Id] = s
		}
		s.containers = containers[p.Id]
		list = append(list, s)
	}
	r.settled = settled
	return list, nil
}

// sandbox asks for all that the list does not say.
func (r *criRuntime) sandbox(ctx context.Context, p *cri.PodSandbox) (sandbox, error) {
	answer, err := r.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id, Verbose: true})
	if err != nil {
		return sandbox{}, fmt.Errorf("ask for pod sandbox %s: %w", p.Id, err)
	}
	st := answer.Status
	s := sandbox{
		id:        p.Id,
		namespace: p.Metadata.GetNamespace(), name: p.Metadata.GetName(), uid: p.Metadata.GetUid(),
		host:    st.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE,
		created: time.Unix(0, p.CreatedAt),
	}
	s.read(answer.Info["info"])
	if ip, err := netip.ParseAddr(st.GetNetwork().GetIp()); err == nil {
		s.addrs = append(s.addrs, ip.Unmap())
	}
	for _, other := range st.GetNetwork().GetAdditionalIps() {
		if ip, err := netip.ParseAddr(other.GetIp()); err == nil {
			s.addrs = append(s.addrs, ip.Unmap())
		}
	}
	return s, nil
}

// read reads what containerd and CRI-O add to a verbose status: the pid, and
// containerd the pod's DNS settings as well.
func (s *sandbox) read(info string) {
	var v struct {
		Pid    int `json:"pid"`
		Config struct {
			DNS struct {
				Servers  []string `json:"servers"`
				Searches []string `json:"searches"`
			} `json:"dns_config"`
		} `json:"config"`
	}
	if json.Unmarshal([]byte(info), &v) != nil {
		return
	}
	s.pid = max(v.Pid, 0)
	s.search = v.Config.DNS.Searches
	for _, text := range v.Config.DNS.Servers {
		if a, err := netip.ParseAddr(text); err == nil {
			s.nameservers = append(s.nameservers, a)
		}
	}
}

func (r *criRuntime) watch(ctx context.Context, changed func()) error {
	stream, err := r.client.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	for err == nil {
		if _, err = stream.Recv(); err == nil {
			changed()
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case status.Code(err) == codes.Unimplemented, errors.Is(err, io.EOF): // containerd before 1.7, CRI-O without enable_pod_events
		return errNoEvents
	default:
		return fmt.Errorf("receive container events: %w", err)
	}
}
