// Package conntrack is the sensor on the kernel's connection tracking. It
// listens to ctnetlink for the few messages that mean a lost DNS lookup and
// reads the per-CPU statistics; what it sees it reports as plain values
// (Finding). It never changes the table, a rule or a sysctl.
package conntrack
