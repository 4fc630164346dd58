package workload

import (
	"net/netip"
	"strings"
)

// maxNameservers is MAXNS of glibc and musl; they ignore further ones.
const maxNameservers = 3

// maxSearch bounds the length of a search list, which Kubernetes allows 2048
// characters.
const maxSearch = 2048

// parseResolvConf reads a resolv.conf(5). What it does not understand it skips,
// as resolvers do.
func parseResolvConf(text string) (nameservers []netip.Addr, search []string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil && len(nameservers) < maxNameservers {
				nameservers = append(nameservers, a)
			}
		case "search", "domain": // the last one wins
			search = nil
			length := 0
			for _, s := range fields[1:] {
				if length += len(s); length > maxSearch {
					break
				}
				search = append(search, printable(s))
			}
		}
	}
	return nameservers, search
}

// printable replaces what has no place in a log line: a container chooses the
// names of its processes and the contents of its files.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
