package daemon

import (
	"strings"
	"testing"
)

const (
	pulling  = `failed to pull and unpack image "reg.test:5000/nodestead/trust-check@` + noDigest + `": failed to resolve reference "reg.test:5000/nodestead/trust-check@` + noDigest + `": `
	pulling2 = `failed to pull and unpack image "reg.test/nodestead/trust-check@` + noDigest + `": failed to resolve reference "reg.test/nodestead/trust-check@` + noDigest + `": `
	head     = `failed to do request: Head "https://reg.test:5000/v2/nodestead/trust-check/manifests/` + noDigest + `": `
)

// judgements are what daemons say. Those of docker 20.10 and containerd 1.6 were
// said by real ones (TestBoxAsk); the others are from sources and reports.
var judgements = []struct {
	from, text string
	want       Verdict
}{
	// Docker 20.10.24.
	{"unknown authority", `Get "https://reg.test:5000/v2/": x509: certificate signed by unknown authority`, Untrusted},
	{"same subject", `Get "https://reg.test:5000/v2/": x509: certificate signed by unknown authority (possibly because of "x509: ECDSA verification failure" while trying to verify candidate authority certificate "root")`, Untrusted},
	{"token server", `Head "https://reg.test:5000/v2/nodestead/trust-check/manifests/latest": Get "https://token.test/token": x509: certificate signed by unknown authority`, Untrusted},
	{"another name", `Get "https://reg.test:5000/v2/": x509: certificate is valid for other.test, not reg.test`, Unclear},
	{"no IP", `Get "https://172.18.0.3:5000/v2/": x509: cannot validate certificate for 172.18.0.3 because it doesn't contain any IP SANs`, Unclear},
	{"expired", `Get "https://reg.test:5000/v2/": x509: certificate has expired or is not yet valid: current time 2026-11-29T17:27:33Z is after 2026-11-28T17:27:22Z`, Unclear},
	{"manifest unknown", `manifest unknown: manifest unknown`, Trusted},
	{"404", `error parsing HTTP 404 response body: unexpected end of JSON input: ""`, Trusted},
	{"404 with a text", `error parsing HTTP 404 response body: invalid character 'p' after top-level value: "404 page not found"`, Trusted},
	{"basic auth", `Head "https://reg.test:5000/v2/nodestead/trust-check/manifests/latest": no basic auth credentials`, Trusted},
	{"401", `unauthorized: authentication required`, Trusted},
	{"401 of the token server", `Head "https://reg.test:5000/v2/nodestead/trust-check/manifests/latest": unauthorized: incorrect username or password`, Trusted},
	{"403", `error parsing HTTP 403 response body: unexpected end of JSON input: ""`, Trusted},
	{"403 of a registry", `denied`, Trusted},
	{"403 with words", `denied: requested access to the resource is denied`, Trusted},
	{"two errors", "errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required\n", Trusted},
	{"429", `error parsing HTTP 429 response body: unexpected end of JSON input: ""`, Unclear},
	{"500", `received unexpected HTTP status: 500 Internal Server Error`, Unclear},
	{"503", `received unexpected HTTP status: 503 Service Unavailable`, Unclear},
	{"refused", `Get "https://reg.test:5000/v2/": dial tcp 172.18.0.3:5000: connect: connection refused`, Unclear},
	{"no such host", `Get "https://nosuch.test:5000/v2/": dial tcp: lookup nosuch.test on 172.18.0.3:53: no such host`, Unclear},
	{"broken DNS", `Get "https://servfail.test:5000/v2/": dial tcp: lookup servfail.test on 172.18.0.3:53: server misbehaving`, Unclear},
	{"plain HTTP", `Get "https://reg.test:5000/v2/": http: server gave HTTP response to HTTPS client`, Unclear},
	{"proxy forbids", `Get "https://reg.test:5000/v2/": Forbidden`, Unclear},
	{"proxy finds nothing", `Get "https://reg.test:5000/v2/": Not Found`, Unclear},
	{"proxy wants a password", `Get "https://reg.test:5000/v2/": Proxy Authentication Required`, Unclear},
	{"upstream of a cache", `unknown: Get "https://hub.test/v2/": x509: certificate signed by unknown authority`, Unclear},
	{"upstream in a page", `error parsing HTTP 502 response body: invalid character '<' looking for beginning of value: "<p>x509: certificate signed by unknown authority"`, Unclear},

	// Docker before Go 1.14, and 28.
	{"old docker", `Get https://reg.test:5000/v2/: x509: certificate signed by unknown authority`, Untrusted},
	{"old docker, refused", `Get https://reg.test:5000/v2/: dial tcp 10.0.0.1:5000: connect: connection refused`, Unclear},
	{"docker 28", `Get "https://reg.test:5000/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority`, Untrusted},
	{"docker 28, same subject", `Get "https://reg.test:5000/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of "x509: ECDSA verification failure" while trying to verify candidate authority certificate "root")`, Untrusted},
	{"docker 28, another name", `Get "https://reg.test:5000/v2/": tls: failed to verify certificate: x509: certificate is valid for other.test, not reg.test`, Unclear},
	{"docker 28, expired", `Get "https://reg.test:5000/v2/": tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-11-29T17:27:33Z is after 2026-11-28T17:27:22Z`, Unclear},
	{"docker 28, timeout", `Get "https://reg.test:5000/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)`, Unclear},
	{"proxy is away", `Get "https://reg.test:5000/v2/": proxyconnect tcp: dial tcp 10.0.0.9:3128: connect: connection refused`, Unclear},
	{"proxy's own certificate", `Get "https://reg.test:5000/v2/": proxyconnect tcp: tls: failed to verify certificate: x509: certificate signed by unknown authority`, Untrusted},
	{"API without it", `page not found`, Unclear},
	{"plugin", `authorization denied by plugin opa: not allowed: denied`, Unclear},

	// containerd 1.6.20.
	{"containerd", pulling + head + unknownAuthority, Untrusted},
	{"containerd, same subject", pulling + head + unknownAuthority + ` (possibly because of "x509: ECDSA verification failure" while trying to verify candidate authority certificate "root")`, Untrusted},
	{"containerd, token server", pulling + `failed to authorize: failed to fetch anonymous token: Get "https://token.test/token": ` + unknownAuthority, Untrusted},
	{"containerd, another name", pulling + head + `x509: certificate is valid for other.test, not reg.test`, Unclear},
	{"containerd, 404", pulling + `reg.test:5000/nodestead/trust-check@` + noDigest + `: not found`, Trusted},
	{"containerd, 401", pulling + `pulling from host reg.test:5000 failed with status code [manifests ` + noDigest + `]: 401 Unauthorized`, Trusted},
	{"containerd, 403", pulling + `pulling from host reg.test:5000 failed with status code [manifests ` + noDigest + `]: 403 Forbidden`, Trusted},
	{"containerd, 401 of the token server", pulling + `failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized`, Trusted},
	{"containerd, 500", pulling + `pulling from host reg.test:5000 failed with status code [manifests ` + noDigest + `]: 500 Internal Server Error`, Unclear},
	{"containerd, refused", pulling + head + `dial tcp 172.18.0.3:5000: connect: connection refused`, Unclear},
	{"containerd, proxy forbids", pulling + head + `Forbidden`, Unclear},
	{"containerd, proxy finds nothing", pulling + head + `Not Found`, Unclear},

	// containerd 1.7 and 2, of their sources.
	{"containerd 2", pulling2 + `failed to do request: Head "https://reg.test/v2/nodestead/trust-check/manifests/` + noDigest + `": tls: failed to verify certificate: ` + unknownAuthority, Untrusted},
	{"containerd 2, 401", pulling2 + `pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials`, Trusted},
	{"containerd 2, scope", pulling2 + `pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed`, Trusted},
	{"containerd 2, 403", pulling2 + `unexpected status from HEAD request to https://reg.test/v2/nodestead/trust-check/manifests/` + noDigest + `: 403 Forbidden`, Trusted},
	{"containerd 2, 502", pulling2 + `unexpected status from HEAD request to https://reg.test/v2/nodestead/trust-check/manifests/` + noDigest + `: 502 Bad Gateway`, Unclear},
	{"containerd 2, upstream", pulling2 + `unexpected status from HEAD request to https://reg.test/v2/nodestead/trust-check/manifests/` + noDigest + ": 500 Internal Server Error\nunknown: Get \"https://hub.test/v2/\": " + unknownAuthority, Unclear},
	{"containerd 2, token server", pulling2 + `failed to authorize: failed to fetch oauth token: unexpected status from GET request to https://token.test/token: 401 Unauthorized`, Trusted},
	{"containerd 2, no host", pulling2 + `no resolve hosts: not found`, Unclear},
	{"containerd 2, client certificate", pulling2 + `failed to do request: Head "https://reg.test/v2/": remote error: tls: certificate required`, Unclear},

	// CRI-O, of reports.
	{"CRI-O 1.21", `error pinging docker registry reg.test:5050: Get "https://reg.test:5050/v2/": x509: certificate signed by unknown authority`, Untrusted},
	{"CRI-O", `initializing source docker://reg.test:5050/a@` + noDigest + `: pinging container registry reg.test:5050: Get "https://reg.test:5050/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority`, Untrusted},
	{"CRI-O, another name", `initializing source docker://a: pinging container registry reg.test: Get "https://reg.test/v2/": tls: failed to verify certificate: x509: certificate is valid for *.other.test, not reg.test`, Unclear},
	{"CRI-O, manifest unknown", `reading manifest ` + noDigest + ` in reg.test/nodestead/trust-check: manifest unknown: manifest unknown`, Trusted},
	{"CRI-O, denied", "reading manifest latest in reg.test/a: errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required\n", Trusted},
	{"CRI-O, token", `reading manifest latest in reg.test/a: requested access to the resource is denied: unable to retrieve auth token: invalid status code from registry 403 (Forbidden)`, Trusted},
	{"CRI-O, proxy", `pinging docker registry registry.test: Get "https://registry.test/v2/": proxyconnect tcp: dial tcp: lookup http: Temporary failure in name resolution`, Unclear},

	{"CRI-O, mirror without it, registry away", `(Mirrors also failed: [mirror.test/a: reading manifest latest in mirror.test/a: manifest unknown]): reg.test/a: pinging container registry reg.test: Get "https://reg.test/v2/": dial tcp 10.0.0.1:443: connect: connection refused`, Unclear},
	{"CRI-O, mirror without it, another name", `(Mirrors also failed: [mirror.test/a: reading manifest latest in mirror.test/a: manifest unknown]): reg.test/a: x509: certificate is valid for other.test, not reg.test`, Unclear},
	{"CRI-O of old, mirror without it, registry away", `(Mirrors also failed: [mirror.test/a: reading manifest latest in mirror.test/a: manifest unknown]): reg.test/a: error pinging docker registry reg.test: Get https://reg.test/v2/: dial tcp 10.0.0.1:443: connect: connection refused`, Unclear},

	// Names that look like words.
	{"a name like a number", `Get "https://r404.test:403/v2/": dial tcp 10.0.0.1:403: connect: connection refused`, Unclear},
	{"a name like a word", `Get "https://unauthorized:5000/v2/": dial tcp: lookup unauthorized: no such host`, Unclear},
	{"our own socket", `dial unix /run/docker.sock: connect: permission denied`, Unclear},
	{"nothing", ``, Unclear},
}

