package conntrack

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/nodestead/nodestead/internal/lab"
)

// A look without a sensor: statistics, settings, exemptions, and where a flow
// was translated to.
func TestInspect(t *testing.T) {
	b := newBox(t, lab.Random, lab.Rule{Name: "*", Addrs: answer})
	b.install("nftables")
	err := b.Node().Do(func() error {
		before, clashResolve, err := ReadStatistics()
		if err != nil || !clashResolve || before.Limit == 0 {
			t.Errorf("statistics %+v, clash_resolve %v, error %v", before, clashResolve, err)
		}
		s, err := ReadSettings()
		if err != nil || !s.Loaded || s.Events != "2" || s.Accounting != "0" || s.Timestamps != "0" || s.Max != before.Limit || s.Buckets == 0 {
			t.Errorf("settings %+v, error %v", s, err)
		}
		e, err := FindExemption(nil)
		if err != nil || e != (Exemption{}) {
			t.Errorf("exemption %+v, error %v", e, err)
		}
		backends := []netip.AddrPort{netip.AddrPortFrom(b.servers[0].Addr4, 53), netip.AddrPortFrom(b.servers[1].Addr4, 53)}
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(service4, 53)))
		if err != nil {
			return err
		}
		defer c.Close()
		flow := Tuple{Source: c.LocalAddr().(*net.UDPAddr).AddrPort(), Destination: netip.AddrPortFrom(service4, 53)}
		if backend, found, err := FindBackend(flow); found || err != nil {
			t.Errorf("before a packet: backend %v, found %v, error %v", backend, found, err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		if backend, found, err := FindBackend(flow); !found || err != nil || !slices.Contains(backends, backend) {
			t.Errorf("backend %v, found %v, error %v; want one of %v", backend, found, err, backends)
		}
		after, _, err := ReadStatistics()
		if err != nil || after.Entries <= before.Entries {
			t.Errorf("%d entries, before the flow %d, error %v", after.Entries, before.Entries, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.command("nft", "add table inet t")
	b.command("nft", "add chain inet t early { type filter hook prerouting priority -300; }")
	b.command("nft", "add rule inet t early udp dport 53 notrack")
	for _, tc := range []struct {
		ports []uint16
		found bool
	}{{nil, true}, {[]uint16{53}, true}, {[]uint16{5353}, false}} {
		if err := b.Node().Do(func() error {
			e, err := FindExemption(tc.ports)
			if (e.Rule != "") != tc.found || e.NodeLocal {
				t.Errorf("ports %v: exemption %+v", tc.ports, e)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	pod := b.pod("empty") // a namespace without connection tracking
	if err := pod.Do(func() error {
		if _, _, err := ReadStatistics(); err != nil {
			t.Errorf("statistics: %v", err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestInspectWithoutNetAdmin(t *testing.T) {
	lab.ForTest(t)
	if err := withoutNetAdmin(func() error {
		if _, _, err := ReadStatistics(); !errors.Is(err, ErrPermission) {
			t.Errorf("statistics: error %v", err)
		}
		if _, err := FindExemption(nil); !errors.Is(err, ErrPermission) {
			t.Errorf("exemption: error %v", err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
