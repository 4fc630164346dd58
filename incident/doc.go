// Package incident explains what the sensors saw: it turns their findings into
// an Incident with a cause, the evidence for it and a remedy that an operator
// can carry out, and it merges repeated ones so that a burst is one line. It is
// pure: it opens nothing, starts nothing and reads no clock. It never guesses a
// cause.
package incident
