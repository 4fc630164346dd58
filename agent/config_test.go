package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write puts a configuration file into a directory of the test.
func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "n.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKeys(t *testing.T) {
	var got []string
	envs := make(map[string]bool)
	for _, key := range Keys() {
		got = append(got, key.Path+" "+key.Env+" "+key.Default)
		if envs[key.Env] {
			t.Errorf("%s: another key has the environment variable %s", key.Path, key.Env)
		}
		envs[key.Env] = true
		if key.Help == "" || key.Syntax == "" {
			t.Errorf("%s: no help or no syntax", key.Path)
		}
		if key.list && key.max == 0 {
			t.Errorf("%s: a list without the tag max", key.Path)
		}
	}
	want := []string{
		"log.level NODESTEAD_LOG_LEVEL info",
		"log.format NODESTEAD_LOG_FORMAT text",
		"http.watch NODESTEAD_HTTP_WATCH :9853",
		"http.trust NODESTEAD_HTTP_TRUST :9854",
		"http.web_config NODESTEAD_HTTP_WEB_CONFIG ",
		"node_name NODESTEAD_NODE_NAME ",
		"host_root NODESTEAD_HOST_ROOT /host",
		"kubernetes.events NODESTEAD_KUBERNETES_EVENTS auto",
		"names.ports NODESTEAD_NAMES_PORTS 53",
		"names.lookups.interfaces NODESTEAD_NAMES_LOOKUPS_INTERFACES ",
		"names.lookups.pending NODESTEAD_NAMES_LOOKUPS_PENDING 100000",
		"names.lookups.slow NODESTEAD_NAMES_LOOKUPS_SLOW 1s",
		"names.workloads.cri NODESTEAD_NAMES_WORKLOADS_CRI auto",
		"names.workloads.proc NODESTEAD_NAMES_WORKLOADS_PROC auto",
		"names.probe.names NODESTEAD_NAMES_PROBE_NAMES ",
		"names.probe.nameservers NODESTEAD_NAMES_PROBE_NAMESERVERS ",
		"names.probe.interval NODESTEAD_NAMES_PROBE_INTERVAL 30s",
		"names.metrics.pod_label NODESTEAD_NAMES_METRICS_POD_LABEL true",
		"trust.sources NODESTEAD_TRUST_SOURCES /etc/nodestead/ca",
		"trust.allow NODESTEAD_TRUST_ALLOW ",
		"trust.overlap NODESTEAD_TRUST_OVERLAP 0s",
		"trust.interval NODESTEAD_TRUST_INTERVAL 1m0s",
		"trust.store NODESTEAD_TRUST_STORE auto",
		"trust.certs_d NODESTEAD_TRUST_CERTS_D auto",
		"trust.registries NODESTEAD_TRUST_REGISTRIES ",
		"trust.restarts.concurrency NODESTEAD_TRUST_RESTARTS_CONCURRENCY 1",
		"trust.restarts.days NODESTEAD_TRUST_RESTARTS_DAYS ",
		"trust.restarts.start NODESTEAD_TRUST_RESTARTS_START 00:00",
		"trust.restarts.end NODESTEAD_TRUST_RESTARTS_END 24:00",
		"trust.restarts.time_zone NODESTEAD_TRUST_RESTARTS_TIME_ZONE UTC",
		"trust.runtimes.docker.enabled NODESTEAD_TRUST_RUNTIMES_DOCKER_ENABLED auto",
		"trust.runtimes.docker.unit NODESTEAD_TRUST_RUNTIMES_DOCKER_UNIT docker.service",
		"trust.runtimes.docker.restart NODESTEAD_TRUST_RUNTIMES_DOCKER_RESTART auto",
		"trust.runtimes.docker.disruptive NODESTEAD_TRUST_RUNTIMES_DOCKER_DISRUPTIVE false",
		"trust.runtimes.containerd.enabled NODESTEAD_TRUST_RUNTIMES_CONTAINERD_ENABLED auto",
		"trust.runtimes.containerd.unit NODESTEAD_TRUST_RUNTIMES_CONTAINERD_UNIT containerd.service",
		"trust.runtimes.containerd.restart NODESTEAD_TRUST_RUNTIMES_CONTAINERD_RESTART auto",
		"trust.runtimes.crio.enabled NODESTEAD_TRUST_RUNTIMES_CRIO_ENABLED auto",
		"trust.runtimes.crio.unit NODESTEAD_TRUST_RUNTIMES_CRIO_UNIT crio.service",
		"trust.runtimes.crio.restart NODESTEAD_TRUST_RUNTIMES_CRIO_RESTART auto",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// TestDefaultsAreGood gives every default as text, as a flag would.
func TestDefaultsAreGood(t *testing.T) {
	flags := make(map[string]string)
	for _, key := range Keys() {
		flags[key.Path] = key.Default
	}
	cfg, err := Load("", nil, flags)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), cfg); diff != "" {
		t.Errorf("defaults as flags (-want +got):\n%s", diff)
	}
}

