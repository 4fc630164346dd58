package lab

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podLinks is how the node's links to the pods of a box begin, by CNI's plugins.
const podLinks = "veth"

// CRIPod is a pod that the box's containerd runs, as kubelet would have it.
type CRIPod struct {
	Namespace, Name, UID string
	// Addr4 and Addr6 are its addresses; those of the node for one in the
	// node's network.
	Addr4, Addr6 netip.Addr
	// Link is the name of its link on the node's side, LinkIndex its index. A
	// pod in the node's network has none.
	Link      string
	LinkIndex int
	// Pid is its first process as the box sees it: Box.Root()/proc/Pid.
	Pid int

	box        *Box
	sandbox    string
	containers map[string]string // name → id
}

// dial makes a client of containerd, which need not answer yet.
func (b *Box) dial(socket string) error {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}}),
	)
	if err != nil {
		return fmt.Errorf("dial containerd: %w", err)
	}
	b.conn, b.runtime = conn, cri.NewRuntimeServiceClient(conn)
	return nil
}

// podsReady asks containerd whether it can run pods.
func (b *Box) podsReady(ctx context.Context) error {
	status, err := b.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return fmt.Errorf("%s: %s", c.GetType(), c.GetMessage())
		}
	}
	return nil
}

// RunPod runs a pod. It lives until it is stopped or the box is closed.
func (b *Box) RunPod(ctx context.Context, cfg CRIPodConfig) (*CRIPod, error) {
	if cfg.Namespace == "" {
		cfg.Namespace = "default"
	}
	if len(cfg.Containers) == 0 {
		cfg.Containers = []string{"app"}
	}
	p := &CRIPod{Namespace: cfg.Namespace, Name: cfg.Name, UID: newUID(), box: b, containers: make(map[string]string)}
	err := p.run(ctx, cfg)
	if err != nil && p.sandbox != "" {
		err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return nil, fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	return p, nil
}

func (p *CRIPod) run(ctx context.Context, cfg CRIPodConfig) error {
	sandbox := p.sandboxConfig(cfg)
	made, err := p.box.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return fmt.Errorf("run its sandbox: %w", err)
	}
	p.sandbox = made.GetPodSandboxId()
	for _, name := range cfg.Containers {
		if p.containers[name], err = p.runContainer(ctx, cfg, sandbox, name); err != nil {
			return fmt.Errorf("run container %s: %w", name, err)
		}
	}
	return p.look(ctx)
}

// sandboxConfig is what kubelet would ask for.
func (p *CRIPod) sandboxConfig(cfg CRIPodConfig) *cri.PodSandboxConfig {
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Uid: p.UID, Namespace: p.Namespace},
		Hostname:     p.Name,
		DnsConfig:    &cri.DNSConfig{Searches: cfg.Search, Options: cfg.Options},
		Labels:       p.labels(),
		LogDirectory: "/" + p.logDir(),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "kubepods-besteffort-pod" + strings.ReplaceAll(p.UID, "-", "_") + ".slice",
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Privileged:       cfg.Privileged,
			},
		},
	}
	for _, a := range cfg.Nameservers {
		config.DnsConfig.Servers = append(config.DnsConfig.Servers, a.String())
	}
	if cfg.HostNetwork {
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	return config
}

// labels are those that kubelet gives to sandboxes and containers.
func (p *CRIPod) labels() map[string]string {
	return map[string]string{
		"io.kubernetes.pod.name":      p.Name,
		"io.kubernetes.pod.namespace": p.Namespace,
		"io.kubernetes.pod.uid":       p.UID,
	}
}

func (p *CRIPod) runContainer(ctx context.Context, cfg CRIPodConfig, sandbox *cri.PodSandboxConfig, name string) (id string, err error) {
	labels := p.labels()
	labels["io.kubernetes.container.name"] = name
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: cmp.Or(cfg.Image, ResolversImage)},
		Command:  cfg.Command,
		Labels:   labels,
		LogPath:  logPath(name),
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: sandbox.Linux.SecurityContext.NamespaceOptions,
			Privileged:       cfg.Privileged,
		}},
	}
	for _, m := range cfg.Mounts {
		mount := &cri.Mount{HostPath: m.Host, ContainerPath: m.Container, Readonly: m.ReadOnly}
		if m.Follow {
			mount.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		config.Mounts = append(config.Mounts, mount)
	}
	made, err := p.box.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: sandbox, Config: config})
	if err != nil {
		return "", err
	}
	_, err = p.box.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
	return made.GetContainerId(), err
}

