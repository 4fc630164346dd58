package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

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

// WebConfig is the path of a web configuration file, as Prometheus' exporters
// have it; empty for none.
type WebConfig string

// UnmarshalText takes an absolute path, and nothing. What the file says is looked
// at when HTTP starts: a single pass of trust does without it.
func (w *WebConfig) UnmarshalText(text []byte) error {
	if len(text) > 0 && !filepath.IsAbs(string(text)) {
		return fmt.Errorf("%q is no absolute path", text)
	}
	*w = WebConfig(text)
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
func (p Ports) String() string { return join(p) }

// Directory is an absolute path.
type Directory string

// UnmarshalText takes an absolute path.
func (d *Directory) UnmarshalText(text []byte) error {
	if !filepath.IsAbs(string(text)) {
		return fmt.Errorf("%q is no absolute path", text)
	}
	*d = Directory(filepath.Clean(string(text)))
	return nil
}

// Interface is the name of a network interface, with * and ? as wildcards.
type Interface string

// UnmarshalText takes a name or a pattern (path.Match).
func (i *Interface) UnmarshalText(text []byte) error {
	if _, err := path.Match(string(text), ""); err != nil || len(text) == 0 || strings.ContainsAny(string(text), "/ ") {
		return fmt.Errorf("%q is no interface: want a name such as eth0, or a pattern such as cali*", text)
	}
	*i = Interface(text)
	return nil
}

// Interfaces is a set of interfaces; an empty one means all.
type Interfaces []Interface

// String gives the interfaces as a flag takes them.
func (i Interfaces) String() string { return join(i) }

// Count is the number of lookups that may be pending.
type Count uint32

// UnmarshalText takes 1000 to 1000000.
func (c *Count) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil || n < 1000 || n > 1_000_000 {
		return fmt.Errorf("%q is no number from 1000 to 1000000", text)
	}
	*c = Count(n)
	return nil
}

// Duration is a time such as 30s.
type Duration time.Duration

// String gives the duration as a flag takes it.
func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalText takes 1ms to 24h.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < time.Millisecond || v > 24*time.Hour {
		return fmt.Errorf("%q is no duration from 1ms to 24h: want one such as 1.5s or 10m", text)
	}
	*d = Duration(v)
	return nil
}

// Endpoint is auto, off, or the path of a runtime's socket, with or without
// unix:// before it.
type Endpoint string

// UnmarshalText takes auto, off or an absolute path.
func (e *Endpoint) UnmarshalText(text []byte) error {
	socket := strings.TrimPrefix(string(text), "unix://")
	if socket != "auto" && socket != "off" && !filepath.IsAbs(socket) {
		return fmt.Errorf("%q is no socket: want auto, off or a path such as /run/containerd/containerd.sock", text)
	}
	*e = Endpoint(socket)
	return nil
}

// Switch is auto or off.
type Switch string

// UnmarshalText takes auto or off.
func (s *Switch) UnmarshalText(text []byte) error {
	if string(text) != "auto" && string(text) != "off" {
		return fmt.Errorf("%q is neither auto nor off", text)
	}
	*s = Switch(text)
	return nil
}

// Bool is true or false.
type Bool bool

// UnmarshalText takes true or false.
func (b *Bool) UnmarshalText(text []byte) error {
	switch string(text) {
	case "true":
		*b = true
	case "false":
		*b = false
	default:
		return fmt.Errorf("%q is neither true nor false", text)
	}
	return nil
}

// Name is a name to look up, with a dot at its end.
type Name string

// UnmarshalText takes a host name, and adds the dot.
func (n *Name) UnmarshalText(text []byte) error {
	if _, ok := dns.IsDomainName(string(text)); !ok || len(text) == 0 || strings.ContainsAny(string(text), " /:*") {
		return fmt.Errorf("%q is no name to look up: want one such as git.example.de", text)
	}
	*n = Name(dns.Fqdn(string(text)))
	return nil
}

// Names is a set of names.
type Names []Name

// String gives the names as a flag takes them.
func (n Names) String() string { return join(n) }

// Nameserver is a DNS server's address; the port is 53 unless it is given.
type Nameserver struct{ netip.AddrPort }

// UnmarshalText takes IP and IP:port.
func (n *Nameserver) UnmarshalText(text []byte) error {
	if addr, err := netip.ParseAddr(string(text)); err == nil {
		n.AddrPort = netip.AddrPortFrom(addr, 53)
		return nil
	}
	addr, err := netip.ParseAddrPort(string(text))
	if err == nil && addr.Port() == 0 {
		err = errors.New("port 0")
	}
	if err != nil {
		return fmt.Errorf("%q is no nameserver: want IP or IP:port", text)
	}
	n.AddrPort = addr
	return nil
}

// Nameservers is a set of nameservers.
type Nameservers []Nameserver

// String gives the nameservers as a flag takes them.
func (n Nameservers) String() string { return join(n) }

func join[T any](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ",")
}
