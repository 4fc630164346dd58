package place

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// CheckRegistry checks a registry's name, host or host:port, as it stands in
// images' names. Daemons look for its directory in certs.d under exactly that
// name: one without a port is not one with :443, and upper case is kept. A name
// that passes is one harmless element of a path.
//
// The grammar is that of an image's domain in github.com/distribution/reference. A
// single word without a port is none of it: the daemons take it for a repository
// of Docker Hub.
func CheckRegistry(registry string) error {
	if err := checkRegistry(registry); err != nil {
		return fmt.Errorf("registry %q: %w", registry, err)
	}
	return nil
}

func checkRegistry(registry string) error {
	if registry == "" {
		return fmt.Errorf("the name is empty")
	}
	if _, rest, ok := strings.Cut(registry, "://"); ok {
		return fmt.Errorf("it must be host or host:port, without a scheme: %q", strings.TrimRight(rest, "/"))
	}
	if strings.Count(registry, ":") > 1 && !strings.Contains(registry, "[") {
		return fmt.Errorf("an IPv6 address needs brackets: [::1]:5000")
	}
	host, port, err := splitRegistry(registry)
	if err != nil {
		return err
	}
	if port != "" || strings.HasSuffix(registry, ":") {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port != strconv.FormatUint(n, 10) {
			return fmt.Errorf("the port %q is no number from 1 to 65535", port)
		}
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		v6 = strings.TrimSuffix(v6, "]")
		addr, err := netip.ParseAddr(v6)
		if err != nil || !addr.Is6() || strings.ContainsAny(v6, "%.") {
			return fmt.Errorf("%q is no IPv6 address", v6)
		}
		return nil
	}
	if len(host) > 253 {
		return fmt.Errorf("the host has more than 253 characters")
	}
	for label := range strings.SplitSeq(host, ".") {
		if !isLabel(label) {
			return fmt.Errorf("the host is no DNS name and no address: it must be host or host:port, without a scheme or a path")
		}
	}
	if port == "" && !strings.Contains(host, ".") && host != "localhost" {
		return fmt.Errorf("a name without a dot needs a port: otherwise it is a repository of Docker Hub")
	}
	return nil
}

// splitRegistry splits host:port. The brackets of an IPv6 address stay.
func splitRegistry(registry string) (host, port string, err error) {
	if strings.HasPrefix(registry, "[") {
		end := strings.IndexByte(registry, ']')
		if end < 0 {
			return "", "", fmt.Errorf("a ] is missing")
		}
		host, rest := registry[:end+1], registry[end+1:]
		if rest == "" {
			return host, "", nil
		}
		port, ok := strings.CutPrefix(rest, ":")
		if !ok {
			return "", "", fmt.Errorf("%q stands after the address", rest)
		}
		return host, port, nil
	}
	host, port, _ = strings.Cut(registry, ":")
	return host, port, nil
}

// isLabel tells whether s is one label of a host's name. An underscore is none of
// it, in images' names.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
