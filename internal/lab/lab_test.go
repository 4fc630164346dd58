package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/miekg/dns"
	"github.com/ti-mo/netfilter"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		os.Exit(crash())
	}
	goleak.VerifyTestMain(m)
}

var (
	service4 = netip.MustParseAddr("10.96.0.10")
	service6 = netip.MustParseAddr("fd00:10:96::a")
	second4  = netip.MustParseAddr("10.96.0.11")
	second6  = netip.MustParseAddr("fd00:10:96::b")

	answer4 = netip.MustParseAddr("192.0.2.1")
	answer6 = netip.MustParseAddr("2001:db8::1")
	answers = []netip.Addr{answer4, answer6}
)

// families are the service addresses of each family.
var families = []struct {
	name          string
	service, next netip.Addr
}{
	{"ipv4", service4, second4},
	{"ipv6", service6, second6},
}

// addServers makes n servers with the same rules and returns their addresses of
// the family of like.
func addServers(t *testing.T, l *Lab, n int, like netip.Addr, rules ...Rule) ([]*Server, []netip.Addr) {
	t.Helper()
	var servers []*Server
	var addrs []netip.Addr
	for range n {
		s, err := l.AddServer(rules...)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
		if like.Is4() {
			addrs = append(addrs, s.Addr4)
		} else {
			addrs = append(addrs, s.Addr6)
		}
	}
	return servers, addrs
}

