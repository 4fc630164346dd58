package agent

import "os"

// KubernetesConfig is about the cluster that the node belongs to.
type KubernetesConfig struct {
	Events Switch `yaml:"events" syntax:"auto|off" help:"whether Events are written on the pods that lose lookups and on the Node; auto: in a pod"`
}

// RestartsConfig is about when a daemon may be restarted.
type RestartsConfig struct {
	Concurrency Nodes    `yaml:"concurrency" syntax:"number" help:"how many nodes of the cluster may restart a daemon at once, 1 to 20, the same on all; 0: any number"`
	Days        Days     `yaml:"days" syntax:"mon,…,sun" help:"days on which a restart may begin; none: every day" max:"7" empty:"every day"`
	Start       DayStart `yaml:"start" syntax:"hh:mm" help:"time of the day from which a restart may begin"`
	End         DayTime  `yaml:"end" syntax:"hh:mm" help:"time of the day until which it may; one that is not after the start is on the next day"`
	TimeZone    TimeZone `yaml:"time_zone" syntax:"zone" help:"time zone of days, start and end, as in Europe/Berlin"`
}

func defaultRestarts() RestartsConfig {
	return RestartsConfig{Concurrency: 1, Start: "00:00", End: "24:00", TimeZone: "UTC"}
}

// Node is the node's name in Kubernetes where the pod was told it, and else the
// host's.
func (c Config) Node() string {
	if c.NodeName != "" {
		return string(c.NodeName)
	}
	if name := os.Getenv("NODE_NAME"); name != "" {
		return name
	}
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
