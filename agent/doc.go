// Package agent is what runs on a node: it holds the configuration, wires the
// two halves, names and trust, and serves what they say over HTTP. It decides
// nothing about lookups itself (package incident does), and nothing about trust
// (package certsync does). The half for names never changes the node.
package agent