func addPod(t *testing.T, l *Lab, cfg PodConfig) *Pod {
	t.Helper()
	p, err := l.AddPod(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addService(t *testing.T, l *Lab, addr netip.Addr, b Balance, backends ...netip.Addr) {
	t.Helper()
	if err := l.AddService(addr, b, backends...); err != nil {
		t.Fatal(err)
	}
}

func hold(t *testing.T, l *Lab, n int, wait time.Duration) *Holder {
	t.Helper()
	h, err := l.Hold(n, wait)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func resolve(t *testing.T, p *Pod, r Resolver, count int, names ...string) []Answer {
	t.Helper()
	got, err := p.Resolve(t.Context(), r, count, names...)
	if err != nil {
		t.Fatal(err)
	}
	if want := count * len(names); len(got) != want {
		t.Fatalf("%d answers to %d lookups: %v", len(got), want, got)
	}
	return got
}

// patient are options of a resolver that asks once, and waits for the answer for
// longer than any machine stands still: no question comes twice, and a lookup fails
// when something of it is lost.
func patient() []string { return []string{"timeout:60", "attempts:1"} }

// allOK fails the test unless each answer has both addresses.
func allOK(t *testing.T, got []Answer) {
	t.Helper()
	for _, a := range got {
		slices.SortFunc(a.Addrs, netip.Addr.Compare)
		if a.Err != "" {
			t.Errorf("lookup of %s: error %q after %v, %v", a.Name, a.Err, a.Took, a.Addrs)
		}
		if diff := cmp.Diff(answers, a.Addrs, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("addresses of %s (-want +got):\n%s", a.Name, diff)
		}
	}
}

// counters are the statistics of conntrack that tell of collisions.
type counters struct {
	insertFailed, drop, clashResolve uint32
}

// statistics sums up the node's conntrack statistics over all CPUs.
func statistics(t *testing.T, l *Lab) counters {
	t.Helper()
	const (
		getStatsCPU       = 4 // enum cntl_msg_types in linux/netfilter/nfnetlink_conntrack.h
		statsInsertFailed = 9 // enum ctattr_stats_cpu
		statsDrop         = 10
		statsClashResolve = 14
	)
	conn, err := netfilter.Dial(&netlink.Config{NetNS: l.Node().FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink,
		MessageType: getStatsCPU,
		Flags:       netlink.Request | netlink.Dump,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := conn.Query(req)
	if err != nil {
		t.Fatal(err)
	}
	var sum counters
	for _, m := range msgs {
		_, attrs, err := netfilter.UnmarshalNetlink(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range attrs {
			switch a.Type {
			case statsInsertFailed:
				sum.insertFailed += a.Uint32()
			case statsDrop:
				sum.drop += a.Uint32()
			case statsClashResolve:
				sum.clashResolve += a.Uint32()
			}
		}
	}
	return sum
}

// TestResolvers proves that every resolver gets both families' answers through
// a service of each family.
func TestResolvers(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	for _, f := range families {
		servers, backends := addServers(t, l, 2, f.service, Rule{Name: "ok.test", Addrs: answers})
		addService(t, l, f.service, Random, backends...)
		pod := addPod(t, l, PodConfig{Name: f.name, Nameservers: []netip.Addr{f.service}, Search: []string{"ns.svc.cluster.local"}, Options: append(patient(), "ndots:5")})
		for _, r := range Resolvers() {
			t.Run(f.name+"/"+string(r), func(t *testing.T) {
				for _, s := range servers {
					s.Record(true)
				}
				allOK(t, resolve(t, pod, r, 3, "ok.test"))
				got := resolve(t, pod, r, 1, "missing.test")
				if got[0].Err == "" {
					t.Errorf("missing name: %v", got[0])
				}
				questions := slices.Concat(servers[0].Recorded(), servers[1].Recorded())
				// 4 lookups, both types, with and without the search domain.
				if want := 4 * 2 * 2; len(questions) != want {
					t.Errorf("%d questions, want %d: %v", len(questions), want, questions)
				}
				for _, q := range questions {
					if a := q.Client.Addr(); a != pod.Addr4 && a != pod.Addr6 {
						t.Errorf("question from %v, not from the pod: the node masquerades", a)
					}
				}
			})
		}
	}
}

// together is how long packets are held in tests of collisions: longer than any
// machine stands still, and shorter than the patience of the resolvers.
const together = 30 * time.Second

// pairs returns the questions by client socket. It fails the test unless there
// are at least most sockets: now and then a socket gets a port that an earlier
// one had, its packets find the tracked connection, and nothing collides.
func pairs(t *testing.T, most int, servers []*Server) map[netip.AddrPort][]int {
	t.Helper()
	by := make(map[netip.AddrPort][]int) // the numbers of the servers that were asked
	for i, s := range servers {
		for _, q := range s.Recorded() {
			by[q.Client] = append(by[q.Client], i)
		}
	}
	if len(by) < most-5 {
		t.Fatalf("%d sockets asked, want %d", len(by), most)
	}
	return by
}

// checkStatistics waits until conntrack has counted what is wanted: a packet of a
// group may have its turn when the others are answered already.
func checkStatistics(t *testing.T, l *Lab, want counters) {
	t.Helper()
	err := Until(t.Context(), time.Minute, func() error {
		if diff := cmp.Diff(want, statistics(t, l), cmp.AllowUnexported(counters{})); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	if err != nil {
		t.Errorf("conntrack's statistics (-want +got): %v", err)
	}
}

// TestCollisions proves that every held pair collides; that the loser is kept
// when the packets go to two backends, and merged when they go to one.
func TestCollisions(t *testing.T) {
	t.Parallel()
	const count = 50
	for _, f := range families {
		for balance, backendsOfPair := range map[Balance]int{Alternate: 2, Hash: 1} {
			t.Run(fmt.Sprintf("%s/%v", f.name, balance), func(t *testing.T) {
				t.Parallel()
				l := ForTest(t)
				servers, backends := addServers(t, l, 2, f.service, Rule{Addrs: answers})
				for _, s := range servers {
					s.Record(true)
				}
				addService(t, l, f.service, balance, backends...)
				pod := addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{f.service}, Options: patient()})
				h := hold(t, l, 2, together)
				allOK(t, resolve(t, pod, MuslStatic, count, "a.test"))
				if h.Full() != count || h.Partial() != 0 {
					t.Errorf("%d groups full and %d partial, want %d and 0", h.Full(), h.Partial(), count)
				}
				sockets := pairs(t, count, servers)
				checkStatistics(t, l, counters{clashResolve: uint32(len(sockets))})
				asked := make(map[int]bool)
				for client, numbers := range sockets {
					asked[numbers[0]] = true
					if len(numbers) != 2 {
						continue // a port that was used twice
					}
					if got := len(slices.Compact(numbers)); got != backendsOfPair {
						t.Errorf("the pair of %v went to %d backends, want %d", client, got, backendsOfPair)
					}
				}
				if balance == Hash && len(asked) != 2 {
					t.Error("the hash sends everything to one backend")
				}
			})
		}
	}
}

// TestCollisionsDropped proves that the kernel drops packets when musl asks two
// services that are translated to the same backends.
func TestCollisionsDropped(t *testing.T) {
	t.Parallel()
	const count = 10
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			l := ForTest(t)
			servers, backends := addServers(t, l, 2, f.service, Rule{Addrs: answers})
			addService(t, l, f.service, Alternate, backends...)
			addService(t, l, f.next, Alternate, backends...)
			h := hold(t, l, 4, together)
			for range count { // a pod for each, so that no socket has another's address and port
				pod := addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{f.service, f.next}, Options: patient()})
				// One nameserver's packets get through: nothing is lost for the client.
				allOK(t, resolve(t, pod, MuslStatic, 1, "a.test"))
			}
			checkStatistics(t, l, counters{insertFailed: 2 * count, drop: 2 * count, clashResolve: count})
			if h.Full() != count || h.Partial() != 0 {
				t.Errorf("%d groups full and %d partial, want %d and 0", h.Full(), h.Partial(), count)
			}
			if got := servers[0].Questions() + servers[1].Questions(); got != 2*count {
				t.Errorf("%d questions arrived, want %d", got, 2*count)
			}
		})
	}
}

// TestOrphanedAnswer proves the stall that all this is about: an answer slower
// than a kept entry's second is lost, and musl asks again; one behind a merged entry
// is not.
func TestOrphanedAnswer(t *testing.T) {
	t.Parallel()
	const delay = 1500 * time.Millisecond
	for _, f := range families {
		for balance, stalls := range map[Balance]bool{Alternate: true, Hash: false} {
			t.Run(fmt.Sprintf("%s/%v", f.name, balance), func(t *testing.T) {
				t.Parallel()
				l := ForTest(t)
				// What stalls is asked by musl as it is, and what it asks again is
				// answered at once, so that it is in time however late it was sent.
				slow, options := Rule{Addrs: answers, Delay: delay, Times: 1}, []string(nil)
				if !stalls {
					slow.Times, options = 0, patient()
				}
				servers, backends := addServers(t, l, 2, f.service, slow, Rule{Addrs: answers})
				addService(t, l, f.service, balance, backends...)
				pod := addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{f.service}, Options: options})
				h, err := l.HoldTimes(2, together, 1)
				if err != nil {
					t.Fatal(err)
				}
				got := resolve(t, pod, MuslStatic, 1, "a.test")
				allOK(t, got)
				if got[0].Took < delay {
					t.Errorf("answered after %v, before the server did", got[0].Took)
				}
				questions := servers[0].Questions() + servers[1].Questions()
				if stalled := questions > 2; stalled != stalls {
					t.Errorf("took %v and %d questions; stalled: %v, want %v", got[0].Took, questions, stalled, stalls)
				}
				if h.Full() != 1 || h.Partial() != 0 {
					t.Errorf("%d groups full and %d partial, want 1 and 0", h.Full(), h.Partial())
				}
			})
		}
	}
}

