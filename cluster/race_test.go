//go:build race

package cluster

// raced: the race detector makes the long tests too slow to run whole.
const raced = true
