package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/nodestead/nodestead/internal/lab"
)

// nodeLocal is the address that NodeLocal DNSCache has on every node.
var nodeLocal = netip.MustParseAddr("169.254.20.10")

// addNodeLocal makes what NodeLocal DNSCache makes on a node: its link with its
// address, its rules, and the cache, which is CoreDNS.
func (s *stage) addNodeLocal() error {
	local := nodeLocal.String()
	commands := [][]string{
		{"ip", "link", "add", "nodelocaldns", "type", "veth", "peer", "name", "nodelocalpeer"},
		{"ip", "address", "add", local + "/32", "dev", "nodelocaldns"},
		{"ip", "link", "set", "nodelocaldns", "up"},
	}
	for _, protocol := range []string{"udp", "tcp"} {
		for _, rule := range [][]string{
			{"PREROUTING", "--destination", local, "--protocol", protocol, "--dport", "53"},
			{"OUTPUT", "--destination", local, "--protocol", protocol, "--dport", "53"},
			{"OUTPUT", "--source", local, "--protocol", protocol, "--sport", "53"},
		} {
			commands = append(commands, append(append([]string{"iptables", "--wait", "--table", "raw", "--append"}, rule...), "--jump", "NOTRACK"))
		}
	}
	for _, command := range commands {
		if _, err := s.box.Run(s.ctx, command...); err != nil {
			return err
		}
	}
	// In the node's network, with the one address.
	node := lab.Pod{Namespace: s.Node(), Addr4: nodeLocal, Addr6: nodeLocal}
	_, err := node.RunCoreDNS(fmt.Sprintf(". {\n bind {addr4}\n cache\n forward . %s\n}\n", s.upstream.Addr4))
	return err
}

// untracked checks that conntrack knows what the cache asked and not what it
// was asked.
func (s *stage) untracked() error {
	return s.Node().Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("list the conntrack table: %w", err)
		}
		forwarded := false
		for _, f := range flows {
			if f.Forward.DstIP.Equal(nodeLocal.AsSlice()) {
				return fmt.Errorf("conntrack has %v", f)
			}
			forwarded = forwarded || f.Forward.DstIP.Equal(s.upstream.Addr4.AsSlice())
		}
		if !forwarded {
			return errors.New("conntrack has nothing of the cache's own questions")
		}
		return nil
	})
}
