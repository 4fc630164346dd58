// Package agent is what runs on a node: it holds the configuration, opens the
// sensors, turns their findings into log lines and metrics, and serves those
// over HTTP. It decides nothing about lookups itself (package incident does),
// and it never changes the node.
package agent
