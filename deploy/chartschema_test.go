package deploy

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/agent"
)

// schema is one value of values.schema.json.
type schema struct {
	Description          string
	Type                 any
	Properties           map[string]schema
	AdditionalProperties json.RawMessage
	Items                *schema
}

func readSchema(t *testing.T) schema {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(chartPath, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSchemaKnowsValues: the schema is strict, explains each value, and has those of
// values.yaml.
func TestSchemaKnowsValues(t *testing.T) {
	root := readSchema(t)
	var walk func(path string, s schema)
	walk = func(path string, s schema) {
		if s.Description == "" || strings.TrimRight(s.Description, ".") == path {
			t.Errorf("%s has no description", path)
		}
		if s.Properties != nil && string(s.AdditionalProperties) != "false" {
			t.Errorf("%s takes what nobody knows", path)
		}
		for name, property := range s.Properties {
			walk(path+"."+name, property)
		}
		if s.Items != nil {
			for name, property := range s.Items.Properties {
				walk(path+"[]."+name, property)
			}
			if s.Items.Properties != nil && string(s.Items.AdditionalProperties) != "false" {
				t.Errorf("%s[] takes what nobody knows", path)
			}
		}
	}
	walk("", root)

	var defaults map[string]any
	decode(t, filepath.Join(chartPath, "values.yaml"), &defaults)
	var compare func(path string, s schema, values map[string]any)
	compare = func(path string, s schema, values map[string]any) {
		known := slices.DeleteFunc(slices.Sorted(maps.Keys(s.Properties)), func(name string) bool { return path+name == "global" })
		if diff := cmp.Diff(known, slices.Sorted(maps.Keys(values))); diff != "" {
			t.Errorf("values at %q (-schema +values.yaml):\n%s", path, diff)
		}
		for name, property := range s.Properties {
			if value, ok := values[name].(map[string]any); ok && len(property.Properties) > 0 && name != "config" && name != "resources" {
				compare(path+name+".", property, value)
			}
		}
	}
	compare("", root, defaults)
}

// TestSchemaKnowsSettings: config takes each key of the agent but those that the chart
// writes itself, and nothing else, with the words of the agent's help.
func TestSchemaKnowsSettings(t *testing.T) {
	got := make(map[string]string)
	var walk func(path string, s schema)
	walk = func(path string, s schema) {
		if s.Properties == nil {
			got[path] = s.Description
			return
		}
		for name, property := range s.Properties {
			walk(strings.TrimPrefix(path+"."+name, "."), property)
		}
	}
	walk("", readSchema(t).Properties["config"])
	want := make(map[string]string)
	for _, key := range agent.Keys() {
		if !slices.Contains(ownKeys, key.Path) {
			want[key.Path] = key.Help
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-agent +schema):\n%s", diff)
	}
}

// TestChartRefuses: what must not be installed is refused, and the message names it.
func TestChartRefuses(t *testing.T) {
	var requests []rendering
	tests := []struct{ values, want string }{
		{"{watch: {enabled: false}, trust: {enabled: false}}", "nothing is left to install"},
		{"{trust: {caSecret: {name: ''}}}", "trust has no source"},
		{"{config: {http: {trust: ':9853'}}}", "have the same port"},
		{"{watch: {env: [{name: NODESTEAD_HTTP_WATCH, value: ':19853'}]}}", "watch.env: NODESTEAD_HTTP_WATCH: set it by config"},
		{"{watch: {env: [{name: NODESTEAD_NAMES_WORKLOADS_PROC, value: auto}]}}", "watch.env: NODESTEAD_NAMES_WORKLOADS_PROC"},
		{"{trust: {env: [{name: A}, {name: NODESTEAD_TRUST_RESTARTS_CONCURRENCY, value: '2'}]}}", "trust.env: NODESTEAD_TRUST_RESTARTS_CONCURRENCY"},
		{"{trust: {env: [{name: NODESTEAD_TRUST_SOURCES, value: /a}]}}", "trust.env: NODESTEAD_TRUST_SOURCES"},
		{"{trust: {env: [{name: NODESTEAD_HOST_ROOT, value: /}]}}", "trust.env: NODESTEAD_HOST_ROOT"},
		{"{webConfig: {probes: HTTPS}}", "there is none"},
		{"{updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}}", "updateStrategy.rollingUpdate.maxSurge"},
		{"{wach: {enabled: false}}", "additional properties 'wach' not allowed"},
		{"{watch: {enable: false}}", "additional properties 'enable' not allowed"},
		{"{watch: {enabled: 'no'}}", "/watch/enabled"},
		{"{watch: {env: [{value: a}]}}", "/watch/env/0"},
		{"{image: {digest: v1}}", "/image/digest"},
		{"{image: {pullPolicy: Sometimes}}", "/image/pullPolicy"},
		{"{imagePullSecrets: [a]}", "/imagePullSecrets/0"},
		{"{trust: {caSecret: {name: Ca}}}", "/trust/caSecret/name"},
		{"{trust: {sources: [{}]}}", "/trust/sources/0"},
		{"{trust: {sources: [{secret: a, configMap: b}]}}", "/trust/sources/0"},
		{"{trust: {sources: [{secret: a}, {secret: a}]}}", "/trust/sources"},
		{"{webConfig: {probes: https}}", "/webConfig/probes"},
		{"{dnsPolicy: Node}", "/dnsPolicy"},
		{"{terminationGracePeriodSeconds: 1}", "/terminationGracePeriodSeconds"},
		{"{podMonitor: {interval: 30}}", "/podMonitor/interval"},
		{"{podMonitor: {endpoint: {relabelings: []}}}", "/podMonitor/endpoint/relabelings"}, // the chart's own would be gone
		{"{podMonitor: {endpoint: {interval: 1m}}}", "/podMonitor/endpoint/interval"},
		{"{podMonitor: {labels: {app.kubernetes.io/name: a}}}", "/podMonitor/labels/"},
		{"{prometheusRule: {labels: {app.kubernetes.io/instance: a}}}", "/prometheusRule/labels"},
		{"{dashboards: {labels: {helm.sh/chart: a}}}", "/dashboards/labels"},
		{"{podLabels: {app.kubernetes.io/name: a}}", "/podLabels/"},
		{"{podAnnotations: {checksum/config: a}}", "/podAnnotations/"},
		{"{prometheusRule: {runbooks: 'https://wiki.example.de/docs'}}", "/prometheusRule/runbooks"},
		{"{config: {node_name: a}}", "additional properties 'node_name' not allowed"},
		{"{config: {host_root: /}}", "additional properties 'host_root' not allowed"},
		{"{config: {http: {web_config: a}}}", "additional properties 'web_config' not allowed"},
		{"{config: {trust: {sources: [/a]}}}", "additional properties 'sources' not allowed"},
		{"{config: {log: {level: loud}}}", "/config/log/level"},
		{"{config: {http: {watch: '9853'}}}", "/config/http/watch"},
		{"{config: {kubernetes: {events: true}}}", "/config/kubernetes/events"},
		{"{config: {names: {ports: []}}}", "/config/names/ports"},
		{"{config: {names: {workloads: {cri: true}}}}", "/config/names/workloads/cri"},
		{"{config: {names: {lookups: {pending: 10}}}}", "/config/names/lookups/pending"},
		{"{config: {trust: {interval: 60}}}", "/config/trust/interval"},
		{"{config: {trust: {registries: registry.example.de}}}", "/config/trust/registries"},
		{"{config: {trust: {restarts: {concurrency: 21}}}}", "/config/trust/restarts/concurrency"},
		{"{config: {trust: {restarts: {days: [monday]}}}}", "/config/trust/restarts/days/0"},
		{"{config: {trust: {restarts: {start: 7h}}}}", "/config/trust/restarts/start"},
		{"{config: {trust: {restarts: {start: '24:00'}}}}", "/config/trust/restarts/start"},
		{"{config: {trust: {restarts: {end: '29:00'}}}}", "/config/trust/restarts/end"},
		{"{config: {trust: {runtimes: {podman: {}}}}}", "additional properties 'podman' not allowed"},
	}
	for _, tt := range tests {
		requests = append(requests, rendering{Values: parse(t, tt.values)})
	}
	for i, r := range renderAll(t, requests) {
		if !strings.Contains(r.Refused, tests[i].want) {
			t.Errorf("%s: refused: %q, want %q", tests[i].values, r.Refused, tests[i].want)
		}
	}
	if r := renderAll(t, []rendering{{Kubernetes: "1.24.17"}})[0]; !strings.Contains(r.Refused, ">=1.25") {
		t.Errorf("kubernetes 1.24: %q", r.Refused)
	}
}
