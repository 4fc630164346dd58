// Package lab is a node in a box: a network namespace that forwards, does
// kube-proxy's DNAT and tracks connections, with pods on one side of it, DNS
// servers on the other, and real resolvers (musl, glibc, Go) to run in the pods.
// Tests, benchmarks and the demo share it.
//
//	pod "a" ── caliN ┐                               ┌ backend (scripted server)
//	pod "b" ── caliN ┤ node ── eth0 ═══ eth0 ─ remote ┤
//	pod "c" ── caliN ┘  nft DNAT, conntrack           └ backend (CoreDNS)
//
// A lab can also boot a box on its node: a Debian with systemd, containerd and
// dockerd, which runs pods as kubelet would have them.
//
//	CRI pod ── vethN ┤ node ── …        remote ─ registry, with a certificate of a CA
//
// A box can become the only node of a real Kubernetes, see Box.StartKubernetes.
//
// For tests of trust it has a PKI, and real registries whose certificates come
// from that, from which the box's daemons pull. A box can be laid out as RHEL.
//
// Everything lives in namespaces without a name that end with the process, and a
// box in cgroups of its own, so several labs run side by side with the same
// addresses. The package needs root and never touches the network, the files
// under /etc, the conntrack table or the services of the machine that it runs
// on, except that it installs the Debian packages that it needs.
package lab
