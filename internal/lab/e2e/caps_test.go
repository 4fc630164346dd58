//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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

// asItIs is the variant that is none.
const asItIs = "as-the-chart-has-it"

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
		{asItIs, func(*corev1.PodSpec) {}},
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

// together makes one variant of some.
func together(all []variant, name string, some ...string) (rest []variant) {
	var of []variant
	for _, v := range all {
		if slices.Contains(some, v.name) {
			of = append(of, v)
		} else {
			rest = append(rest, v)
		}
	}
	return append(rest, variant{name, func(spec *corev1.PodSpec) {
		for _, v := range of {
			v.change(spec)
		}
	}})
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
// docs/security.md has the table.
func (c *cluster) capabilities() {
	d := c.daemonSet()
	c.tell("held", c.held)
	c.tell("watch", func() { c.watchRights(d) })
	c.tell("trust", func() { c.trustRights(d) })
}

// held proves that the kernel gives the chart's containers just the capabilities of
// docs/security.md, the filter of system calls, and no way to more.
func (c *cluster) held() {
	for container, want := range map[string]uint64{
		"watch": 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_PTRACE,
		"trust": 1 << unix.CAP_SYS_PTRACE,
	} {
		status := c.node(`cat /proc/$(pgrep --full "^/nodestead ` + container + `")/status`)
		for _, line := range []string{
			fmt.Sprintf("CapEff:\t%016x\n", want), fmt.Sprintf("CapPrm:\t%016x\n", want), fmt.Sprintf("CapBnd:\t%016x\n", want),
			"CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "Uid:\t0\t0\t0\t0\n",
		} {
			if !strings.Contains(status, line) {
				c.t.Errorf("%s: the kernel does not say %q: %s", container, line, status)
			}
		}
	}
}

// watchRights has all variants of watch look at the same lost lookups.
func (c *cluster) watchRights(d appsv1.DaemonSet) {
	t := c.t
	const lost, blind, missing = `msg="dns lookup lost" cause=orphaned_answer`, `msg="sensor is blind"`, `msg="workload source is missing"`
	const pod, packets, process = "pod=" + job + " container=helper", "resolver=musl name=right", "process=resolve-musl-st"
	type expectation struct {
		ends     bool     // with exit code 1
		has, not []string // what the log has, and what it has not
	}
	all := expectation{has: []string{lost, pod, packets, process, "container runtime"}, not: []string{blind, missing, "level=ERROR"}}
	ends := expectation{ends: true, has: []string{"CAP_NET_ADMIN is missing (operation not permitted)", "securityContext.capabilities.add: [NET_ADMIN]"}}
	want := map[string]expectation{
		asItIs: all, "seccomp-unconfined": all, "writable-root": all, "host-pid": all,
		"not-root": ends, "without-net-admin": ends,
		// Conntrack alone tells of the collision, but not of the name.
		"without-net-raw":    {has: []string{lost, pod, blind + " sensor=lookup reason=no_permission", "CAP_NET_RAW is missing"}, not: []string{packets, process}},
		"without-sys-ptrace": {has: []string{lost, pod, packets, missing + " from=processes", "SYS_PTRACE"}, not: []string{blind, process}},
	}
	address := make(map[string]string)
	pods := make(map[string]string)
	for i, v := range variants("NET_ADMIN", "NET_RAW", "SYS_PTRACE") {
		address[v.name] = fmt.Sprintf("127.0.0.1:%d", 9900+i)
		pods[v.name] = c.variant(d, "watch", v, "--http.watch="+address[v.name], "--kubernetes.events=off")
	}
	if len(pods) != len(want) {
		t.Fatalf("%d variants and %d expectations", len(pods), len(want))
	}
	for name, pod := range pods {
		if want[name].ends {
			if code, log := c.ended(pod); code != "1" || !has(log, want[name].has...) {
				t.Errorf("%s ends with %s: %s", name, code, log)
			}
			continue
		}
		c.until(func() error {
			_, err := c.get("http://" + address[name] + "/readyz")
			return err
		})
	}
	holder, err := c.lab.Hold(2, 0)
	c.must(err)
	defer func() {
		if err := holder.Close(); err != nil {
			t.Error(err)
		}
	}()
	tries := 0
	c.until(func() error {
		tries++
		if _, err := c.Resolve(t.Context(), "ci", job, "", lab.MuslStatic, 1, fmt.Sprintf("right%d.example.test", tries)); err != nil {
			return err
		}
		for name, pod := range pods {
			log := c.kubectl("logs", pod, "--namespace="+agentNamespace)
			if !strings.Contains(log, lost) && !want[name].ends {
				return fmt.Errorf("%s explains nothing: %s", name, log)
			}
		}
		return nil
	})
	for name, pod := range pods {
		log := c.kubectl("logs", pod, "--namespace="+agentNamespace)
		if want[name].ends {
			continue
		}
		for _, text := range want[name].has {
			if !strings.Contains(log, text) {
				t.Errorf("%s does not say %q: %s", name, text, log)
			}
		}
		for _, text := range want[name].not {
			if strings.Contains(log, text) {
				t.Errorf("%s says %q: %s", name, text, log)
			}
		}
	}
	c.kubectl("delete", "pod", "--selector=variant=watch", "--namespace="+agentNamespace)
}

// trustRights has one variant of trust after the other install a CA on a clean node,
// without another one there that would do it.
func (c *cluster) trustRights(d appsv1.DaemonSet) {
	t := c.t
	c.upgrade("upgrade", "--set=trust.enabled=false")
	c.serve(c.ca)
	c.secret(c.ca)
	once := []string{"--once", "--kubernetes.events=off", "--trust.restarts.concurrency=0", "--trust.runtimes.containerd.enabled=off"}
	runs := 0
	// run is a pass of one variant, which ends with a code, and says something.
	run := func(v variant, wantCode string, wants []string, more ...string) {
		t.Helper()
		runs++
		name := v.name
		v.name = fmt.Sprintf("%d-%s", runs, name)
		code, log := c.ended(c.variant(d, "trust", variant{v.name, func(spec *corev1.PodSpec) {
			clean := spec.Containers[0].DeepCopy()
			clean.Name, clean.Args = "clean", []string{"trust", "--uninstall"}
			spec.InitContainers = []corev1.Container{*clean}
			v.change(spec)
		}}, append(once, more...)...))
		if code != wantCode || !has(log, wants...) {
			t.Errorf("%s ends with %s, want %s and %q: %s", name, code, wantCode, wants, log)
		}
	}
	inSync := []string{`msg="trust is in sync" anchors=1 targets=docker/` + c.registry.Host + ",store"}
	want := map[string][]string{
		asItIs: inSync, "less-confined": inSync, "without-sys-ptrace": inSync,
		"not-root": {"/run/lock/nodestead.lock: permission denied", "docker.sock: connect: permission denied"},
	}
	for _, v := range together(variants("SYS_PTRACE"), "less-confined", "seccomp-unconfined", "writable-root", "host-pid") {
		code := "0"
		if v.name == "not-root" {
			code = "1"
		}
		run(v, code, want[v.name])
	}

	// A node without systemd, as far as its container can see.
	noSystemd := func(spec *corev1.PodSpec) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "nothing", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		only := &spec.Containers[0]
		only.VolumeMounts = append(only.VolumeMounts, corev1.VolumeMount{Name: "nothing", MountPath: "/host/run/dbus"})
	}
	run(variant{"no-systemd", noSystemd}, "1", []string{"the bundle lacks an anchor", "fork/exec /usr/sbin/update-ca-certificates: operation not permitted"})
	run(variant{"no-systemd-with-sys-chroot", func(spec *corev1.PodSpec) {
		noSystemd(spec)
		right(spec).Capabilities.Add = append(right(spec).Capabilities.Add, "SYS_CHROOT")
	}}, "0", inSync)

	// docker has a trust store of its own, which only its environment tells.
	c.node("mkdir -p /etc/systemd/system/docker.service.d; printf '[Service]\nEnvironment=SSL_CERT_FILE=/etc/hostname SSL_CERT_DIR=/run/none\n' >/etc/systemd/system/docker.service.d/store.conf; systemctl daemon-reload; systemctl restart docker.service")
	run(variant{asItIs, func(*corev1.PodSpec) {}}, "1", []string{`msg="a restart is pending" runtime=docker reason=other_store`}, "--trust.certs_d=off")
	run(without("SYS_PTRACE"), "1", []string{"runtime=docker result=did_not_help"}, "--trust.certs_d=off")

	// docker has loaded the roots, and the CA is not among them.
	image := c.push("rights")
	c.node("rm -r /etc/systemd/system/docker.service.d /usr/local/share/ca-certificates/nodestead-*.crt; update-ca-certificates --fresh; systemctl daemon-reload; systemctl restart docker.service")
	if err := c.box.Pull(t.Context(), image); !refused(err) {
		t.Errorf("docker pull on a clean node: %v", err)
	}
	run(variant{asItIs, func(*corev1.PodSpec) {}}, "0", []string{`msg="a daemon was restarted" runtime=docker result=helped`, "in sync"}, "--trust.certs_d=off")
	if err := c.box.Pull(t.Context(), image); err != nil {
		t.Errorf("docker pull after a restart: %v", err)
	}
	c.kubectl("delete", "pod", "--selector=variant=trust", "--namespace="+agentNamespace)
}

// get is what a page on the node says, when it says that all is well.
func (c *cluster) get(url string) (string, error) {
	resp, err := c.lab.Node().HTTPClient().Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}
