package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	strictjson "sigs.k8s.io/json"

	"github.com/nodestead/nodestead/agent"
)

// objects are those of one rendering, by what they are.
type objects struct {
	daemonSet    appsv1.DaemonSet
	account      corev1.ServiceAccount
	configMaps   map[string]corev1.ConfigMap
	clusterRoles []rbacv1.ClusterRole
	clusterBinds []rbacv1.ClusterRoleBinding
	roles        []rbacv1.Role
	binds        []rbacv1.RoleBinding
	leases       []string
	policies     []networkingv1.NetworkPolicy
	monitors     []podMonitor
	rules        []map[string]any

	config agent.Config // of the ConfigMap
}

// podMonitor is what is looked at; the operator's own types decode it in deploy/render.
type podMonitor struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct {
		Selector            metav1.LabelSelector
		PodMetricsEndpoints []struct {
			Port, Path, Scheme, Interval, ScrapeTimeout string
			HonorLabels                                 bool
			Relabelings                                 []map[string]any
		}
	}
}

// read decodes all objects strictly into the types of Kubernetes.
func (r rendering) read(t *testing.T) (o objects, problems []string) {
	t.Helper()
	o.configMaps = make(map[string]corev1.ConfigMap)
	var accounts []corev1.ServiceAccount
	var sets []appsv1.DaemonSet
	for _, data := range r.Objects {
		var head metav1.PartialObjectMetadata
		if err := json.Unmarshal(data, &head); err != nil {
			return o, problem("%v in %s", err, data)
		}
		into := func(v any) {
			strict, err := strictjson.UnmarshalStrict(data, v)
			if err != nil || len(strict) > 0 {
				problems = append(problems, fmt.Sprintf("%s %s: %v %v", head.Kind, head.Name, err, strict))
			}
		}
		namespaced := true
		switch head.APIVersion + " " + head.Kind {
		case "apps/v1 DaemonSet":
			sets = append(sets, appsv1.DaemonSet{})
			into(&sets[len(sets)-1])
		case "v1 ServiceAccount":
			accounts = append(accounts, corev1.ServiceAccount{})
			into(&accounts[len(accounts)-1])
		case "v1 ConfigMap":
			var m corev1.ConfigMap
			into(&m)
			o.configMaps[m.Name] = m
		case "rbac.authorization.k8s.io/v1 ClusterRole":
			namespaced = false
			o.clusterRoles = append(o.clusterRoles, rbacv1.ClusterRole{})
			into(&o.clusterRoles[len(o.clusterRoles)-1])
		case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
			namespaced = false
			o.clusterBinds = append(o.clusterBinds, rbacv1.ClusterRoleBinding{})
			into(&o.clusterBinds[len(o.clusterBinds)-1])
		case "rbac.authorization.k8s.io/v1 Role":
			o.roles = append(o.roles, rbacv1.Role{})
			into(&o.roles[len(o.roles)-1])
		case "rbac.authorization.k8s.io/v1 RoleBinding":
			o.binds = append(o.binds, rbacv1.RoleBinding{})
			into(&o.binds[len(o.binds)-1])
		case "coordination.k8s.io/v1 Lease":
			var l coordinationv1.Lease
			into(&l)
			if l.Spec != (coordinationv1.LeaseSpec{}) {
				problems = append(problems, "an upgrade would take the slot from who holds it: "+l.Name)
			}
			o.leases = append(o.leases, l.Name)
		case "networking.k8s.io/v1 NetworkPolicy":
			o.policies = append(o.policies, networkingv1.NetworkPolicy{})
			into(&o.policies[len(o.policies)-1])
		case "monitoring.coreos.com/v1 PodMonitor":
			var m podMonitor
			if err := json.Unmarshal(data, &m); err != nil {
				problems = append(problems, err.Error())
			}
			o.monitors = append(o.monitors, m)
		case "monitoring.coreos.com/v1 PrometheusRule":
			var m map[string]any
			if err := json.Unmarshal(data, &m); err != nil {
				problems = append(problems, err.Error())
			}
			o.rules = append(o.rules, m)
		default:
			problems = append(problems, fmt.Sprintf("nobody expects %s %s", head.APIVersion, head.Kind))
		}
		if head.Labels["app.kubernetes.io/name"] != "nodestead" || (head.Namespace == "nodestead") != namespaced {
			problems = append(problems, fmt.Sprintf("%s %s in %q has the labels %v", head.Kind, head.Name, head.Namespace, head.Labels))
		}
	}
	if len(sets) != 1 || len(accounts) != 1 {
		return o, append(problems, fmt.Sprintf("%d daemonsets, %d service accounts", len(sets), len(accounts)))
	}
	o.daemonSet, o.account = sets[0], accounts[0]
	config, err := loadConfig(t, o.configMaps["nodestead"].Data["nodestead.yaml"])
	if err != nil {
		problems = append(problems, err.Error())
	}
	o.config = config
	return o, problems
}

// loadConfig has the agent read a configuration.
func loadConfig(t *testing.T, text string) (agent.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nodestead.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return agent.Load(path, nil, nil)
}

