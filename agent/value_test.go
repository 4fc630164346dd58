package agent

import (
	"encoding"
	"strings"
	"testing"
)

func TestValues(t *testing.T) {
	for _, tt := range []struct {
		value     encoding.TextUnmarshaler
		good, bad []string
	}{
		{new(Directory), []string{"/", "/host"}, []string{"", "host", "./host"}},
		{new(Interface), []string{"eth0", "cali*", "veth?[0-9]"}, []string{"", "a b", "a/b", "[a"}},
		{new(Count), []string{"1000", "1000000"}, []string{"", "999", "1000001", "-1", "1e5", "many"}},
		{new(Duration), []string{"1ms", "1.5s", "24h"}, []string{"", "0", "5", "-1s", "25h", "1 s"}},
		{new(Endpoint), []string{"auto", "off", "/run/crio/crio.sock", "unix:///run/c.sock"}, []string{"", "on", "tcp://1.2.3.4:5", "run/c.sock"}},
		{new(Switch), []string{"auto", "off"}, []string{"", "on", "true"}},
		{new(Bool), []string{"true", "false"}, []string{"", "yes", "1", "True"}},
		{new(Name), []string{"git.example.de", "git.example.de.", "localhost"}, []string{"", "a b", "https://a", "a..b", "*.a"}},
		{new(Nameserver), []string{"10.96.0.10", "10.96.0.10:5353", "fd00::a", "[fd00::a]:53"}, []string{"", "dns", "dns:53", "10.96.0.10:0", "10.96.0.10:x"}},
		{new(Fingerprint), []string{strings.Repeat("0a", 32), strings.Repeat("0A", 32), strings.TrimSuffix(strings.Repeat("0A:", 32), ":")},
			[]string{"", "0a", strings.Repeat("0a", 31), strings.Repeat("0a", 33), strings.Repeat("0g", 32)}},
		{new(Overlap), []string{"0", "0s", "1ms", "72h", "8760h"}, []string{"", "-1s", "8761h", "3d", "5"}},
		{new(Registry), []string{"registry.example.de:5000", "10.0.0.1:443", "localhost:5000", "registry.example.de", "[fd00::1]:5000"}, []string{"", "registry", "registry.example.de:", "registry.example.de:0", ":5000", "https://registry.example.de:443", "registry.example.de:5000/group"}},
		{new(Unit), []string{"docker.service", "snap.docker.dockerd.service", "k3s@1.service", `a\x2db.service`}, []string{"", "docker", "docker.socket", ".service", "a/b.service", "a b.service"}},
		{new(NodeName), []string{"", "worker-1", "ip-10-0-0-1.eu-central-1.compute.internal", strings.Repeat("a", 253)}, []string{"Worker", "a b", "a..b", "-a", "a_b", "a\nb", strings.Repeat("a", 254)}},
		{new(Nodes), []string{"0", "1", "20"}, []string{"", "-1", "21", "1.5", "many"}},
		{new(Day), []string{"mon", "sun", "Tue"}, []string{"", "monday", "weekend", "1"}},
		{new(DayStart), []string{"00:00", "23:59"}, []string{"", "24:00", "24:01", "9", "9pm", "12:60"}},
		{new(DayTime), []string{"00:00", "06:30", "24:00"}, []string{"", "24:01", "25:00", "9", "9pm", "12:60"}},
		{new(TimeZone), []string{"UTC", "Europe/Berlin", "America/New_York"}, []string{"", "Local", "local", "Berlin", "../etc/passwd"}},
		{new(Restart), []string{"auto", "always", "never"}, []string{"", "on", "Auto", "off"}},
	} {
		for _, text := range tt.good {
			if err := tt.value.UnmarshalText([]byte(text)); err != nil {
				t.Errorf("%T of %q: %v", tt.value, text, err)
			}
		}
		for _, text := range tt.bad {
			if err := tt.value.UnmarshalText([]byte(text)); err == nil {
				t.Errorf("%T of %q is taken", tt.value, text)
			}
		}
	}
	var f Fingerprint
	if err := f.UnmarshalText([]byte(strings.TrimSuffix(strings.Repeat("0A:", 32), ":"))); err != nil || f != Fingerprint(strings.Repeat("0a", 32)) {
		t.Errorf("fingerprint %q, %v", f, err)
	}
	var n Name
	var s Nameserver
	if err := n.UnmarshalText([]byte("git.example.de")); err != nil || n != "git.example.de." {
		t.Errorf("name %q, %v", n, err)
	}
	if err := s.UnmarshalText([]byte("fd00::a")); err != nil || s.String() != "[fd00::a]:53" {
		t.Errorf("nameserver %v, %v", s, err)
	}
}

func TestEmptyLists(t *testing.T) {
	for _, text := range []string{"names: {probe: {names: []}}", "names: {lookups: {interfaces: []}}", "trust: {allow: [], registries: []}"} {
		if _, err := Load(write(t, text), nil, nil); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	cfg, err := Load(write(t, "names: {probe: {names: [a, b]}}"), []string{"NODESTEAD_NAMES_PROBE_NAMES="}, nil)
	if err != nil || len(cfg.Names.Probe.Names) != 0 {
		t.Errorf("an empty variable leaves %v, %v", cfg.Names.Probe.Names, err)
	}
}
