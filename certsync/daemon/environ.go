package daemon

import (
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/nodestead/nodestead/certsync/host"
)

// maxEnviron is the largest environment that is read.
const maxEnviron = 1 << 20

// Where Go looks for roots: the first of the files, and all of the directories
// (crypto/x509, root_linux.go). SSL_CERT_FILE takes the place of the files,
// SSL_CERT_DIR that of the directories.
var (
	rootFiles = [...]string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
		"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
	}
	rootDirs = [...]string{"/etc/ssl/certs", "/etc/pki/tls/certs"}
)

// otherStore reads from a process's environment whether it has another trust
// store than the node's: "" when it has not, or when that cannot be read. One of
// the two variables alone leaves the other way to the node's store.
func otherStore(h *host.Host, pid int) string {
	if pid <= 0 {
		return ""
	}
	environ, err := h.ReadFile(path.Join("/proc", strconv.Itoa(pid), "environ"), maxEnviron)
	if err != nil {
		return ""
	}
	file, dirs := certVariables(string(environ))
	if file == "" || dirs == "" || isAny(h, file, rootFiles[:]) {
		return ""
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if isAny(h, dir, rootDirs[:]) {
			return ""
		}
	}
	return "SSL_CERT_FILE=" + file + " SSL_CERT_DIR=" + dirs
}

// certVariables finds SSL_CERT_FILE and SSL_CERT_DIR in what /proc/<pid>/environ has.
func certVariables(environ string) (file, dirs string) {
	for entry := range strings.SplitSeq(environ, "\x00") {
		if v, ok := strings.CutPrefix(entry, "SSL_CERT_FILE="); ok {
			file = v
		}
		if v, ok := strings.CutPrefix(entry, "SSL_CERT_DIR="); ok {
			dirs = v
		}
	}
	return file, dirs
}

// isAny tells whether name is one of the known files or directories, by its
// name or by a link.
func isAny(h *host.Host, name string, known []string) bool {
	info, err := h.Stat(name)
	for _, k := range known {
		if path.Clean(name) == k {
			return true
		}
		if other, otherErr := h.Stat(k); err == nil && otherErr == nil && os.SameFile(info, other) {
			return true
		}
	}
	return false
}
