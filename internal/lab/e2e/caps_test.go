//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodestead/nodestead/internal/lab"
)

// variant is a container of the agent that has something more or less than the
// chart gives it.
type variant struct {
	name   string
	change func(*corev1.PodSpec)
}

// right is what the security context of the only container of a pod has.
func right(spec *corev1.PodSpec) *corev1.SecurityContext { return spec.Containers[0].SecurityContext }

// without takes a capability away.
func without(capability corev1.Capability) variant {
	return variant{"without-" + strings.ToLower(strings.ReplaceAll(string(capability), "_", "-")), func(spec *corev1.PodSpec) {
		c := right(spec).Capabilities
		c.Add = slices.DeleteFunc(slices.Clone(c.Add), func(a corev1.Capability) bool { return a == capability })
	}}
}

// variants are those that both containers have.
func variants(capabilities ...corev1.Capability) []variant {
	all := []variant{
		{"as-the-chart-has-it", func(*corev1.PodSpec) {}},
		{"seccomp-unconfined", func(spec *corev1.PodSpec) {
			spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
		}},
		{"writable-root", func(spec *corev1.PodSpec) { right(spec).ReadOnlyRootFilesystem = new(bool) }},
		{"host-pid", func(spec *corev1.PodSpec) { spec.HostPID = true }},
		{"not-root", func(spec *corev1.PodSpec) { right(spec).RunAsUser = new(int64(65532)) }},
	}
	for _, c := range capabilities {
		all = append(all, without(c))
	}
	return all
}

// daemonSet is the agent as the chart has installed it.
func (c *cluster) daemonSet() (d appsv1.DaemonSet) {
	c.t.Helper()
	c.must(json.Unmarshal([]byte(c.kubectl("get", "daemonset/nodestead", "--namespace="+agentNamespace, "--output=json")), &d))
	return d
}

// variant runs a container of the agent as one pod, in a way of its own.
func (c *cluster) variant(d appsv1.DaemonSet, container string, v variant, args ...string) (pod string) {
	c.t.Helper()
	spec := d.Spec.Template.Spec.DeepCopy()
	spec.Containers = slices.DeleteFunc(spec.Containers, func(o corev1.Container) bool { return o.Name != container })
	spec.NodeName, spec.RestartPolicy, spec.TerminationGracePeriodSeconds = "node", corev1.RestartPolicyNever, new(int64(2))
	only := &spec.Containers[0]
	only.Ports, only.ReadinessProbe, only.LivenessProbe = nil, nil, nil
	only.Args = append(only.Args, args...)
	v.change(spec)
	p := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: agentNamespace, Name: container + "-" + v.name, Labels: map[string]string{"variant": container}},
		Spec:       *spec,
	}
	b, err := json.Marshal(p)
	c.must(err)
	c.must(c.Apply(c.t.Context(), string(b)))
	return p.Name
}

// ended waits until a pod's program has ended, and returns its exit code and log.
func (c *cluster) ended(pod string) (code, log string) {
	c.t.Helper()
	c.until(func() error {
		code = c.kubectl("get", "pod", pod, "--namespace="+agentNamespace, "--output=jsonpath={.status.containerStatuses[0].state.terminated.exitCode}")
		if code == "" {
			return fmt.Errorf("%s has not ended", pod)
		}
		return nil
	})
	return code, c.kubectl("logs", pod, "--namespace="+agentNamespace)
}

// capabilities takes from each container what it may do, one thing at a time.
func (c *cluster) capabilities() {
	d := c.daemonSet()
	c.tell("watch", func() { c.watchRights(d) })
}

// watchRights has all variants of watch look at the same lost lookups.
func (c *cluster) watchRights(d appsv1.DaemonSet) {
	t := c.t
	type seen struct{ code, log, metrics string }
	pods := make(map[string]string)
	ports := make(map[string]int)
	for i, v := range variants("NET_ADMIN", "NET_RAW", "SYS_PTRACE") {
		ports[v.name] = 9900 + i
		pods[v.name] = c.variant(d, "watch", v, fmt.Sprintf("--http.watch=127.0.0.1:%d", 9900+i), "--kubernetes.events=off")
	}
	dead := []string{"not-root", "without-net-admin"}
	for name, port := range ports {
		if !slices.Contains(dead, name) {
			c.until(func() error {
				_, err := c.get(fmt.Sprintf("http://127.0.0.1:%d/readyz", port))
				return err
			})
		}
	}
	// Both an answer that conntrack explains and one that only packets tell of.
	holder, err := c.lab.Hold(2, 0)
	c.must(err)
	for i := range 6 {
		_, err = c.Resolve(t.Context(), "ci", job, "", lab.MuslStatic, 1, fmt.Sprintf("right%d.example.test", i))
		c.must(err)
	}
	c.must(holder.Close())
	all := make(map[string]seen)
	for name, pod := range pods {
		var s seen
		if slices.Contains(dead, name) {
			s.code, s.log = c.ended(pod)
		} else {
			c.until(func() error {
				s.log = c.kubectl("logs", pod, "--namespace="+agentNamespace)
				if !strings.Contains(s.log, `msg="dns lookup lost"`) && name != "without-net-raw" {
					return fmt.Errorf("%s explains nothing: %s", name, s.log)
				}
				return nil
			})
			s.metrics, err = c.get(fmt.Sprintf("http://127.0.0.1:%d/metrics", ports[name]))
			c.must(err)
		}
		all[name] = s
		t.Logf("%s: exit code %s\n%s", name, s.code, s.log)
	}
	c.kubectl("delete", "pod", "--selector=variant=watch", "--namespace="+agentNamespace)
}

// get is what a page on the node says, when it says that all is well.
func (c *cluster) get(url string) (string, error) {
	resp, err := c.lab.Node().HTTPClient().Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

var _ = []any{testing.Short, time.Now}
