package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds what is read of one file of the host.
	maxFile = 1 << 20
	// maxProcesses bounds how many processes are looked at.
	maxProcesses = 1 << 16
)

// kubelets are the names (comm) of processes that are, or contain, a kubelet.
var kubelets = []string{"kubelet", "hyperkube", "k3s", "k3s-server", "k3s-agent", "rke2", "kubelite"}

// configFiles are where a kubelet's clusterDNS is written when its command line
// does not say: kubeadm's and most others', the drop-ins that k3s and RKE2 write
// since Kubernetes 1.32, and what an operator gave k3s and RKE2.
var configFiles = []string{
	"var/lib/kubelet/config.yaml",
	"var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf",
	"var/lib/rancher/rke2/agent/etc/kubelet.conf.d/00-rke2-defaults.conf",
	"etc/rancher/k3s/config.yaml",
	"etc/rancher/rke2/config.yaml",
	"etc/kubernetes/kubelet/kubelet-config.json", // EKS
	"etc/kubernetes/kubelet/config.json",
	"home/kubernetes/kubelet-config.yaml", // GKE
}

// kubelet is what was found of the node's kubelet.
type kubelet struct {
	dns        []netip.Addr
	domain     string
	resolvConf string // the file that pods inherit from, "" for the default
	source     string // of dns
}

// findKubelet looks at the running kubelet first, whose flags override its
// files. What cannot be read is told and passed over.
func findKubelet(root *os.Root) (kubelet, []error) {
	var k kubelet
	files := configFiles
	var errs []error
	args, err := kubeletArgs(root)
	if err != nil {
		errs = append(errs, err)
	}
	if args != nil {
		k.domain = flag(args, "cluster-domain")
		k.resolvConf = flag(args, "resolv-conf")
		if k.dns = parseAddrs(strings.Split(flag(args, "cluster-dns"), ",")); len(k.dns) > 0 {
			k.source = "--cluster-dns of the running " + path.Base(args[0])
		}
		if f := flag(args, "config"); strings.HasPrefix(f, "/") {
			files = slices.Concat([]string{strings.TrimPrefix(f, "/")}, files)
		}
	}
	for _, f := range files {
		b, err := readBounded(root, f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var c kubelet
		if err == nil {
			c, err = parseKubeletConfig(b)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read /%s: %w", f, err))
			continue
		}
		if len(k.dns) == 0 && len(c.dns) > 0 {
			k.dns, k.source = c.dns, "clusterDNS in /"+f
		}
		if k.domain == "" {
			k.domain = c.domain
		}
		if k.resolvConf == "" {
			k.resolvConf = c.resolvConf
		}
	}
	if len(k.dns) > 0 && k.domain == "" {
		k.domain = "cluster.local" // the kubelets of k3s, and kubeadm's default
	}
	k.domain = strings.TrimSuffix(k.domain, ".")
	return k, errs
}

// parseKubeletConfig reads a KubeletConfiguration, or the configuration of k3s
// and RKE2, whose keys are flags and whose lists may be one string.
func parseKubeletConfig(b []byte) (kubelet, error) {
	var c struct {
		ClusterDNS    many   `yaml:"clusterDNS"`
		ClusterDomain string `yaml:"clusterDomain"`
		ResolvConf    string `yaml:"resolvConf"`
		FlagDNS       many   `yaml:"cluster-dns"`
		FlagDomain    string `yaml:"cluster-domain"`
		FlagResolv    string `yaml:"resolv-conf"`
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		return kubelet{}, err
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	return kubelet{
		dns:        parseAddrs(append(c.ClusterDNS, c.FlagDNS...)),
		domain:     or(c.ClusterDomain, c.FlagDomain),
		resolvConf: or(c.ResolvConf, c.FlagResolv),
	}, nil
}

// many is a YAML list of strings, or one string with commas.
type many []string

// UnmarshalYAML implements yaml.Unmarshaler.
func (m *many) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*m = strings.Split(n.Value, ",")
		return nil
	}
	return n.Decode((*[]string)(m))
}

// kubeletArgs is the command line of the first process that is a kubelet and
// says something of DNS or of its configuration; nil when there is none.
func kubeletArgs(root *os.Root) ([]string, error) {
	names, err := list(root, "proc", maxProcesses)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, pid := range names {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		comm, err := readBounded(root, "proc/"+pid+"/comm")
		if err != nil || !slices.Contains(kubelets, strings.TrimSpace(string(comm))) {
			continue // gone by now, or another
		}
		// A pod's process can call itself what it likes.
		cgroup, err := readBounded(root, "proc/"+pid+"/cgroup")
		if err != nil || bytes.Contains(cgroup, []byte("kubepods")) {
			continue
		}
		line, err := readBounded(root, "proc/"+pid+"/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if flag(args, "cluster-dns") != "" {
			return args, nil
		}
		if found == nil || flag(found, "config") == "" {
			found = args
		}
	}
	return found, nil
}

// flag is the value of --name=value or --name value, "" when there is none.
func flag(args []string, name string) string {
	for i, a := range args {
		a, dashed := strings.CutPrefix(a, "-")
		a = strings.TrimPrefix(a, "-")
		if !dashed {
			continue
		}
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
		if a == name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

func parseAddrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// readBounded reads a regular file of the host. Where the file itself is a
// symbolic link, an absolute one is taken as the host means it: from its root.
// Links that lead out of the root otherwise are refused by os.Root.
func readBounded(root *os.Root, name string) ([]byte, error) {
	for range 8 {
		target, err := root.Readlink(name)
		if err != nil || !path.IsAbs(target) {
			break // no link, or one that os.Root follows
		}
		name = strings.TrimPrefix(path.Clean(target), "/")
	}
	// Without O_NONBLOCK, to open a FIFO would wait for its writer.
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return b, err
}
