package deploy

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/nodestead/nodestead/agent"
)

// capabilities are those that each half may have.
var capabilities = map[string][]corev1.Capability{
	"watch": {"NET_ADMIN", "NET_RAW", "SYS_PTRACE"},
	"trust": {"SYS_PTRACE"},
}

// podProblems is what the agent would not understand, and what a pod has more than it
// needs.
func (o objects) podProblems() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	spec := o.daemonSet.Spec.Template.Spec
	if !spec.HostNetwork || spec.HostPID || spec.HostIPC || *spec.AutomountServiceAccountToken || spec.ServiceAccountName != o.account.Name ||
		spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || len(spec.InitContainers) > 0 {
		bad("pod: %+v", spec)
	}
	var names, environ []string
	for _, key := range agent.Keys() {
		names, environ = append(names, key.Path), append(environ, key.Env)
	}
	for _, c := range spec.Containers {
		if c.Args[0] != c.Name || len(c.Command) > 0 {
			bad("container %s runs %q %q", c.Name, c.Command, c.Args)
		}
		for _, arg := range c.Args[1:] {
			name, _, ok := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			if !ok || name != "config" && !slices.Contains(names, name) {
				bad("container %s: the agent has no flag %s", c.Name, arg)
			}
		}
		for _, e := range c.Env {
			if e.Name == "NODE_NAME" && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName" {
				continue
			}
			if !slices.Contains(environ, e.Name) {
				bad("container %s: the agent knows no variable %s", c.Name, e.Name)
			}
		}
		address := o.config.HTTP.Watch
		if c.Name == "trust" {
			address = o.config.HTTP.Trust
		}
		host, port, err := net.SplitHostPort(string(address))
		if err != nil {
			bad("container %s: %v", c.Name, err)
		}
		if len(c.Ports) != 1 || strconv.Itoa(int(c.Ports[0].ContainerPort)) != port || c.Ports[0].HostPort != c.Ports[0].ContainerPort || c.Ports[0].Name != c.Name {
			bad("container %s serves %s, ports %+v", c.Name, address, c.Ports)
		}
		for path, probe := range map[string]*corev1.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
			switch get, tcp := probe.HTTPGet, probe.TCPSocket; {
			case get != nil && (get.Path != path || get.Port.String() != port || get.Host != host):
				bad("container %s at %s: probe %+v", c.Name, address, get)
			case tcp != nil && (tcp.Port.String() != port || tcp.Host != host):
				bad("container %s at %s: probe %+v", c.Name, address, tcp)
			case get == nil && tcp == nil:
				bad("container %s: probe %+v", c.Name, probe)
			}
		}
		want := slices.Clone(capabilities[c.Name])
		if context := c.SecurityContext; c.Name == "trust" && slices.Contains(context.Capabilities.Add, "SYS_CHROOT") {
			want = append(want, "SYS_CHROOT") // trust.chroot, which has a test of its own
		}
		if c.Name == "watch" && o.config.Names.Workloads.Proc == "off" {
			want = want[:2] // no processes, no SYS_PTRACE
		}
		no, yes, root := false, true, int64(0)
		if diff := cmp.Diff(&corev1.SecurityContext{
			RunAsUser: &root, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: want},
		}, c.SecurityContext); diff != "" {
			bad("container %s: security context (-want +got):\n%s", c.Name, diff)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) <= 0 {
			bad("container %s: resources %+v", c.Name, c.Resources)
		}
	}
	return problems
}

// asks tells whether a container needs the API server.
func (o objects) asks(container string) bool {
	return o.config.Kubernetes.Events == "auto" || container == "trust" && o.config.Trust.Restarts.Concurrency > 0
}

