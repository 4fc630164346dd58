package probe

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var byValue = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty()}

func addrPorts(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
	}
	return out
}

func TestFindPodDNS(t *testing.T) {
	const resolv = "nameserver 192.0.2.53\nsearch corp.example. lan\n"
	kubelet := func(comm, cgroup string, args ...string) map[string]string {
		return map[string]string{
			"proc/4711/comm":    comm + "\n",
			"proc/4711/cmdline": strings.Join(args, "\x00") + "\x00",
			"proc/4711/cgroup":  "0::" + cgroup + "\n",
			"proc/self/comm":    "x",
		}
	}
	const pod = "search ci.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n"
	sandbox := func(id, text string) map[string]string {
		return map[string]string{"var/lib/rancher/k3s/agent/containerd/io.containerd.grpc.v1.cri/sandboxes/" + id + "/resolv.conf": text}
	}
	config := "apiVersion: kubelet.config.k8s.io/v1beta1\nclusterDNS:\n- 10.96.0.10\n- fd00::a\nclusterDomain: cluster.example\nresolvConf: /run/systemd/resolve/resolv.conf\n"
	tests := []struct {
		name      string
		files     []map[string]string
		links     map[string]string
		nodeLocal []netip.Addr
		want      PodDNS
		err       string
	}{
		{
			name:  "kubeadm",
			files: []map[string]string{{"var/lib/kubelet/config.yaml": config, "run/systemd/resolve/resolv.conf": resolv, "etc/resolv.conf": "search wrong"}},
			want:  PodDNS{Nameservers: addrPorts("10.96.0.10", "fd00::a"), Domain: "cluster.example", Search: []string{"corp.example", "lan"}, Source: "clusterDNS in /var/lib/kubelet/config.yaml"},
		},
		{
			name:  "a flag of the running kubelet stands above its file",
			files: []map[string]string{{"var/lib/kubelet/config.yaml": config}, kubelet("kubelet", "/system.slice/kubelet.service", "/usr/bin/kubelet", "--cluster-dns=10.43.0.10,10.43.0.11", "--cluster-domain", "k.example")},
			want:  PodDNS{Nameservers: addrPorts("10.43.0.10", "10.43.0.11"), Domain: "k.example", Source: "--cluster-dns of the running kubelet"},
		},
		{
			name: "the file that the running kubelet names stands above the usual one",
			files: []map[string]string{{"var/lib/kubelet/config.yaml": config, "opt/kubelet.yaml": `{"clusterDNS": ["10.1.0.10"]}`},
				kubelet("kubelet", "/", "kubelet", "--config", "/opt/kubelet.yaml")},
			want: PodDNS{Nameservers: addrPorts("10.1.0.10"), Domain: "cluster.example", Source: "clusterDNS in /opt/kubelet.yaml"},
		},
		{
			name:  "a pod's process that calls itself kubelet",
			files: []map[string]string{{"etc/resolv.conf": resolv}, kubelet("kubelet", "/kubepods.slice/pod1", "kubelet", "--cluster-dns=203.0.113.1")},
			want:  PodDNS{Nameservers: addrPorts("192.0.2.53"), Search: []string{"corp.example", "lan"}, FromNode: true, Source: "the node's own /etc/resolv.conf: no kubelet's clusterDNS was found"},
		},
		{
			name:  "k3s with a list in its own configuration",
			files: []map[string]string{{"etc/rancher/k3s/config.yaml": "cluster-dns: 10.43.0.10\ncluster-domain: c.example\nwrite-kubeconfig-mode: \"0644\"\n"}},
			want:  PodDNS{Nameservers: addrPorts("10.43.0.10"), Domain: "c.example", Source: "clusterDNS in /etc/rancher/k3s/config.yaml"},
		},
		{
			name:  "k3s's drop-in",
			files: []map[string]string{{"var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf": "clusterDNS: [10.43.0.10]\n"}},
			want:  PodDNS{Nameservers: addrPorts("10.43.0.10"), Domain: "cluster.local", Source: "clusterDNS in /var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf"},
		},
		{
			name: "k3s's default is known to its pods only",
			files: []map[string]string{{"etc/resolv.conf": resolv}, sandbox("a", "nameserver 203.0.113.1\nsearch svc.cluster.local\n"),
				sandbox("b", pod), sandbox("c", pod), sandbox("d", "nameserver 192.0.2.53\n"), sandbox("e", "nameserver 192.0.2.53\n"), sandbox("f", "nameserver 192.0.2.53\n"),
				kubelet("k3s-server", "/system.slice/k3s.service", "/usr/local/bin/k3s", "server")},
			want: PodDNS{Nameservers: addrPorts("10.43.0.10"), Domain: "cluster.local", Search: []string{"corp.example", "lan"},
				Source: "the resolv.conf of pods in /var/lib/rancher/k3s/agent/containerd/io.containerd.grpc.v1.cri/sandboxes"},
		},
		{
			name:      "NodeLocal DNSCache under IPVS is the kubelet's nameserver already",
			files:     []map[string]string{{"var/lib/kubelet/config.yaml": "clusterDNS: [169.254.20.10]\n"}},
			nodeLocal: []netip.Addr{netip.MustParseAddr("169.254.20.10")},
			want:      PodDNS{Nameservers: addrPorts("169.254.20.10"), Domain: "cluster.local", NodeLocal: []netip.Addr{netip.MustParseAddr("169.254.20.10")}, Source: "clusterDNS in /var/lib/kubelet/config.yaml"},
		},
		{
			name:      "NodeLocal DNSCache beside it",
			files:     []map[string]string{{"var/lib/kubelet/config.yaml": "clusterDNS: [10.96.0.10]\n"}},
			nodeLocal: []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10")},
			want: PodDNS{Nameservers: addrPorts("10.96.0.10"), Domain: "cluster.local",
				NodeLocal: []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10")}, Source: "clusterDNS in /var/lib/kubelet/config.yaml"},
		},
		{
			name:  "an absolute link is one from the host's root",
			files: []map[string]string{{"run/resolv.conf": resolv}},
			links: map[string]string{"etc/resolv.conf": "/run/resolv.conf"},
			want:  PodDNS{Nameservers: addrPorts("192.0.2.53"), Search: []string{"corp.example", "lan"}, FromNode: true, Source: "the node's own /etc/resolv.conf: no kubelet's clusterDNS was found"},
		},
		{name: "a link that leads out", links: map[string]string{"etc/resolv.conf": "../../../../../../../etc/passwd"}, err: "escapes"},
		{name: "broken YAML is told", files: []map[string]string{{"var/lib/kubelet/config.yaml": "clusterDNS: [", "etc/resolv.conf": resolv}},
			want: PodDNS{Nameservers: addrPorts("192.0.2.53"), Search: []string{"corp.example", "lan"},
				FromNode: true, Source: "the node's own /etc/resolv.conf: no kubelet's clusterDNS was found (read /var/lib/kubelet/config.yaml: yaml: line 1: did not find expected node content)"}},
		{name: "a file of another kind, larger than any", files: []map[string]string{{"var/lib/kubelet/config.yaml": strings.Repeat("#", maxFile+1)}}, err: "larger than"},
		{name: "nothing", err: "no nameserver was found"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path := func(name string) string {
				p := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				return p
			}
			for _, files := range tc.files {
				for name, text := range files {
					if err := os.WriteFile(path(name), []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			for name, target := range tc.links {
				if err := os.Symlink(target, path(name)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := findPodDNS(dir, func() []netip.Addr { return tc.nodeLocal })
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, byValue); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzKubeletConfig(f *testing.F) {
	f.Add([]byte("clusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\n"))
	f.Add([]byte("cluster-dns: 10.43.0.10,fd00::a"))
	f.Add([]byte(`{"clusterDNS": {"a": 1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKubeletConfig(b)
		for _, a := range k.dns {
			if !a.IsValid() || err != nil {
				t.Errorf("nameserver %v, error %v", a, err)
			}
		}
	})
}

// NodeLocal DNSCache is asked as well, once.
func TestAllNameservers(t *testing.T) {
	d := PodDNS{Nameservers: addrPorts("10.96.0.10"), Source: "here"}
	for _, tc := range []struct {
		nodeLocal []netip.Addr
		want      []netip.AddrPort
		source    string
	}{
		{nil, addrPorts("10.96.0.10"), "here"},
		{[]netip.Addr{netip.MustParseAddr("10.96.0.10")}, addrPorts("10.96.0.10"), "here"},
		{[]netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10")}, addrPorts("10.96.0.10", "169.254.20.10"), "here; and the link nodelocaldns"},
	} {
		d.NodeLocal = tc.nodeLocal
		got, source := d.all()
		if diff := cmp.Diff(tc.want, got, byValue); diff != "" || source != tc.source {
			t.Errorf("%v: source %q (-want +got):\n%s", tc.nodeLocal, source, diff)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 10.96.0.10\nsearch a.svc.b svc.b b\noptions ndots:5\n")
	f.Add("search .\ndomain\nnameserver fe80::1%eth0\nnameserver x")
	f.Fuzz(func(t *testing.T, text string) {
		c := parseResolvConf(text)
		for _, a := range c.nameservers {
			if !a.IsValid() {
				t.Errorf("nameserver %v", a)
			}
		}
		for _, s := range c.search {
			if s == "" || strings.ContainsAny(s, " \n") {
				t.Errorf("search domain %q", s)
			}
		}
	})
}
