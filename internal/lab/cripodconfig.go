package lab

import "net/netip"

// CRIPodConfig says what a pod of a box looks like. Only Name is needed.
type CRIPodConfig struct {
	// Namespace is "default" when it is empty.
	Namespace, Name string
	// Containers are the names of its containers, "app" when there are none. All
	// are alike.
	Containers []string
	// Nameservers, Search and Options ("ndots:5") go to its resolv.conf.
	Nameservers []netip.Addr
	Search      []string
	Options     []string
	// HostNetwork puts it into the node's network.
	HostNetwork bool

	// Image is what its containers are made of, which the box has by Load or a
	// pull; that with the programs of the resolvers when it is empty.
	Image string
	// Command is what they run, with its arguments, instead of the image's.
	Command []string
	// Mounts are directories and files of the node that they have.
	Mounts []Mount
	// Privileged gives them all capabilities and devices.
	Privileged bool
}

// Mount is a directory or file of the node in a container.
type Mount struct {
	Host, Container string // the paths
	ReadOnly        bool
	// Follow: what the node mounts below it later appears in the container
	// (HostToContainer in a pod's specification).
	Follow bool
}
