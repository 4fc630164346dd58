package workload

import "net/netip"

// Workload is who uses an address. The zero value of a field means that it is
// not known.
type Workload struct {
	// Namespace, Pod and UID are Kubernetes' names for the pod. For a container
	// of Docker without Kubernetes, Pod is empty.
	Namespace, Pod, UID string
	// Container is the container that asked: the only one of its pod, or the
	// one whose process holds the socket.
	Container string
	// Host is true for a process in the node's own network.
	Host bool
	// Process is the name of the process that holds the socket (comm).
	Process string
	// Libc is "musl" or "glibc" where the process maps one, or "static".
	Libc string
	// Nameservers and Search are those of its resolv.conf, where readable.
	Nameservers []netip.Addr
	Search      []string
}

// Known tells whether a name was found.
func (w Workload) Known() bool { return w.Pod != "" || w.Container != "" || w.Process != "" }