// problems are what is wrong with a rendering: in itself, and by what its values ask
// for.
func (r rendering) problems(t *testing.T) []string {
	t.Helper()
	if r.Refused != "" {
		return problem("refused: %s", r.Refused)
	}
	all := slices.Clone(r.Problems)
	o, problems := r.read(t)
	all = append(all, problems...)
	if len(all) > 0 {
		return all
	}
	for _, check := range []func(objects) []string{
		objects.podProblems, objects.volumeProblems, objects.permissionProblems, objects.selectorProblems,
	} {
		all = append(all, check(o)...)
	}
	for name, n := range map[string]int{"podMonitor": len(o.monitors), "prometheusRule": len(o.rules), "dashboards": len(o.configMaps) - 1, "networkPolicy": len(o.policies)} {
		want := 0
		if r.on(name, false) {
			want = 1
		}
		if n != want {
			all = append(all, fmt.Sprintf("%s: %d objects, want %d", name, n, want))
		}
	}
	for _, half := range []string{"watch", "trust"} {
		want := r.on(half, true)
		if _, got := o.container(half); got != want {
			all = append(all, fmt.Sprintf("container %s: %v, want %v", half, got, want))
		}
	}
	if len(o.rules) == 1 {
		values, _ := r.Values["prometheusRule"].(map[string]any)
		runbooks, _ := values["runbooks"].(string)
		all = append(all, ruleProblems(t, o.rules[0], runbooks)...)
	}
	if m, ok := o.configMaps["nodestead-dashboards"]; ok {
		all = append(all, dashboardProblems(t, m)...)
	}
	return all
}

// on tells whether a part of the chart is switched on, where nothing else is standard.
func (r rendering) on(part string, standard bool) bool {
	values, _ := r.Values[part].(map[string]any)
	if on, ok := values["enabled"].(bool); ok {
		return on
	}
	return standard
}

func (o objects) container(name string) (corev1.Container, bool) {
	for _, c := range o.daemonSet.Spec.Template.Spec.Containers {
		if c.Name == name {
			return c, true
		}
	}
	return corev1.Container{}, false
}

// selectorProblems are selectors that do not select our pods, and ports that those do
// not have.
func (o objects) selectorProblems() (problems []string) {
	template := o.daemonSet.Spec.Template
	selects := func(what string, s metav1.LabelSelector) {
		for key, value := range s.MatchLabels {
			if template.Labels[key] != value {
				problems = append(problems, fmt.Sprintf("%s selects %s=%s, pods have %v", what, key, value, template.Labels))
			}
		}
		if len(s.MatchLabels) == 0 || len(s.MatchExpressions) > 0 {
			problems = append(problems, what+" selects by no label")
		}
	}
	var ports []string
	for _, c := range template.Spec.Containers {
		ports = append(ports, c.Ports[0].Name)
	}
	same := func(what string, got []string) {
		if diff := cmp.Diff(ports, got); diff != "" {
			problems = append(problems, fmt.Sprintf("%s: ports (-of the pods +got):\n%s", what, diff))
		}
	}
	selects("the daemonset", *o.daemonSet.Spec.Selector)
	for _, p := range o.policies {
		selects("the network policy", p.Spec.PodSelector)
		var got []string
		for _, port := range p.Spec.Ingress[0].Ports {
			got = append(got, port.Port.StrVal)
		}
		same("the network policy", got)
	}
	for _, m := range o.monitors {
		selects("the pod monitor", m.Spec.Selector)
		var got []string
		for _, e := range m.Spec.PodMetricsEndpoints {
			got = append(got, e.Port)
			want := []map[string]any{
				{"sourceLabels": []any{"__meta_kubernetes_pod_node_name"}, "targetLabel": "node"},
				{"action": "labeldrop", "regex": "namespace|pod|container"},
			}
			if diff := cmp.Diff(want, e.Relabelings); diff != "" || !e.HonorLabels || e.Path != "/metrics" {
				problems = append(problems, fmt.Sprintf("docs/operate.md asks for something else than %+v:\n%s", e, diff))
			}
		}
		same("the pod monitor", got)
	}
	return problems
}

// ruleProblems is what differs between a PrometheusRule and the alerts of
// deploy/alerts, which have tests of their own. runbooks is how its runbook URLs
// begin; empty: as there.
func ruleProblems(t *testing.T, got map[string]any, runbooks string) []string {
	t.Helper()
	text, err := os.ReadFile(rulesPath)
	if err != nil {
		t.Fatal(err)
	}
	if runbooks != "" {
		text = bytes.ReplaceAll(text, []byte("https://github.com/nodestead/nodestead/blob/main/"), []byte(runbooks))
	}
	var want map[string]any
	if err := yaml.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(normal(t, want), normal(t, got["spec"])); diff != "" {
		return problem("rules (-%s +rendered):\n%s", rulesPath, diff)
	}
	return nil
}

// normal gives a value as it comes out of JSON.
func normal(t *testing.T, v any) (out any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dashboardProblems are dashboards that are not those of deploy/dashboards.
func dashboardProblems(t *testing.T, m corev1.ConfigMap) []string {
	t.Helper()
	want := make(map[string]string)
	for _, name := range []string{"cluster", "node"} {
		text, err := os.ReadFile("dashboards/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		want["nodestead-"+name+".json"] = strings.TrimSpace(string(text))
	}
	got := maps.Clone(m.Data)
	for name := range got {
		got[name] = strings.TrimSpace(got[name])
	}
	if !maps.Equal(want, got) || m.Labels["grafana_dashboard"] != "1" {
		return problem("dashboards %v with the labels %v", slices.Sorted(maps.Keys(got)), m.Labels)
	}
	return nil
}