func TestJudge(t *testing.T) {
	for _, tc := range judgements {
		if got := Judge(tc.text); got != tc.want {
			t.Errorf("%s: %s, want %s: %s", tc.from, got, tc.want, tc.text)
		}
	}
}

// What is shown to people is judged as the whole text was, so that an answer that
// is kept can be judged once more.
func TestJudgeShortened(t *testing.T) {
	for _, tc := range judgements {
		if strings.Contains(tc.text, "\n") {
			continue // the lines are one
		}
		if got := Judge(shorten(tc.text)); got != tc.want {
			t.Errorf("%s: %s, want %s: %s", tc.from, got, tc.want, shorten(tc.text))
		}
	}
}

func TestShorten(t *testing.T) {
	long := strings.Repeat("ä", 1000) + " the end"
	for _, tc := range []struct{ text, want string }{
		{"", ""},
		{" one\n\ttwo\x1b[31m\u202e three\r\n", "one two [31m three"},
		{"Get \"https://bob:secret@reg.test/v2/\": x", `Get "https://reg.test/v2/": x`},
		{"proxyconnect https://bob:p@ss@proxy.test:3128 x", "proxyconnect https://proxy.test:3128 x"},
		{`Get "https://t.test/token?account=bob&token=abc": x`, `Get "https://t.test/token": x`},
		{`Get https://t.test/token?account=bob&scope=x: x509`, `Get https://t.test/token: x509`},
		{"a@" + noDigest + ": not found", "a@sha256:0: not found"},
		{"bytes \xff\xfe", "bytes \ufffd\ufffd"},
		{long, strings.Repeat("ä", 100) + " … " + strings.Repeat("ä", 189) + " the end"},
	} {
		if got := shorten(tc.text); got != tc.want {
			t.Errorf("shorten(%.40q) = %q, want %q", tc.text, got, tc.want)
		}
	}
}

