// Package certsync makes a node trust a private CA: it reads the CA from its
// sources, puts it where the node's daemons look, proves that they trust it, and
// restarts one only when that is needed and safe.
//
// A pass goes one way: sources → validated anchors (package anchor) → a plan, a
// plain value → files and the distribution's tool (package place) → what the
// daemons say of it (package daemon) → perhaps a restart. All of the node is
// reached through package host.
package certsync