// look finds out what containerd and CNI have made.
func (p *CRIPod) look(ctx context.Context) error {
	answer, err := p.box.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.sandbox, Verbose: true})
	if err != nil {
		return fmt.Errorf("ask for its status: %w", err)
	}
	var info struct {
		Pid       int `json:"pid"`
		CNIResult *struct {
			Interfaces map[string]struct{ Sandbox string }
		} `json:"cniResult"`
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
		return fmt.Errorf("read its status: %w", err)
	}
	p.Pid = info.Pid
	if answer.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE {
		p.Addr4, p.Addr6 = node4.Addr(), node6.Addr()
		return nil
	}
	network := answer.GetStatus().GetNetwork()
	ips := []string{network.GetIp()}
	for _, ip := range network.GetAdditionalIps() {
		ips = append(ips, ip.GetIp())
	}
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return fmt.Errorf("its address: %w", err)
		}
		if a.Is4() {
			p.Addr4 = a
		} else {
			p.Addr6 = a
		}
	}
	if info.CNIResult == nil {
		return errors.New("containerd tells nothing of its links")
	}
	for name, link := range info.CNIResult.Interfaces {
		if link.Sandbox == "" && strings.HasPrefix(name, podLinks) {
			p.Link = name
		}
	}
	return p.box.lab.node.netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(p.Link)
		if err != nil {
			return fmt.Errorf("find its link %q: %w", p.Link, err)
		}
		p.LinkIndex = link.Attrs().Index
		return nil
	})
}

// Resolve is Pod.Resolve in one of the pod's containers; "" is its only one.
func (p *CRIPod) Resolve(ctx context.Context, container string, r Resolver, count int, names ...string) ([]Answer, error) {
	answers, err := p.resolve(ctx, container, r, count, names)
	if err != nil {
		return nil, fmt.Errorf("resolve by %s in pod %s/%s: %w", r, p.Namespace, p.Name, err)
	}
	return answers, nil
}

func (p *CRIPod) resolve(ctx context.Context, container string, r Resolver, count int, names []string) ([]Answer, error) {
	if !slices.Contains(Resolvers(), r) {
		return nil, errors.New("unknown resolver")
	}
	out, err := p.Exec(ctx, container, append([]string{ClientPath(r)}, clientArgs(count, names)...)...)
	if err != nil {
		return nil, err
	}
	return parseAnswers(strings.NewReader(out))
}

// Exec runs a command in one of the pod's containers, "" being its only one, and
// returns what it prints to standard output.
func (p *CRIPod) Exec(ctx context.Context, container string, args ...string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("no command")
	}
	_, id, err := p.container(container)
	if err != nil {
		return "", err
	}
	out, err := p.box.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: args})
	if err != nil {
		return "", fmt.Errorf("run %s: %w", path.Base(args[0]), err)
	}
	if code := out.GetExitCode(); code != 0 {
		return "", fmt.Errorf("run %s: exit code %d: %s", path.Base(args[0]), code, tail(out.GetStderr()))
	}
	return string(out.GetStdout()), nil
}

// container finds a container by its name, "" being the only one.
func (p *CRIPod) container(name string) (found, id string, err error) {
	if name == "" && len(p.containers) == 1 {
		for name = range p.containers {
		}
	}
	id, ok := p.containers[name]
	if !ok {
		return "", "", fmt.Errorf("no container %q", name)
	}
	return name, id, nil
}

// Stop ends the pod and removes it.
func (p *CRIPod) Stop(ctx context.Context) error {
	if _, err := p.box.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("stop pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if _, err := p.box.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// newUID makes an identifier as Kubernetes gives to objects (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
