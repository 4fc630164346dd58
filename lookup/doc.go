// Package lookup sees DNS on the wire. It taps the node's links, and turns the
// packets into lookups: who asked what, how often, how long it took, what came
// back, and where on the node each packet was seen. It judges nothing and
// changes nothing; why a lookup was lost is package incident's to say.
package lookup
