package workload

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addr  = netip.MustParseAddr("10.244.1.2")
	addr6 = netip.MustParseAddr("fd00::2")
)

func after(d time.Duration) time.Time { return epoch.Add(d * time.Second) }

func box(id, name string, created time.Time, addrs ...netip.Addr) sandbox {
	return sandbox{
		id: id, namespace: "ci", name: name, uid: "uid-" + id, addrs: addrs, created: created, pid: 1,
		containers: []container{{id: "c-" + id, name: "build"}},
	}
}

// Two pods had one address, one after the other; the second one's link came a
// second before the runtime told of anything.
func TestTableAt(t *testing.T) {
	build := func(links bool) *table {
		tab := newTable()
		tab.shared = map[int]bool{1: true, 2: true} // lo and a bridge
		tab.loopback = 1
		tab.local = map[netip.Addr]bool{netip.MustParseAddr("172.18.0.2"): true}
		tab.update([]sandbox{box("a", "old", after(0), addr, addr6), box("h", "dns", after(0))}, after(1))
		if links {
			tab.attach(tab.live["a"], "net:[7]", []int{7})
			tab.unlinked(7, after(10))
		}
		tab.update([]sandbox{box("b", "new", after(12), addr), box("h", "dns", after(0))}, after(13))
		if links {
			tab.attach(tab.live["b"], "net:[8]", []int{8})
		}
		return tab
	}
	for _, tc := range []struct {
		name  string
		links bool
		link  int
		addr  netip.Addr
		at    time.Time
		want  string
	}{
		{"the first, by link", true, 7, addr, after(5), "old"},
		{"the first, by link, long after", true, 7, addr, after(60), "old"},
		{"the first, by address", true, 0, addr, after(5), "old"},
		{"the first, by address on a bridge", true, 2, addr, after(5), "old"},
		{"the first, by its other address", true, 0, addr6, after(5), "old"},
		{"nobody, when the link was gone", true, 0, addr, after(11), ""},
		{"the second, by address", true, 0, addr, after(13), "new"},
		{"the second, by link", true, 8, addr, after(12), "new"},
		{"the second, by link, of an address that the runtime does not tell", true, 8, addr6, after(12), "new"},
		{"nobody, on a link that is not known yet", true, 9, addr, after(13), ""},
		{"nobody, before the first", true, 0, addr, after(-1), ""},
		{"without links: the first", false, 7, addr, after(5), "old"},
		{"without links: the second", false, 8, addr, after(12), "new"},
		{"an address that nobody has", true, 0, netip.MustParseAddr("10.1.1.1"), after(5), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if p := build(tc.links).at(tc.link, tc.addr, tc.at); p != nil {
				got = p.name
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTableHost(t *testing.T) {
	tab := newTable()
	own, other := netip.MustParseAddr("172.18.0.2"), netip.MustParseAddr("127.0.0.9")
	tab.loopback, tab.shared = 1, map[int]bool{1: true, 2: true}
	tab.local = map[netip.Addr]bool{own: true}
	host := box("h", "dns", after(0), own)
	host.host = true
	tab.update([]sandbox{host}, after(0))
	if p := tab.at(0, own, after(1)); p != nil {
		t.Errorf("the node's address belongs to %s alone", p.name)
	}
	for _, tc := range []struct {
		link int
		addr netip.Addr
		want bool
	}{{0, own, true}, {1, own, true}, {1, other, true}, {2, own, true}, {7, own, false}, {0, other, false}} {
		if got := tab.isHost(tc.link, tc.addr); got != tc.want {
			t.Errorf("isHost(%d, %v) = %v", tc.link, tc.addr, got)
		}
	}
}

// The container is named only while there is no doubt about it.
func TestPodContainer(t *testing.T) {
	for _, tc := range []struct {
		containers []container
		want       string
	}{
		{nil, ""},
		{[]container{{"1", "app"}}, "app"},
		{[]container{{"1", "app"}, {"2", "app"}}, "app"}, // restarted
		{[]container{{"1", "init"}, {"2", "app"}}, ""},
	} {
		p := pod{sandbox: sandbox{containers: tc.containers}}
		if got := p.workload().Container; got != tc.want {
			t.Errorf("%v: %q, want %q", tc.containers, got, tc.want)
		}
	}
}

// A pod is gone when nothing of its name is left.
func TestTableGone(t *testing.T) {
	tab := newTable()
	steps := []struct {
		list []sandbox
		want []string
	}{
		{[]sandbox{box("a", "web-0", after(0), addr)}, nil},
		{[]sandbox{box("b", "web-0", after(1), addr6)}, nil}, // its sandbox was made again
		{[]sandbox{box("b", "web-0", after(1), addr)}, nil},  // another address, as after a restart of docker
		{nil, []string{"web-0"}},
		{nil, nil},
	}
	for i, s := range steps {
		var got []string
		for _, w := range tab.update(s.list, after(time.Duration(i)+1)) {
			got = append(got, w.Pod)
		}
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("step %d (-want +got)\n%s", i, diff)
		}
	}
	if p := tab.at(0, addr6, after(2)); p == nil || p.id != "b" {
		t.Errorf("before its restart the pod was %+v", p)
	}
}

// However many pods come and go, what is remembered is bounded, and forgotten.
func TestTableForgets(t *testing.T) {
	tab := newTable()
	for i := range 3 * maxEnded {
		s := box(fmt.Sprint(i), "job", after(0), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		tab.update([]sandbox{s}, after(1))
		tab.attach(tab.live[s.id], "net:["+s.id+"]", []int{i + 10})
	}
	sizes := func() [7]int {
		return [7]int{len(tab.live), len(tab.ended), len(tab.byAddr), len(tab.byLink), len(tab.byNetns), len(tab.byHolder), len(tab.shared)}
	}
	if got, want := sizes(), [7]int{1, maxEnded, maxEnded + 1, maxEnded + 1, maxEnded + 1, 2 * (maxEnded + 1), 0}; got != want {
		t.Errorf("sizes %v, want %v", got, want)
	}
	tab.update(nil, after(2))
	tab.update(nil, after(2).Add(remember+time.Second))
	if got := sizes(); got != [7]int{} {
		t.Errorf("sizes %v, want none", got)
	}
}

func BenchmarkAt(b *testing.B) {
	f := &Finder{table: newTable(), sockets: make(map[netip.AddrPort]located)}
	var list []sandbox
	for i := range 250 {
		list = append(list, box(fmt.Sprint(i), fmt.Sprint("pod-", i), after(0), netip.AddrFrom4([4]byte{10, 244, 1, byte(i)})))
	}
	f.table.update(list, after(1))
	for i := range 250 {
		f.table.attach(f.table.live[fmt.Sprint(i)], "net", []int{i + 10})
	}
	client := netip.AddrPortFrom(addr, 32769)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := f.At(12, client, after(2)); !ok {
			b.Fatal("not known")
		}
	}
}