// TestExampleIsTheDefault holds the documented file: it has every key, and
// changes none.
func TestExampleIsTheDefault(t *testing.T) {
	const file = "testdata/nodestead.yaml"
	cfg, err := Load(file, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), cfg); diff != "" {
		t.Errorf("example (-want +got):\n%s", diff)
	}

	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	zero := map[string]string{
		"log.level":                        "\n  level: info\n",
		"trust.overlap":                    "\n  overlap: 0s\n",
		"trust.runtimes.docker.disruptive": "\n      disruptive: false\n",
	}
	l := newLoader()
	l.cfg = Config{}
	l.file(file, data)
	v := reflect.ValueOf(l.cfg)
	for _, key := range Keys() {
		// A default that is the zero value may still have been set.
		if v.FieldByIndex(key.index).IsZero() && zero[key.Path] == "" && key.empty == "" {
			t.Errorf("the example lacks %s", key.Path)
		}
	}
	for path, line := range zero {
		if !strings.Contains(string(data), line) {
			t.Errorf("the example lacks %s", path)
		}
	}
}

func TestOrder(t *testing.T) {
	file := write(t, "log: {level: warn, format: json}\nhttp: {watch: ':1'}\nnames: {ports: [1]}\n")
	environ := []string{"NODESTEAD_HTTP_WATCH=:2", "NODESTEAD_NAMES_PORTS=2,22", "NODESTEAD_LOG_FORMAT=text"}
	flags := map[string]string{"names.ports": "3, 33", "log.format": "json"}
	config := func(format Format, watch Address, ports ...Port) Config {
		cfg := Default()
		cfg.Log = LogConfig{Level(slog.LevelWarn), format}
		cfg.HTTP.Watch, cfg.Names.Ports = watch, ports
		return cfg
	}
	tests := []struct {
		name    string
		file    string
		environ []string
		flags   map[string]string
		want    Config
	}{
		{
			name: "default",
			want: Default(),
		},
		{
			name: "file",
			file: file,
			want: config(JSON, ":1", 1),
		},
		{
			name: "environment over file",
			file: file, environ: environ,
			want: config(Text, ":2", 2, 22),
		},
		{
			name: "flag over environment over file",
			file: file, environ: environ, flags: flags,
			want: config(JSON, ":2", 3, 33),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Load(tt.file, tt.environ, tt.flags)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNode: the setting is before the environment, and that before the host.
func TestNode(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ set, environ, want string }{
		{"", "", host}, {"", "worker-7", "worker-7"}, {"worker-8", "worker-7", "worker-8"},
	} {
		t.Setenv("NODE_NAME", tt.environ)
		cfg := Default()
		cfg.NodeName = NodeName(tt.set)
		if got := cfg.Node(); got != tt.want {
			t.Errorf("set to %q, with %q in the environment: %q, want %q", tt.set, tt.environ, got, tt.want)
		}
	}
}

// TestServiceVariables: Kubernetes sets these in every pod of a namespace that
// has a Service named nodestead.
func TestServiceVariables(t *testing.T) {
	cfg, err := Load("", []string{
		"NODESTEAD_PORT=tcp://10.96.7.7:9853",
		"NODESTEAD_PORT_9853_TCP_ADDR=10.96.7.7",
		"NODESTEAD_SERVICE_HOST=10.96.7.7",
		"NODESTEAD_SERVICE_PORT_HTTP=9853",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), cfg); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestGoodFiles(t *testing.T) {
	ports := func(p ...Port) Config {
		cfg := Default()
		cfg.Names.Ports = p
		return cfg
	}
	tests := []struct {
		name, text string
		want       Config
	}{
		{"empty", "", Default()},
		{"comment", "# nothing\n", Default()},
		{"empty document", "---\n", Default()},
		{"empty sections", "log:\nhttp: {}\nnames:\n  # ports: [1]\n", Default()},
		{"block list", "names:\n  ports:\n  - 53\n  - 5353\n", ports(53, 5353)},
		{"sixteen", "names: {ports: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,65535]}", ports(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 65535)},
		{"anchor", "names: {ports: [&p 5]}\nlog: &l {level: info}\n", ports(5)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Load(write(t, tt.text), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	for text, good := range map[string]bool{
		":9853": true, ":0": true, "127.0.0.1:1": true, "[::1]:65535": true, "[fe80::1%eth0]:80": true,
		"": false, "9853": false, ":": false, ":65536": false, ":http": false, "localhost:80": false,
		"::1:80": false, "127.0.0.1": false, "1.2.3:80": false, ":-1": false, ":+1": false,
	} {
		var a Address
		if err := a.UnmarshalText([]byte(text)); (err == nil) != good {
			t.Errorf("address %q: error %v, want good: %v", text, err, good)
		}
	}
}
