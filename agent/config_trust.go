package agent

import (
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
)

// TrustConfig is about the private CA that the node shall trust.
type TrustConfig struct {
	Sources    Directories    `yaml:"sources" syntax:"directories" help:"directories with the CA certificates, such as mounted Secrets" max:"16"`
	Allow      Fingerprints   `yaml:"allow" syntax:"fingerprints" help:"SHA-256 fingerprints of the certificates that may be installed; none: any valid CA" max:"64" empty:"any valid CA"`
	Overlap    Overlap        `yaml:"overlap" syntax:"duration" help:"how long a certificate stays after its source dropped it"`
	Interval   Duration       `yaml:"interval" syntax:"duration" help:"time from one look at the node to the next; a change of a source is seen at once"`
	Store      Switch         `yaml:"store" syntax:"auto|off" help:"whether certificates go into the node's trust store"`
	CertsD     Switch         `yaml:"certs_d" syntax:"auto|off" help:"whether they go into the daemons' certs.d directories, for the registries"`
	Registries Registries     `yaml:"registries" syntax:"registries" help:"private registries (host:port, or host), about which the daemons are asked" max:"64" empty:"none"`
	Restarts   RestartsConfig `yaml:"restarts"`
	Runtimes   RuntimesConfig `yaml:"runtimes"`
}

// RuntimesConfig is about the daemons that pull images.
type RuntimesConfig struct {
	Docker     DockerConfig  `yaml:"docker"`
	Containerd RuntimeConfig `yaml:"containerd"`
	CRIO       RuntimeConfig `yaml:"crio"`
}

// RuntimeConfig is about one daemon.
type RuntimeConfig struct {
	Enabled Switch  `yaml:"enabled" syntax:"auto|off" help:"whether the daemon is looked after, where there is one"`
	Unit    Unit    `yaml:"unit" syntax:"unit" help:"systemd unit of the daemon"`
	Restart Restart `yaml:"restart" syntax:"auto|always|never" help:"when it is restarted: auto only when it is needed, would help and is safe; always after each change of the trust store"`
}

// DockerConfig is about dockerd, whose restart may stop all its containers.
type DockerConfig struct {
	Enabled    Switch  `yaml:"enabled" syntax:"auto|off" help:"whether the daemon is looked after, where there is one"`
	Unit       Unit    `yaml:"unit" syntax:"unit" help:"systemd unit of the daemon"`
	Restart    Restart `yaml:"restart" syntax:"auto|always|never" help:"when it is restarted: auto only when it is needed, would help and is safe; always after each change of the trust store"`
	Disruptive Bool    `yaml:"disruptive" syntax:"true|false" help:"whether it may be restarted although that stops its containers (no live-restore)"`
}

func defaultTrust() TrustConfig {
	auto := Restart(daemon.Auto)
	return TrustConfig{
		Sources:  Directories{"/etc/nodestead/ca"},
		Interval: Duration(time.Minute),
		Store:    "auto",
		CertsD:   "auto",
		Restarts: defaultRestarts(),
		Runtimes: RuntimesConfig{
			Docker:     DockerConfig{Enabled: "auto", Unit: "docker.service", Restart: auto},
			Containerd: RuntimeConfig{Enabled: "auto", Unit: "containerd.service", Restart: auto},
			CRIO:       RuntimeConfig{Enabled: "auto", Unit: "crio.service", Restart: auto},
		},
	}
}
