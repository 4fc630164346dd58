// Package e2e has the end-to-end tests: nodestead as the pods of a DaemonSet on a
// real Kubernetes, seen only as an operator sees it, by kubectl and docker. They
// take minutes, and run only when they are asked for, by make e2e.
package e2e