// TestHoldLetsGo proves that packets without company are not held for longer
// than the wait, and that Close drops nothing.
func TestHoldLetsGo(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	_, backends := addServers(t, l, 1, service4, Rule{Addrs: answers})
	addService(t, l, service4, Random, backends...)
	pod := addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{service4}, Options: patient()})
	h := hold(t, l, 3, 0)
	if _, err := l.Hold(2, 0); err == nil {
		t.Error("two holders at a time")
	}
	for range 3 { // one packet each, so that a client that stands still makes no two groups of one
		err := pod.Do(func() error {
			client := dns.Client{Timeout: time.Minute}
			_, _, err := client.Exchange(new(dns.Msg).SetQuestion("a.test.", dns.TypeA), service4.String()+":53")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if h.Full() != 0 || h.Partial() != 3 {
		t.Errorf("%d groups full and %d partial, want 0 and 3", h.Full(), h.Partial())
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}

	h, err := l.Hold(3, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		answers []Answer
		err     error
	}
	done := make(chan result)
	go func() {
		got, err := pod.Resolve(t.Context(), MuslStatic, 1, "a.test")
		done <- result{got, err}
	}()
	waitFor(t, "the packets to be in the queue", func() bool {
		var queue []byte
		err := l.Node().Do(func() (err error) {
			queue, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(queue)) {
			// The number of the queue, the port id of its listener, the packets in it.
			if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "2" {
				return true
			}
		}
		return false
	})
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	allOK(t, r.answers) // a dropped packet would be missed
}

// TestSideBySide proves that two labs with the same addresses don't see each other.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	labs := []*Lab{ForTest(t), ForTest(t)}
	var pods []*Pod
	var servers []*Server
	for i, l := range labs {
		s, backends := addServers(t, l, 1, service4, Rule{Name: "*", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}})
		addService(t, l, service4, Random, backends...)
		pods = append(pods, addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{service4}, Options: patient()}))
		servers = append(servers, s...)
	}
	if pods[0].Addr4 != pods[1].Addr4 || servers[0].Addr4 != servers[1].Addr4 {
		t.Error("the labs have different addresses")
	}
	if labs[0].Dir() == labs[1].Dir() {
		t.Error("the labs share a directory")
	}
	for i, p := range pods {
		got := resolve(t, p, MuslStatic, 1, "a.test")
		if want := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}); len(got[0].Addrs) != 1 || got[0].Addrs[0] != want {
			t.Errorf("lab %d: %v, want %v", i, got[0], want)
		}
		if n := servers[i].Questions(); n != 2 {
			t.Errorf("lab %d: %d questions, want 2", i, n)
		}
	}
}

