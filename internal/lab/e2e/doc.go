// Package e2e has the end-to-end tests: nodestead, installed by its chart on a real
// Kubernetes, seen only as an operator sees it: by kubectl, docker and Prometheus, and
// on its status page. They take minutes, and run only when they are asked for, by
// make e2e.
package e2e
