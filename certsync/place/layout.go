package place

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// layout is how one family of distributions keeps its trust store.
type layout struct {
	name string
	// ids are the values of ID and ID_LIKE in /etc/os-release that name the
	// family.
	ids []string
	// onlyByID: what is there looks like another family's, so that only its id
	// tells.
	onlyByID bool
	// has is a directory that a host of the family has.
	has string

	// tool rebuilds the bundle. args are for additions; fresh are for removals
	// and repairs.
	tool        string
	args, fresh []string

	// anchors is where anchors are put, one a file with the suffix.
	anchors, suffix string
	// reads tells which files of that directory the tool takes, by their names;
	// deep: it takes those of the directories in it too.
	reads func(name string) bool
	deep  bool
	// der: it takes a file with one certificate in DER too.
	der bool

	// bundles are the paths of the bundle; the first that is there counts.
	bundles []string
	// conf lists what goes into the bundle of the files in shared, so that its
	// whole content is known beforehand. Empty: that is not known.
	conf, shared string
	// besides is a directory of anchors that the tool does not read when it is
	// called with args, and that others may have put anchors into.
	besides string
	// links is the directory in which the tool makes OpenSSL's hash links.
	links string
	// unfinished is the file in which a run gathers the bundle; a run appends to
	// what a killed one has left.
	unfinished string
}

const debianBundle = "/etc/ssl/certs/ca-certificates.crt"

func isCRT(name string) bool { return strings.HasSuffix(name, ".crt") }
func isPEM(name string) bool { return strings.HasSuffix(name, ".pem") }
func isAny(string) bool      { return true }
func isShown(n string) bool  { return !strings.HasPrefix(n, ".") }

// layouts are the families that are known, in the order in which what is there
// is looked at. Where a line is not from a tool's manual, it is from its source:
//   - Alpine's program knows no options, reads all files of the directory that are
//     not hidden, and none below it;
//   - SUSE's makes its bundle only when a directory of its own has changed, or
//     with --fresh; a path unit runs it, too, whenever the anchors change;
//   - the first argument of Flatcar's is a directory, and it takes only what has a
//     hash link that ends in .0: of two roots of one subject only one;
//   - p11-kit's, which RHEL, SUSE and Arch use, reads all files of the directory.
func layouts() []layout {
	return []layout{
		{
			name: "Flatcar", ids: []string{"flatcar", "coreos"}, onlyByID: true, has: "/etc/ssl/certs",
			tool:    "update-ca-certificates",
			anchors: "/etc/ssl/certs", suffix: ".pem", reads: isPEM,
			bundles: []string{debianBundle}, links: "/etc/ssl/certs",
		},
		{
			name: "Garden Linux", ids: []string{"gardenlinux"}, onlyByID: true, has: "/usr/share/ca-certificates",
			tool:    "update-ca-certificates",
			args:    []string{"--localcertsdir", "/var/lib/ca-certificates-local"},
			fresh:   []string{"--fresh", "--localcertsdir", "/var/lib/ca-certificates-local"},
			anchors: "/var/lib/ca-certificates-local", suffix: ".crt", reads: isCRT, deep: true,
			bundles: []string{debianBundle}, links: "/etc/ssl/certs", unfinished: debianBundle + ".new",
			conf: "/etc/ca-certificates.conf", shared: "/usr/share/ca-certificates",
			besides: "/usr/local/share/ca-certificates",
		},
		{
			name: "Alpine", ids: []string{"alpine"}, onlyByID: true, has: "/usr/share/ca-certificates",
			tool:    "update-ca-certificates",
			anchors: "/usr/local/share/ca-certificates", suffix: ".crt", reads: isShown,
			bundles: []string{debianBundle}, links: "/etc/ssl/certs",
			conf: "/etc/ca-certificates.conf", shared: "/usr/share/ca-certificates",
		},
		{
			name: "RHEL", ids: []string{"rhel", "fedora", "centos", "amzn", "azurelinux", "mariner"}, has: "/etc/pki/ca-trust/source",
			tool: "update-ca-trust", args: []string{"extract"}, fresh: []string{"extract"},
			anchors: "/etc/pki/ca-trust/source/anchors", suffix: ".crt", reads: isAny, der: true,
			bundles: []string{"/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"},
		},
		{
			name: "SUSE", ids: []string{"suse", "opensuse", "sles"}, has: "/etc/pki/trust",
			tool: "update-ca-certificates", fresh: []string{"--fresh"},
			anchors: "/etc/pki/trust/anchors", suffix: ".crt", reads: isAny, der: true,
			bundles: []string{"/etc/ssl/ca-bundle.pem", "/var/lib/ca-certificates/ca-bundle.pem"},
		},
		{
			name: "Arch", ids: []string{"arch"}, has: "/etc/ca-certificates/trust-source",
			tool: "trust", args: []string{"extract-compat"}, fresh: []string{"extract-compat"},
			anchors: "/etc/ca-certificates/trust-source/anchors", suffix: ".crt", reads: isAny, der: true,
			bundles: []string{debianBundle, "/etc/ca-certificates/extracted/tls-ca-bundle.pem"},
		},
		{
			name: "Debian", ids: []string{"debian", "ubuntu"}, has: "/usr/share/ca-certificates",
			tool: "update-ca-certificates", fresh: []string{"--fresh"},
			anchors: "/usr/local/share/ca-certificates", suffix: ".crt", reads: isCRT, deep: true,
			bundles: []string{debianBundle}, links: "/etc/ssl/certs", unfinished: debianBundle + ".new",
			conf: "/etc/ca-certificates.conf", shared: "/usr/share/ca-certificates",
		},
	}
}

