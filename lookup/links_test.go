package lookup

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestClassify(t *testing.T) {
	attrs := func(index int, name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs() // in no other namespace
		a.Index, a.Name = index, name
		return a
	}
	veth := func(index int, name string, peer, namespace int) netlink.Link {
		a := attrs(index, name)
		a.ParentIndex, a.NetNsID = peer, namespace
		return &netlink.Veth{LinkAttrs: a}
	}
	lo, slave, port := attrs(1, "lo"), attrs(11, "ens4"), attrs(12, "ens5")
	lo.Flags = net.FlagLoopback
	slave.MasterIndex, port.MasterIndex = 10, 20
	all := []netlink.Link{
		&netlink.Device{LinkAttrs: lo},
		&netlink.Device{LinkAttrs: attrs(2, "ens3")},
		&netlink.Vlan{LinkAttrs: attrs(3, "ens3.10")},
		veth(4, "eth0", 9, 0),     // of a node that is a container
		veth(5, "cali12ab", 2, 1), // Calico
		veth(6, "veth12ab", 2, 2), // the ptp plugin
		veth(7, "net1-x", 2, 3),   // no known name
		veth(8, "lxc_health", 2, 4),
		veth(9, "cilium_net", 13, -1),
		&netlink.Bond{LinkAttrs: attrs(10, "bond0")},
		&netlink.Device{LinkAttrs: slave},
		&netlink.Device{LinkAttrs: port},
		veth(13, "cilium_host", 9, -1),
		&netlink.Netkit{LinkAttrs: attrs(14, "nk0")},
		&netlink.Vxlan{LinkAttrs: attrs(15, "flannel.1")},
		&netlink.Wireguard{LinkAttrs: attrs(16, "wg0")},
		&netlink.Iptun{LinkAttrs: attrs(17, "tunl0")},
		&netlink.Dummy{LinkAttrs: attrs(18, "nodelocaldns")},
		&netlink.Tuntap{LinkAttrs: attrs(19, "tap3")},
		&netlink.Bridge{LinkAttrs: attrs(20, "cni0")},
		&netlink.Tuntap{LinkAttrs: attrs(21, "tun0")},
		&netlink.GenericLink{LinkAttrs: attrs(22, "ovs-system"), LinkType: "openvswitch"},
	}
	networks := map[int]bool{2: true, 4: true, 6: true, 18: true}
	want := map[string]role{
		"lo": loopback, "ens3": uplink, "ens3.10": uplink, "eth0": uplink, "cali12ab": client, "veth12ab": client, "net1-x": client,
		"lxc_health": client, "cilium_net": ignored, "bond0": uplink, "ens4": ignored, "ens5": uplink, "cilium_host": ignored,
		"nk0": client, "flannel.1": uplink, "wg0": uplink, "tunl0": uplink, "nodelocaldns": ignored, "tap3": client, "cni0": ignored,
		"tun0": uplink, "ovs-system": ignored,
	}
	roles := func(interfaces ...string) map[string]role {
		got := map[string]role{}
		for i, l := range classify(all, networks, interfaces) {
			if int(l.index) != all[i].Attrs().Index {
				t.Errorf("%s has the index %d", l.name, l.index)
			}
			got[l.name] = l.role
		}
		return got
	}
	if diff := cmp.Diff(want, roles()); diff != "" {
		t.Error(diff)
	}
	named := map[string]role{}
	for name := range want {
		named[name] = ignored
	}
	named["cali12ab"], named["ens3"], named["ens3.10"] = client, uplink, uplink
	if diff := cmp.Diff(named, roles("cali*", "ens3", "ens3.1?", "cni0")); diff != "" {
		t.Error(diff)
	}
	if _, err := Open(Config{Interfaces: []string{"cali["}}); err == nil {
		t.Error("a pattern that can match nothing is taken")
	}
}
