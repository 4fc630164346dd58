// Package probe is the active canary: it asks names from the node the way musl
// asks, and says what each nameserver made of it. It also finds the nameservers
// that the node's pods ask. It explains nothing and changes nothing.
package probe
