package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"
)

// Config is the agent's configuration; Default gives its defaults. A field's
// tags are all that a key needs: from them come its path in the file, its
// environment variable, its flag and their help (see Keys). A field's type must
// implement encoding.TextUnmarshaler and refuse what is no good value; a list
// is a slice of such a type, and is a set: no value may stand in it twice. The
// tag empty says what an empty list or text stands for, where it may be empty.
type Config struct {
	Log        LogConfig        `yaml:"log"`
	HTTP       HTTPConfig       `yaml:"http"`
	NodeName   NodeName         `yaml:"node_name" syntax:"name" help:"this node's name in Kubernetes; none: $NODE_NAME, else the host's name" empty:"$NODE_NAME, else the host's name"`
	HostRoot   Directory        `yaml:"host_root" syntax:"directory" help:"where the host's file system is mounted; without /host it is /"`
	Kubernetes KubernetesConfig `yaml:"kubernetes"`
	Names      NamesConfig      `yaml:"names"`
	Trust      TrustConfig      `yaml:"trust"`
}

// LogConfig is how the agent logs.
type LogConfig struct {
	Level  Level  `yaml:"level" syntax:"debug|info|warn|error" help:"lowest level that is logged"`
	Format Format `yaml:"format" syntax:"text|json" help:"form of the log lines"`
}

// HTTPConfig is where the agent serves HTTP.
type HTTPConfig struct {
	Watch     Address   `yaml:"watch" syntax:"address" help:"IP address (none: all) and port of the status page (/), /metrics, /healthz, /readyz and /api/v1/incidents"`
	Trust     Address   `yaml:"trust" syntax:"address" help:"the same for the trust half alone: the status page (/), /metrics, /healthz and /readyz"`
	WebConfig WebConfig `yaml:"web_config" syntax:"file" help:"web configuration of the Prometheus exporters (TLS, basic auth) for HTTP; none: plain HTTP, open to all" empty:"none"`
}

// NamesConfig is about DNS lookups.
type NamesConfig struct {
	Ports     Ports           `yaml:"ports" syntax:"ports" help:"UDP ports of DNS, of services and of the servers behind them, at most 16, separated by commas" max:"16"`
	Lookups   LookupsConfig   `yaml:"lookups"`
	Workloads WorkloadsConfig `yaml:"workloads"`
	Probe     ProbeConfig     `yaml:"probe"`
	Metrics   MetricsConfig   `yaml:"metrics"`
}

// LookupsConfig is about DNS on the wire.
type LookupsConfig struct {
	Interfaces Interfaces `yaml:"interfaces" syntax:"names" help:"interfaces to tap, with * and ? as wildcards; none: all" max:"64" empty:"all"`
	Pending    Count      `yaml:"pending" syntax:"number" help:"lookups that may be pending at a time, 1000 to 1000000"`
	Slow       Duration   `yaml:"slow" syntax:"duration" help:"a lookup that takes longer is logged, at debug"`
}

// WorkloadsConfig is about whose an address is.
type WorkloadsConfig struct {
	CRI  Endpoint `yaml:"cri" syntax:"auto|off|socket" help:"socket of the container runtime; auto finds it"`
	Proc Switch   `yaml:"proc" syntax:"auto|off" help:"whether processes are looked at"`
}

// ProbeConfig is about the lookups that the agent makes itself.
type ProbeConfig struct {
	Names       Names       `yaml:"names" syntax:"names" help:"names to look up from the node; none: the probe is off" max:"16" empty:"none"`
	Nameservers Nameservers `yaml:"nameservers" syntax:"addresses" help:"nameservers to ask, IP or IP:port; none: those of the pods" max:"8" empty:"those of the pods"`
	Interval    Duration    `yaml:"interval" syntax:"duration" help:"time from one probe to the next"`
}

// MetricsConfig is about the labels of metrics.
type MetricsConfig struct {
	PodLabel Bool `yaml:"pod_label" syntax:"true|false" help:"whether failures have the pod as a label"`
}

// Default gives the configuration that holds where nothing is set.
func Default() Config {
	return Config{
		Log:        LogConfig{Level: Level(slog.LevelInfo), Format: Text},
		HTTP:       HTTPConfig{Watch: ":9853", Trust: ":9854"},
		HostRoot:   "/host",
		Kubernetes: KubernetesConfig{Events: "auto"},
		Names: NamesConfig{
			Ports:     Ports{53},
			Lookups:   LookupsConfig{Pending: 100_000, Slow: Duration(time.Second)},
			Workloads: WorkloadsConfig{CRI: "auto", Proc: "auto"},
			Probe:     ProbeConfig{Interval: Duration(30 * time.Second)},
			Metrics:   MetricsConfig{PodLabel: true},
		},
		Trust: defaultTrust(),
	}
}

// Root is where the host's file system is: host_root; or / when that has its
// default and there is no such directory, as on the bare host.
func (c Config) Root() string {
	if c.HostRoot == Default().HostRoot {
		if _, err := os.Stat(string(c.HostRoot)); errors.Is(err, fs.ErrNotExist) {
			return "/"
		}
	}
	return string(c.HostRoot)
}
