package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Config is the agent's configuration; Default gives its defaults. A field's
// tags are all that a key needs: from them come its path in the file, its
// environment variable, its flag and their help (see Keys). A field's type must
// implement encoding.TextUnmarshaler and refuse what is no good value; a list
// is a slice of such a type, and is a set: no value may stand in it twice.
type Config struct {
	Log   LogConfig   `yaml:"log"`
	HTTP  HTTPConfig  `yaml:"http"`
	Names NamesConfig `yaml:"names"`
}

// LogConfig is how the agent logs.
type LogConfig struct {
	Level  Level  `yaml:"level" syntax:"debug|info|warn|error" help:"lowest level that is logged"`
	Format Format `yaml:"format" syntax:"text|json" help:"form of the log lines"`
}

// HTTPConfig is where the agent serves HTTP.
type HTTPConfig struct {
	Watch Address `yaml:"watch" syntax:"address" help:"IP address (none: all) and port of /metrics, /healthz and /readyz"`
}

// NamesConfig is about DNS lookups.
type NamesConfig struct {
	Ports Ports `yaml:"ports" syntax:"ports" help:"UDP ports that DNS clients ask, at most 16, separated by commas" max:"16"`
}

// Default gives the configuration that holds where nothing is set.
func Default() Config {
	return Config{
		Log:   LogConfig{Level: Level(slog.LevelInfo), Format: Text},
		HTTP:  HTTPConfig{Watch: ":9853"},
		Names: NamesConfig{Ports: Ports{53}},
	}
}

// Level is the lowest level that is logged.
type Level slog.Level

// String gives the level as it stands in the configuration.
func (l Level) String() string { return strings.ToLower(slog.Level(l).String()) }

// UnmarshalText takes debug, info, warn or error.
func (l *Level) UnmarshalText(text []byte) error {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if string(text) == Level(level).String() {
			*l = Level(level)
			return nil
		}
	}
	return fmt.Errorf("%q is no level: want debug, info, warn or error", text)
}

// Format is the form of the log lines.
type Format string

// The formats.
const (
	Text Format = "text" // key=value
	JSON Format = "json" // one object a line
)

// UnmarshalText takes text or json.
func (f *Format) UnmarshalText(text []byte) error {
	switch got := Format(text); got {
	case Text, JSON:
		*f = got
		return nil
	default:
		return fmt.Errorf("%q is no format: want text or json", text)
	}
}

// Address is an address to listen on: IP:port, or :port for all addresses.
// With port 0 the kernel chooses one. It is never a name, so that listening
// needs no lookup.
type Address string

// UnmarshalText takes IP:port and :port.
func (a *Address) UnmarshalText(text []byte) error {
	host, port, err := net.SplitHostPort(string(text))
	if err == nil && host != "" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is no address to listen on: want :port or IP:port, such as :9853 or 127.0.0.1:9853", text)
	}
	*a = Address(text)
	return nil
}

// Port is a UDP port.
type Port uint16

// UnmarshalText takes 1 to 65535 in plain decimal.
func (p *Port) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil || n == 0 || text[0] == '0' {
		return fmt.Errorf("%q is no port: want 1 to 65535", text)
	}
	*p = Port(n)
	return nil
}

// Ports is a set of ports.
type Ports []Port

// String gives the ports as a flag takes them.
func (p Ports) String() string {
	texts := make([]string, len(p))
	for i, port := range p {
		texts[i] = strconv.Itoa(int(port))
	}
	return strings.Join(texts, ",")
}
