package deploy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodestead/nodestead/agent"
	"github.com/nodestead/nodestead/cluster"
)

// TestChartValues: what else values do.
func TestChartValues(t *testing.T) {
	pod := func(o objects) corev1.PodSpec { return o.daemonSet.Spec.Template.Spec }
	container := func(o objects, name string) corev1.Container {
		c, _ := o.container(name)
		return c
	}
	for _, tt := range []struct {
		name, values, kubernetes string
		got                      func(objects) any
		want                     any
	}{
		{"the image of this version", "{}", "",
			func(o objects) any { return container(o, "watch").Image }, "nodestead/nodestead:0.1.0"},
		{"a tag", "{image: {repository: registry.example.de/nodestead, tag: v9}}", "",
			func(o objects) any { return container(o, "trust").Image }, "registry.example.de/nodestead:v9"},
		{"a digest comes before a tag", "{image: {tag: v9, digest: 'sha256:" + strings.Repeat("ab", 32) + "'}}", "",
			func(o objects) any { return container(o, "trust").Image }, "nodestead/nodestead@sha256:" + strings.Repeat("ab", 32)},
		{"pull secrets", "{imagePullSecrets: [{name: a}]}", "",
			func(o objects) any { return pod(o).ImagePullSecrets }, []corev1.LocalObjectReference{{Name: "a"}}},
		{"the whole configuration", configText, "",
			func(o objects) any { return o.config }, wholeConfig(t)},
		{"nothing but the key", "{config: null}", "",
			func(o objects) any { return o.config }, agent.Default()},
		{"a bare off is no false", "{config: {names: {workloads: {cri: off, proc: off}}, trust: {store: off, certs_d: off, runtimes: {docker: {enabled: off}, containerd: {enabled: off}, crio: {enabled: off}}}}}", "",
			func(o objects) any {
				c, r := o.config, o.config.Trust.Runtimes
				return []string{string(c.Names.Workloads.CRI), string(c.Names.Workloads.Proc), string(c.Trust.Store), string(c.Trust.CertsD),
					string(r.Docker.Enabled), string(r.Containerd.Enabled), string(r.CRIO.Enabled)}
			}, slices.Repeat([]string{"off"}, 7)},
		{"more sources", "{trust: {caSecret: {name: ''}, sources: [{secret: a}, {configMap: b.c, optional: true}]}}", "",
			func(o objects) any { return o.config.Trust.Sources },
			agent.Directories{"/etc/nodestead/sources/secret-a", "/etc/nodestead/sources/configmap-b.c"}},
		{"an optional source", "{trust: {sources: [{secret: a}, {configMap: b, optional: true}]}}", "",
			func(o objects) any {
				var out []bool
				for _, v := range pod(o).Volumes {
					switch {
					case v.Secret != nil:
						out = append(out, *v.Secret.Optional)
					case v.ConfigMap != nil && v.ConfigMap.Optional != nil:
						out = append(out, *v.ConfigMap.Optional)
					}
				}
				return out
			}, []bool{true, false, true}},
		{"a Secret that must be there", "{trust: {caSecret: {name: root, optional: false}}}", "",
			func(o objects) any {
				for _, v := range pod(o).Volumes {
					if v.Name == "ca" {
						return *v.Secret
					}
				}
				return nil
			}, corev1.SecretVolumeSource{SecretName: "root", Optional: new(false)}},
		{"chroot", "{trust: {chroot: true}}", "",
			func(o objects) any {
				return [][]corev1.Capability{container(o, "watch").SecurityContext.Capabilities.Add, container(o, "trust").SecurityContext.Capabilities.Add}
			}, [][]corev1.Capability{{"NET_ADMIN", "NET_RAW", "SYS_PTRACE"}, {"SYS_PTRACE", "SYS_CHROOT"}}},
		{"no processes", "{config: {names: {workloads: {proc: off}}}}", "",
			func(o objects) any { return container(o, "watch").SecurityContext.Capabilities.Add }, []corev1.Capability{"NET_ADMIN", "NET_RAW"}},
		{"an address for itself", "{config: {http: {watch: '127.0.0.1:80', trust: '[::1]:81'}}, podMonitor: {enabled: true}}", "",
			func(o objects) any {
				return []string{container(o, "watch").ReadinessProbe.HTTPGet.Host, container(o, "trust").LivenessProbe.HTTPGet.Host}
			}, []string{"127.0.0.1", "::1"}},
		{"plain HTTP", "{podMonitor: {enabled: true}}", "", schemes, []string{"HTTP", "", ""}},
		{"TLS", "{webConfig: {secret: a, probes: HTTPS}, podMonitor: {enabled: true}}", "", schemes, []string{"HTTPS", "https", "https"}},
		{"client certificates", "{webConfig: {secret: a, probes: TCP}, podMonitor: {enabled: true, endpoint: {scheme: https, tlsConfig: {insecureSkipVerify: true}}}}", "",
			schemes, []string{"TCP", "https", "https"}},
		{"a pod monitor of one's own", "{podMonitor: {enabled: true, labels: {a: b}, interval: 15s, endpoint: {scrapeTimeout: 9s}}}", "",
			func(o objects) any {
				m, e := o.monitors[0], o.monitors[0].Spec.PodMetricsEndpoints[1]
				return []string{m.Metadata.Labels["a"], e.Interval, e.ScrapeTimeout}
			}, []string{"b", "15s", "9s"}},
		{"rules of one's own", "{prometheusRule: {enabled: true, labels: {a: b}, runbooks: 'https://wiki.example.de/'}}", "",
			func(o objects) any { return o.rules[0]["metadata"].(map[string]any)["labels"].(map[string]any)["a"] }, "b"},
		{"who may reach the ports", "{networkPolicy: {enabled: true, from: [{namespaceSelector: {matchLabels: {a: b}}}]}}", "",
			func(o objects) any { return o.policies[0].Spec.Ingress[0].From },
			[]networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}}},
		{"annotations of the dashboards", "{dashboards: {enabled: true, annotations: {a: b}}}", "",
			func(o objects) any { return o.configMaps["nodestead-dashboards"].Annotations["a"] }, "b"},
		{"AppArmor", "{}", "",
			func(o objects) any { return pod(o).SecurityContext.AppArmorProfile.Type }, corev1.AppArmorProfileTypeUnconfined},
		{"AppArmor before Kubernetes 1.30", "{}", "1.29.9-gke.1",
			func(o objects) any {
				a := o.daemonSet.Spec.Template.Annotations
				return []any{a["container.apparmor.security.beta.kubernetes.io/watch"], a["container.apparmor.security.beta.kubernetes.io/trust"], pod(o).SecurityContext.AppArmorProfile == nil}
			}, []any{"unconfined", "unconfined", true}},
		{"nothing of security modules", "{security: {appArmor: null, seLinux: null}}", "",
			func(o objects) any {
				return []any{pod(o).SecurityContext.AppArmorProfile == nil, pod(o).SecurityContext.SELinuxOptions == nil}
			}, []any{true, true}},
		{"labels and annotations", "{podLabels: {a: b}, podAnnotations: {c: d}, serviceAccount: {annotations: {e: f}}}", "",
			func(o objects) any {
				m := o.daemonSet.Spec.Template
				return []string{m.Labels["a"], m.Annotations["c"], o.account.Annotations["e"]}
			}, []string{"b", "d", "f"}},
		{"a setting by the environment", "{watch: {env: [{name: NODESTEAD_LOG_LEVEL, value: debug}]}}", "",
			func(o objects) any { return container(o, "watch").Env[1] }, corev1.EnvVar{Name: "NODESTEAD_LOG_LEVEL", Value: "debug"}},
		{"where it runs", "{tolerations: null, priorityClassName: '', nodeSelector: {a: b}, affinity: {nodeAffinity: {}}}", "",
			func(o objects) any {
				return []any{pod(o).Tolerations == nil, pod(o).PriorityClassName, pod(o).NodeSelector["a"], pod(o).Affinity.NodeAffinity != nil}
			}, []any{true, "", "b", true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := renderAll(t, []rendering{{Values: parse(t, tt.values), Kubernetes: tt.kubernetes}})[0]
			for _, p := range r.problems(t) {
				t.Error(p)
			}
			if t.Failed() {
				return
			}
			o, _ := r.read(t)
			if diff := cmp.Diff(tt.want, tt.got(o), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// schemes are how the kubelet asks watch, and Prometheus both.
func schemes(o objects) any {
	watch, _ := o.container("watch")
	out := []string{"TCP"}
	if get := watch.LivenessProbe.HTTPGet; get != nil {
		out[0] = string(get.Scheme)
	}
	for _, e := range o.monitors[0].Spec.PodMetricsEndpoints {
		out = append(out, e.Scheme)
	}
	return out
}

// configText has each key of the agent that the chart leaves to its user, with another
// value than its default.
const configText = `config:
  log: {level: debug, format: json}
  http: {watch: ":80", trust: "127.0.0.1:81"}
  kubernetes: {events: off}
  names:
    ports: [53, 5353]
    lookups: {interfaces: ["cali*"], pending: 1000000, slow: 1m30s}
    workloads: {cri: /run/cri.sock, proc: off}
    probe: {names: [git.example.de], nameservers: ["10.96.0.10"], interval: 1h}
    metrics: {pod_label: false}
  trust:
    allow: [0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef]
    overlap: 24h
    interval: 5m
    store: off
    certs_d: off
    registries: ["registry.example.de:5000"]
    restarts: {concurrency: 20, days: [sat, sun], start: 22:30, end: 04:00, time_zone: Europe/Berlin}
    runtimes:
      docker: {enabled: off, unit: a.service, restart: never, disruptive: true}
      containerd: {enabled: off, unit: b.service, restart: always}
      crio: {enabled: off, unit: c.service, restart: never}
`

// wholeConfig is what the agent makes of it.
func wholeConfig(t *testing.T) agent.Config {
	t.Helper()
	text := strings.ReplaceAll(strings.TrimPrefix(configText, "config:\n"), "\n  ", "\n")
	config, err := loadConfig(t, strings.TrimPrefix(text, "  "))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// TestConfigTextIsWhole: no key is forgotten there.
func TestConfigTextIsWhole(t *testing.T) {
	config := normal(t, parse(t, configText)["config"])
	for _, key := range agent.Keys() {
		at := config
		for name := range strings.SplitSeq(key.Path, ".") {
			m, _ := at.(map[string]any)
			at = m[name]
		}
		if own := slices.Contains(ownKeys, key.Path); own == (at != nil) {
			t.Errorf("%s: %v, and the chart's own: %v", key.Path, at, own)
		}
	}
}

// ownKeys are those that the chart writes itself.
var ownKeys = []string{"node_name", "host_root", "http.web_config", "trust.sources"}

// asked takes note of the Leases that a wait for a slot asks for.
type asked struct {
	cluster.Leases
	names map[string]bool
	all   func()
}

func (a *asked) Get(ctx context.Context, name string) (cluster.Lease, error) {
	if a.names[name] = true; len(a.names) == 20 {
		a.all()
	}
	return cluster.Lease{Name: name, Version: "1", Holder: "another"}, ctx.Err()
}

// TestChartSlots: the Leases of the chart are those that the agent asks for.
func TestChartSlots(t *testing.T) {
	o, problems := renderChart(t, "{config: {trust: {restarts: {concurrency: 20}}}}").read(t)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		leases := &asked{names: make(map[string]bool), all: cancel}
		slots, err := cluster.NewSlots(cluster.SlotsConfig{
			Leases: leases, Node: "n", Slots: 20, Log: slog.New(slog.DiscardHandler),
			ControlPlane: func(context.Context) (bool, error) { return false, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := slots.Acquire(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for _, name := range o.leases {
			if !leases.names[name] {
				t.Errorf("the agent does not ask for %s, but for %v", name, leases.names)
			}
		}
		if len(o.leases) != 20 {
			t.Errorf("leases %q", o.leases)
		}
	})
}