// TestCoreDNS proves that the real CoreDNS answers behind a service.
func TestCoreDNS(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	c, err := l.AddCoreDNS(`. {
	bind {addr4} {addr6}
	hosts {
		192.0.2.1 ok.test
		2001:db8::1 ok.test
	}
}
`)
	if err != nil {
		t.Fatal(err)
	}
	addService(t, l, service4, Random, c.Addr4)
	addService(t, l, service6, Random, c.Addr6)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pod := addPod(t, l, PodConfig{Name: f.name, Nameservers: []netip.Addr{f.service}, Options: patient()})
			allOK(t, resolve(t, pod, MuslStatic, 2, "ok.test"))
		})
	}
	if _, err := l.AddCoreDNS("nonsense {"); err == nil {
		t.Error("CoreDNS runs with a nonsensical Corefile")
	}
}

// TestClientFlags proves that all clients understand the same flags.
func TestClientFlags(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	servers, backends := addServers(t, l, 1, service4, Rule{Name: "ok.test", Addrs: answers})
	addService(t, l, service4, Random, backends...)
	pod := addPod(t, l, PodConfig{Name: "pod", Nameservers: []netip.Addr{service4}, Options: patient()})
	for _, r := range Resolvers() {
		t.Run(string(r), func(t *testing.T) {
			path, err := Client(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			before := servers[0].QuestionsOf(dns.TypeAAAA)
			var out strings.Builder
			cmd := exec.Command(path, "-t", "2", "-n", "3", "-f", "6", "ok.test", "missing.test")
			cmd.Stdout = &out
			if err := pod.Start(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(out.String(), "# lookups=12 ok=6 failed=6 slowest_ms=") {
				t.Errorf("printed %q", out.String())
			}
			// Go asks once for equal lookups that run at the same time.
			if got := servers[0].QuestionsOf(dns.TypeAAAA) - before; got != 12 && (r != Go || got < 6 || got > 12) {
				t.Errorf("%d AAAA questions, want 12", got)
			}
			if got := servers[0].QuestionsOf(dns.TypeA); got != 0 {
				t.Errorf("%d A questions, want none", got)
			}
			for _, wrong := range [][]string{{}, {"-f", "5", "ok.test"}, {"-x", "ok.test"}} {
				err := exec.Command(path, wrong...).Run()
				if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 {
					t.Errorf("called with %v: %v, want status 2", wrong, err)
				}
			}
		})
	}
	if _, err := Client(t.Context(), "bind"); err == nil {
		t.Error("an unknown resolver has a client")
	}
}

// TestServiceReplaced proves that a second AddService of one address takes
// effect, also for questions of the node itself.
func TestServiceReplaced(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	servers, backends := addServers(t, l, 2, service4, Rule{Addrs: answers})
	for i, s := range servers {
		addService(t, l, service4, Random, backends[i])
		err := l.Node().Do(func() error {
			client := dns.Client{Timeout: time.Minute}
			_, _, err := client.Exchange(new(dns.Msg).SetQuestion("a.test.", dns.TypeA), service4.String()+":53")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := s.Questions(); n != 1 {
			t.Errorf("backend %d got %d questions, want 1", i, n)
		}
	}
	for _, bad := range [][]netip.Addr{nil, {servers[0].Addr6}} {
		if err := l.AddService(service4, Random, bad...); err == nil {
			t.Errorf("a service with the backends %v was accepted", bad)
		}
	}
}

func TestPodEtc(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	machine, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	pod := addPod(t, l, PodConfig{
		Name:        "pod",
		Nameservers: []netip.Addr{service4, service6},
		Search:      []string{"a.test", "b.test"},
		Options:     []string{"ndots:5", "timeout:1"},
		Addresses:   3,
	})
	var names []string
	var resolv []byte
	err = pod.Do(func() error {
		entries, err := os.ReadDir("/etc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		resolv, err = os.ReadFile("/etc/resolv.conf")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"hosts", "nsswitch.conf", "passwd", "resolv.conf"}, names); diff != "" {
		t.Errorf("files in the pod's /etc (-want +got):\n%s", diff)
	}
	want := "nameserver 10.96.0.10\nnameserver fd00:10:96::a\nsearch a.test b.test\noptions ndots:5 timeout:1\n"
	if diff := cmp.Diff(want, string(resolv)); diff != "" {
		t.Errorf("resolv.conf (-want +got):\n%s", diff)
	}
	if now, _ := os.ReadFile("/etc/resolv.conf"); string(now) != string(machine) {
		t.Errorf("the machine's resolv.conf changed: %q", now)
	}
	if len(pod.Addrs4) != 3 || pod.Addrs4[0] != pod.Addr4 {
		t.Errorf("addresses %v, first %v", pod.Addrs4, pod.Addr4)
	}
	if got := resolve(t, pod, MuslStatic, 1, "pod"); got[0].Err != "" {
		t.Errorf("the pod does not know its own name: %v", got[0])
	}
}

// waitFor waits until the condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(time.Minute)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
