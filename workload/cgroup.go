package workload

import "strings"

// idLength is the length of a container's id in every runtime.
const idLength = 64

// containerIDs returns the ids of containers in the lines of /proc/<pid>/cgroup,
// outermost first. Runtimes name the last part of the path "<id>" or, under
// systemd, "cri-containerd-<id>.scope", "crio-<id>.scope", "docker-<id>.scope".
func containerIDs(cgroup string) []string {
	var ids []string
	seen := make(map[string]bool)
	for line := range strings.Lines(cgroup) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			part = strings.TrimSuffix(part, ".scope")
			if len(part) < idLength {
				continue
			}
			if i := strings.LastIndexAny(part, "-:"); i >= 0 { // ":": containerd's "<slice>:<prefix>:<id>" without systemd
				part = part[i+1:]
			}
			if len(part) == idLength && isHex(part) && !seen[part] {
				seen[part] = true
				ids = append(ids, part)
			}
		}
	}
	return ids
}

func isHex(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) < 0
}
