// Package workload answers whose an address is: from a link, an address, a port
// and a time to pod, container, process and libc. It learns from the container
// runtime (CRI, or Docker's API where there is none), from the kernel's links,
// routes and sockets, and from /proc. Each source may be missing; what is not
// known is left empty, never guessed. It changes nothing.
package workload
