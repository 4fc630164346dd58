package daemon

import (
	"regexp"
	"strings"
)

// unknownAuthority is what crypto/x509 says when no root that was loaded leads
// to a certificate; more may follow: (possibly because of …).
const unknownAuthority = "x509: certificate signed by unknown authority"

// expired is what it says when a certificate of the chain is not valid now: the
// server's, or the only root that leads to it.
const expired = "x509: certificate has expired"

var (
	// quoted is what a registry itself said, and docker did not understand or
	// passes on under a code that is about nothing of ours: the registry's own
	// troubles with its upstream, which may well be x509.
	quoted = regexp.MustCompile(`(?s)( response body: |(^|\n)(unknown|internal error|unavailable|toomanyrequests): ).*`)
	// refused are the words of a registry or of its token server for who may not
	// pull, or of a daemon that was asked for a password.
	refused = regexp.MustCompile(`no basic auth credentials|^(unauthorized|denied)$|(^|: |\n)(unauthorized|denied): `)
	// failedRequest is an error of net/http: there was no answer from the
	// registry, whatever the words after it are. They may be those of a
	// proxy: "Forbidden". Go before 1.14 did not quote the URL.
	failedRequest = regexp.MustCompile(`\b(Get|Head|Post|Put) "?https?://[^"\s]*"?: `)
	// answered are the words for an answer from a registry that has no such
	// image, or wants to know who asks.
	answered = regexp.MustCompile(`\b(manifest|name) unknown\b|\bpull access denied\b|@sha256:0+: not found$|` +
		`: (401 Unauthorized|403 Forbidden|404 Not Found)\b|\berror parsing HTTP 40[134] response body: |` +
		`\bstatus code from registry 40[134]\b`)
)

// Judge tells what a daemon's words about a registry mean. Also a token server
// or a mirror whose certificate the daemon does not trust makes it Untrusted:
// the text does not tell them apart, and the cure is the same. An answer over a
// connection that the daemon trusts makes it Trusted, if it is a usual one for
// an image that is not there; any other is Unclear.
func Judge(text string) Verdict {
	own := quoted.ReplaceAllString(text, "$1") // the daemon's part of it
	switch {
	case strings.Contains(own, unknownAuthority):
		return Untrusted
	case strings.Contains(own, "x509: "):
		return Unclear
	case refused.MatchString(own):
		return Trusted
	case failedRequest.MatchString(own):
		return Unclear
	case answered.MatchString(own):
		return Trusted
	default:
		return Unclear
	}
}

// Expired tells whether the daemon says that a certificate has expired, which may
// be a root that it has loaded and that was renewed since: Own knows.
func (a Answer) Expired() bool { return a.Verdict == Unclear && strings.Contains(a.Text, expired) }
