// Package cluster is what the agent needs of Kubernetes' API, and nothing more:
// restart slots, which limit how many nodes restart a runtime at once (Leases of
// coordination.k8s.io), and Events on the pod that lost lookups and on the Node.
//
// It reads nothing else of the cluster than those Leases and the labels of its
// own node, and knows nothing of lookups, anchors or daemons. Without an API
// server nobody gets a slot, Events are lost and counted, and all else goes on.
//
// Slots are safe before they are quick: no slot has two holders, whatever becomes
// of requests and answers on their way, and whatever the nodes' clocks say. What
// that rests on stands at sight.judge and at hold.
package cluster
