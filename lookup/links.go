package lookup

import (
	"fmt"
	"net"
	"path"

	"github.com/vishvananda/netlink"
)

// podLinks are the names that container networks give to the node's end of a
// pod's link: Calico, Cilium, most others, KubeVirt and Weave, GKE, AWS, Azure.
var podLinks = [...]string{"cali*", "lxc*", "veth*", "tap*", "gke*", "eni*", "azv*"}

// classify tells what each link is to the tracker. Of what is configured, only
// the links with these names or patterns count; none means all.
//
// A veth whose other end is in another namespace belongs to a pod, unless it
// has the address of a network: then it is the uplink of a node that is itself a
// container. One whose other end is here as well carries what other links see.
func classify(all []netlink.Link, networks map[int]bool, interfaces []string) []link {
	kinds := map[int]string{}
	for _, l := range all {
		kinds[l.Attrs().Index] = l.Type()
	}
	links := make([]link, 0, len(all))
	for _, l := range all {
		a := l.Attrs()
		r := roleOf(l, kinds[a.MasterIndex], networks[a.Index])
		if len(interfaces) > 0 && !matches(interfaces, a.Name) {
			r = ignored
		}
		links = append(links, link{index: int32(a.Index), name: a.Name, role: r})
	}
	return links
}

func roleOf(l netlink.Link, master string, network bool) role {
	a := l.Attrs()
	switch kind := l.Type(); {
	case a.Flags&net.FlagLoopback != 0:
		return loopback
	case master == "bond" || master == "team":
		return ignored
	case kind == "veth":
		switch {
		case a.NetNsID < 0 && a.ParentIndex != 0:
			return ignored
		case network && !matches(podLinks[:], a.Name):
			return uplink
		}
		return client
	case kind == "netkit":
		return client
	case kind == "bridge", kind == "dummy", kind == "ifb", kind == "nlmon", kind == "vrf", kind == "openvswitch":
		// What passes a bridge passes its ports; what goes to the address of a
		// dummy goes over lo.
		return ignored
	case kind == "tuntap" && matches(podLinks[:], a.Name):
		return client
	}
	return uplink
}

// matches tells whether the name is one of the names or fits one of the
// patterns.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); p == name || ok && err == nil {
			return true
		}
	}
	return false
}

// checkPatterns returns an error for a pattern that can match nothing.
func checkPatterns(interfaces []string) error {
	for _, p := range interfaces {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("interface %q: %w", p, err)
		}
	}
	return nil
}