func FuzzJudge(f *testing.F) {
	for _, tc := range judgements {
		f.Add(tc.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if v := Judge(text); v != Trusted && v != Untrusted && v != Unclear {
			t.Errorf("verdict %q", v)
		}
		if Judge(text) == Untrusted && !strings.Contains(text, unknownAuthority) {
			t.Errorf("untrusted without the words for it: %q", text)
		}
		short := shorten(text)
		if n := len([]rune(short)); n > maxText {
			t.Errorf("%d runes", n)
		}
		if strings.ContainsAny(short, "\n\r\x00\x1b") {
			t.Errorf("not one printable line: %q", short)
		}
		if again := shorten(short); len(again) > len(short) {
			t.Errorf("it grew: %q, %q", short, again)
		}
	})
}

func TestRegistryName(t *testing.T) {
	for name, want := range map[string]bool{
		"reg.test": true, "reg.test:5000": true, "reg:5000": true, "localhost": true, "10.0.0.1": true,
		"10.0.0.1:5000": true, "[fd00::1]:5000": true, "[fd00::1]": true, "Reg-1.test:443": true,
		// Docker would take them for something on Docker Hub.
		"reg": false, "library": false, "": false,
		// Those would be another request, or another image.
		"reg.test/x": false, "reg.test:5000/x": false, "reg.test?x=1": false, "reg.test#x": false, "reg.test:": false,
		"reg.test:x": false, "reg.test:500000": false, "user@reg.test": false, "https://reg.test": false, "reg.test:5000\n": false,
		"../reg.test": false, "reg..test": false, ".": false, "reg.test %2f": false, "fd00::1": false,
	} {
		if got := registryName.MatchString(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}