// volumeProblems are volumes that are missing, that nobody needs, or that are where the
// agent does not look.
func (o objects) volumeProblems() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	spec := o.daemonSet.Spec.Template.Spec
	unused := make(map[string]bool)
	for _, v := range spec.Volumes {
		if unused[v.Name] {
			bad("two volumes %s", v.Name)
		}
		unused[v.Name] = true
	}
	known := make(map[string]corev1.Volume)
	for _, v := range spec.Volumes {
		known[v.Name] = v
	}
	for _, c := range spec.Containers {
		want := []string{"/etc/nodestead/config", string(o.config.HostRoot)}
		if o.asks(c.Name) {
			want = append(want, "/var/run/secrets/kubernetes.io/serviceaccount")
		}
		if o.config.HTTP.WebConfig != "" {
			want = append(want, path.Dir(string(o.config.HTTP.WebConfig)))
		}
		if c.Name == "trust" {
			for _, source := range o.config.Trust.Sources {
				want = append(want, string(source))
			}
		}
		var got []string
		for _, m := range c.VolumeMounts {
			v, ok := known[m.Name]
			if !ok {
				bad("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
			delete(unused, m.Name)
			got = append(got, m.MountPath)
			isHost := m.MountPath == string(o.config.HostRoot)
			if m.ReadOnly == (isHost && c.Name == "trust") || m.SubPath != "" || (v.HostPath != nil) != isHost {
				bad("container %s: %+v of %+v", c.Name, m, v)
			}
			// Without propagation a container keeps what the node has unmounted.
			if isHost && (v.HostPath.Path != "/" || *m.MountPropagation != corev1.MountPropagationHostToContainer) {
				bad("container %s: %+v of %+v", c.Name, m, v)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			bad("container %s: mounts (-want +got):\n%s", c.Name, diff)
		}
		if config, ok := strings.CutPrefix(c.Args[1], "--config=/etc/nodestead/config/"); !ok || o.configMaps[known["config"].ConfigMap.Name].Data[config] == "" {
			bad("container %s: no ConfigMap has %s", c.Name, c.Args[1])
		}
	}
	if len(unused) > 0 {
		bad("nobody mounts %v", unused)
	}
	return problems
}

// permissionProblems is what the service account may and need not, or needs and may
// not.
func (o objects) permissionProblems() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	slots := int(o.config.Trust.Restarts.Concurrency)
	if _, trust := o.container("trust"); !trust {
		slots = 0
	}
	var leases []string
	for i := range slots {
		leases = append(leases, "nodestead-restart-"+strconv.Itoa(i))
	}
	if diff := cmp.Diff(leases, o.leases); diff != "" {
		bad("leases (-want +got):\n%s", diff)
	}
	var cluster, own []rbacv1.PolicyRule
	if o.config.Kubernetes.Events == "auto" {
		cluster = append(cluster, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}})
	}
	if slots > 0 {
		cluster = append(cluster, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get"}})
		groups, resources := []string{"coordination.k8s.io"}, []string{"leases"}
		own = append(own,
			rbacv1.PolicyRule{APIGroups: groups, Resources: resources, ResourceNames: leases, Verbs: []string{"get", "update"}},
			rbacv1.PolicyRule{APIGroups: groups, Resources: resources, Verbs: []string{"create"}})
	}
	var gotCluster, gotOwn []rbacv1.PolicyRule
	for _, r := range o.clusterRoles {
		gotCluster = append(gotCluster, r.Rules...)
	}
	for _, r := range o.roles {
		gotOwn = append(gotOwn, r.Rules...)
	}
	if diff := cmp.Diff(cluster, gotCluster); diff != "" {
		bad("in the cluster it may (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(own, gotOwn); diff != "" {
		bad("in its namespace it may (-want +got):\n%s", diff)
	}
	account := []rbacv1.Subject{{Kind: "ServiceAccount", Name: o.account.Name, Namespace: "nodestead"}}
	if len(o.clusterRoles) != len(o.clusterBinds) || len(o.roles) != len(o.binds) {
		bad("%d cluster roles, %d bindings; %d roles, %d bindings", len(o.clusterRoles), len(o.clusterBinds), len(o.roles), len(o.binds))
		return problems
	}
	for i, b := range o.clusterBinds {
		if diff := cmp.Diff(account, b.Subjects); diff != "" || b.RoleRef != (rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: o.clusterRoles[i].Name}) {
			bad("cluster role binding %+v", b)
		}
	}
	for i, b := range o.binds {
		if diff := cmp.Diff(account, b.Subjects); diff != "" || b.RoleRef != (rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: o.roles[i].Name}) {
			bad("role binding %+v", b)
		}
	}
	return problems
}
