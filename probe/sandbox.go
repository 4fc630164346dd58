package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// sandboxes are the directories in which container runtimes keep, for each pod
// or container, the resolv.conf that the kubelet had them make, and its path
// within.
var sandboxes = [][2]string{
	{"var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes", "resolv.conf"},
	{"var/lib/rancher/k3s/agent/containerd/io.containerd.grpc.v1.cri/sandboxes", "resolv.conf"},
	{"var/lib/rancher/rke2/agent/containerd/io.containerd.grpc.v1.cri/sandboxes", "resolv.conf"},
	{"run/containers/storage/overlay-containers", "userdata/resolv.conf"}, // CRI-O
	{"var/lib/docker/containers", "resolv.conf"},                          // cri-dockerd
}

// maxSandboxes bounds how many pods of one directory are looked at.
const maxSandboxes = 256

// findSandboxes learns the nameservers from what pods on the node were given:
// k3s, for one, writes its default nowhere else. A pod may choose its own
// nameservers, so those count that most pods have, of the pods that search the
// cluster's services.
func findSandboxes(root *os.Root) (kubelet, []error) {
	var errs []error
	for _, place := range sandboxes {
		names, err := list(root, place[0], maxSandboxes)
		if err != nil {
			errs = append(errs, err)
		}
		votes := map[string]int{}
		var best kubelet
		most := 0
		for _, n := range names {
			c, err := readResolvConf(root, path.Join(place[0], n, place[1]))
			domain := serviceDomain(c.search)
			if err != nil || domain == "" || len(c.nameservers) == 0 {
				continue // gone by now, or not of the policy ClusterFirst
			}
			key := fmt.Sprint(c.nameservers, domain)
			if votes[key]++; votes[key] > most {
				most = votes[key]
				best = kubelet{dns: c.nameservers, domain: domain, source: "the resolv.conf of pods in /" + place[0]}
			}
		}
		if most > 0 {
			return best, errs
		}
	}
	return kubelet{}, errs
}

// serviceDomain is the cluster's domain in a pod's search list: DOMAIN of
// "NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN".
func serviceDomain(search []string) string {
	for _, s := range search {
		if domain, ok := strings.CutPrefix(s, "svc."); ok {
			return domain
		}
	}
	return ""
}

// list gives the names in a directory of the host, n at most, none when there is
// no such directory.
func list(root *os.Root, name string, n int) ([]string, error) {
	dir, err := root.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list /%s of the host: %w", name, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(n)
	if err != nil && !errors.Is(err, io.EOF) {
		return names, fmt.Errorf("list /%s of the host: %w", name, err)
	}
	return names, nil
}