// refused are the systems whose trust store nobody but their own configuration
// writes, by their id, with what to do instead.
func refused(id string) string {
	const certsD = "list the registries, so that their certificates go into certs.d where that is writable"
	switch id {
	case "talos":
		return "give it the CA as a TrustedRootsConfig of its machine configuration, or " + certsD
	case "bottlerocket":
		return "give it the CA as settings.pki of its user data, or " + certsD
	case "cos":
		return certsD
	}
	return ""
}

// toolDirs are where a distribution's tools are.
func toolDirs() []string { return []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} }

// osRelease is what a host says of itself.
type osRelease struct {
	pretty string
	ids    []string // ID, then those of ID_LIKE
}

// parseOSRelease reads /etc/os-release, see os-release(5). What is no assignment
// is skipped.
func parseOSRelease(content []byte) osRelease {
	var r osRelease
	var like []string
	for line := range strings.Lines(string(content)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		value = strings.Trim(value, `"'`)
		switch key {
		case "PRETTY_NAME":
			r.pretty = value
		case "ID":
			r.ids = []string{strings.ToLower(value)}
		case "ID_LIKE":
			like = strings.Fields(strings.ToLower(value))
		}
	}
	r.ids = append(r.ids, like...)
	return r
}

// String names the host, for people.
func (r osRelease) String() string {
	switch {
	case r.pretty != "":
		return r.pretty
	case len(r.ids) > 0:
		return r.ids[0]
	}
	return "a host without an os-release"
}

// UnsupportedError says that the host's trust store is not known, or that nobody may
// write it. It keeps the store from being used, and nothing else.
type UnsupportedError struct {
	Host   string // what the host says that it is
	Why    string
	Remedy string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("the trust store of %s: %s; %s", e.Host, e.Why, e.Remedy)
}

// Problem is the error as a Plan would have it.
func (e *UnsupportedError) Problem() Problem {
	return Problem{Path: "/etc/os-release", Reason: "unsupported_host", Detail: e.Error()}
}

// choose finds the layout of a host, and the path of its tool: first of those that
// os-release names, then of all whose directory and tool are there.
func choose(r osRelease, exists func(string) bool) (layout, string, error) {
	for _, id := range r.ids {
		if remedy := refused(id); remedy != "" {
			return layout{}, "", &UnsupportedError{Host: r.String(), Why: "nobody may write it", Remedy: remedy}
		}
	}
	there := func(l layout) string {
		if !exists(l.has) {
			return ""
		}
		for _, dir := range toolDirs() {
			if tool := path.Join(dir, l.tool); exists(tool) {
				return tool
			}
		}
		return ""
	}
	for _, id := range r.ids { // the first id is the most exact
		for _, l := range layouts() {
			if tool := there(l); tool != "" && slices.Contains(l.ids, id) {
				return l, tool, nil
			}
		}
	}
	for _, l := range layouts() {
		if tool := there(l); tool != "" && !l.onlyByID {
			return l, tool, nil
		}
	}
	return layout{}, "", &UnsupportedError{
		Host: r.String(), Why: "none of the known tools and directories is there",
		Remedy: "install the package ca-certificates, or list the registries, so that their certificates go into certs.d",
	}
}
