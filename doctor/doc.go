// Package doctor asks a node everything that is known to break name lookups,
// and the trust in a private CA, and gives a verdict on each with evidence and
// remedy. It looks once, within some seconds, and changes nothing.
package doctor
