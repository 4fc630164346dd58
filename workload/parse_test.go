package workload

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	idA = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	idB = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
)

func TestContainerIDs(t *testing.T) {
	for name, tc := range map[string]struct {
		cgroup string
		want   []string
	}{
		"containerd, cgroup v2, systemd": {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-" + idA + ".scope\n", []string{idA}},
		"crio, below its scope":          {"0::/kubepods.slice/kubepods-pod1.slice/crio-" + idA + ".scope/container\n", []string{idA}},
		"containerd, cgroupfs, v1":       {"9:pids:/kubepods/burstable/pod12/" + idA + "\n8:cpu:/kubepods/burstable/pod12/" + idA + "\n", []string{idA}},
		"containerd without kubelet":     {"0::/system.slice:cri-containerd:" + idA + "\n", []string{idA}},
		"docker":                         {"0::/system.slice/docker-" + idA + ".scope\n", []string{idA}},
		"docker in a pod":                {"0::/../../pod12/" + idA + "/docker/" + idB + "\n", []string{idA, idB}},
		"a service":                      {"0::/system.slice/kubelet.service\n", nil},
		"too short, not hexadecimal":     {"0::/docker/" + idA[1:] + "/" + idA[1:] + "g\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, containerIDs(tc.cgroup)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestLibcOf(t *testing.T) {
	line := func(path string) string { return "7f2b4c000000-7f2b4c021000 r-xp 00000000 08:01 131 " + path + "\n" }
	for name, tc := range map[string]struct{ maps, want string }{
		"Alpine":              {line("/bin/busybox") + line("/lib/ld-musl-x86_64.so.1"), "musl"},
		"Debian's musl-tools": {line("/a") + line("/usr/lib/x86_64-linux-musl/libc.so"), "musl"},
		"glibc":               {line("/a") + line("/usr/lib/x86_64-linux-gnu/libc.so.6"), "glibc"},
		"glibc before 2.34":   {line("/a") + line("/lib/x86_64-linux-gnu/libc-2.31.so"), "glibc"},
		"replaced on disk":    {line("/a") + line("/usr/lib/libc.so.6 (deleted)"), "glibc"},
		"a path with blanks":  {line("/my app/libc.so.6"), "glibc"},
		"static":              {line("/app") + "7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]\n", "static"},
		"another libc":        {line("/a") + line("/lib/libuClibc-1.0.so"), ""},
		"not to be read":      {"", ""},
		"too long a line":     {line("/" + strings.Repeat("a", 1<<17)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := libcOf(strings.NewReader(tc.maps)); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestParseResolvConf(t *testing.T) {
	servers, search := parseResolvConf(`# made by kubelet
search first.test
nameserver 10.96.0.10
nameserver nonsense
 nameserver fe80::1%eth0
nameserver 10.0.0.1
nameserver 10.0.0.2
search ci.svc.cluster.local ev` + "\x1b" + `il.test
options ndots:5
nameserver`)
	wantServers := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("10.0.0.1")}
	if diff := cmp.Diff(wantServers, servers, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("nameservers (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"ci.svc.cluster.local", "ev?il.test"}, search); diff != "" {
		t.Errorf("search (-want +got)\n%s", diff)
	}
	if _, search := parseResolvConf("search " + strings.Repeat("a.test ", 9000)); len(search) > maxSearch {
		t.Errorf("a search list of %d names", len(search))
	}
}

const udpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  1: 0201F40A:8001 0A00600A:0035 01 00000000:00000000 00:00000000 00000000     0        0 100 2 0 0
  2: 00000000:8001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 101 2 0 0
  3: 0301F40A:8001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 102 2 0 0
  4: 00000000:8002 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 103 2 0 0
  5: 00000000:8002 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 104 2 0 0
  7: 00000000:8005 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 105 2 0 0
  8: 00000000:8006 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 106 2 0 0
  6: 00000000:8003 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0
`

const udp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  1: 00000000000000000000000000000000:8004 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 200 2 0 0
  2: 000000FD000000000000000002000000:8004 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 201 2 0 0
  3: 0000000000000000FFFF00000201F40A:8004 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 202 2 0 0
`

// The tables are those of a little-endian machine, as are all that we test on.
func TestUDPInodes(t *testing.T) {
	for name, tc := range map[string]struct {
		table  string
		client string
		want   []uint64
		fit    rank
	}{
		"connected":                      {udpTable, "10.244.1.2:32769", []uint64{100}, exact},
		"not connected":                  {udpTable, "10.244.1.9:32769", []uint64{101}, anyOwn},
		"two with SO_REUSEPORT":          {udpTable, "10.244.1.9:32770", []uint64{103, 104}, anyOwn},
		"closed, not gone yet":           {udpTable, "10.244.1.9:32771", nil, noFit},
		"nobody":                         {udpTable, "10.244.1.2:53", nil, noFit},
		"IPv4 on an IPv6 socket, bound":  {udp6Table, "10.244.1.2:32772", []uint64{202}, exact},
		"IPv4 on an IPv6 socket, any":    {udp6Table, "10.244.1.9:32772", []uint64{200}, anyAddr},
		"IPv6, bound":                    {udp6Table, "[fd00::2]:32772", []uint64{201}, exact},
		"IPv6, any":                      {udp6Table, "[fd00::9]:32772", []uint64{200}, anyOwn},
		"IPv6 does not come over IPv4's": {udpTable, "[fd00::9]:32770", nil, noFit},
	} {
		t.Run(name, func(t *testing.T) {
			got, fit := udpInodes(strings.NewReader(tc.table), netip.MustParseAddrPort(tc.client))
			if diff := cmp.Diff(tc.want, got); diff != "" || fit != tc.fit {
				t.Errorf("fit %d, want %d (-want +got)\n%s", fit, tc.fit, diff)
			}
		})
	}
}

func TestReadInfo(t *testing.T) {
	dns := sandbox{pid: 7, nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")}, search: []string{"ci.svc", "svc"}}
	for info, want := range map[string]sandbox{
		`{"pid":1234,"processStatus":"running"}`: {pid: 1234},
		`{"image":"pause","pid":7}`:              {pid: 7},
		`{"pid":-1}`:                             {},
		`{"pid":"x"}`:                            {},
		`nonsense`:                               {},
		``:                                       {},
		`{"pid":7,"config":{"dns_config":{"servers":["10.96.0.10","x","fd00::a"],"searches":["ci.svc","svc"],"options":["ndots:5"]}}}`: dns,
	} {
		var got sandbox
		got.read(info)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(sandbox{}, container{}), equateAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", info, diff)
		}
	}
}

// Containers choose the contents of most of these.
func FuzzParse(f *testing.F) {
	for _, s := range []string{udpTable, udp6Table, "nameserver 10.0.0.1\nsearch a b\n", "0::/docker/" + idA, "7f-8f r-xp 0 08:01 1 /lib/ld-musl-x86_64.so.1\n", `{"pid":1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if servers, search := parseResolvConf(s); len(servers) > maxNameservers || len(strings.Join(search, "")) > maxSearch {
			t.Errorf("%d nameservers, search %q", len(servers), search)
		}
		for _, id := range containerIDs(s) {
			if len(id) != idLength || !isHex(id) {
				t.Errorf("id %q", id)
			}
		}
		inodes, fit := udpInodes(strings.NewReader(s), netip.MustParseAddrPort("10.244.1.2:32769"))
		if len(inodes) > 0 != (fit != noFit) {
			t.Errorf("%v with rank %d", inodes, fit)
		}
		_ = libcOf(strings.NewReader(s))
		var b sandbox
		if b.read(s); b.pid < 0 {
			t.Error("a negative pid")
		}
	})
}
