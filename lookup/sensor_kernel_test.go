package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// The tests of this file read the kernel's own ring in a node in a box. They
// need root.

// sight is a packet as the sink got it.
type sight struct {
	decoded
	At     time.Time
	Link   string
	Role   role
	Egress bool
}

// recorder is a sink that keeps what it gets.
type recorder struct {
	mu     sync.Mutex
	known  map[int32]link
	local  map[addr]struct{}
	seen   []sight
	losses [][2]int64
	ticked int64
	late   int // packets from before a tick that had passed
	ended  bool
	held   int           // what it says is pending
	last   time.Time     // when tick was called last
	gap    time.Duration // between the last two calls of tick
}

func (r *recorder) links(links []link, local map[addr]struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.local = map[int32]link{}, local
	for _, l := range links {
		r.known[l.index] = l
	}
}

func (r *recorder) packet(p *packet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.at < r.ticked-int64(unseen) {
		r.late++
	}
	l := r.known[p.link]
	r.seen = append(r.seen, sight{decoded: p.decoded(), At: time.Unix(0, p.at), Link: l.name, Role: l.role, Egress: p.egress})
}

func (r *recorder) tick(at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ticked = at
	if now := time.Now(); !r.last.IsZero() {
		r.gap, r.last = now.Sub(r.last), now
	} else {
		r.last = now
	}
}

func (r *recorder) lost(from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.losses = append(r.losses, [2]int64{from, to})
}

func (r *recorder) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

func (r *recorder) discarded() uint64 { return 1 }
func (r *recorder) malformed() uint64 { return 2 }
func (r *recorder) pending() int      { return r.held }

// tapped is a node in a box with a recorder in place of the tracker.
type tapped struct {
	*lab.Lab
	recorder
	t      *testing.T
	sensor *Sensor
	events []Event // guarded by recorder.mu
}

// tap opens a sensor in the node's namespace, and does not run it yet.
func tap(t *testing.T, cfg Config) *tapped {
	t.Helper()
	b := &tapped{Lab: lab.ForTest(t), t: t}
	b.open(cfg)
	return b
}

func (b *tapped) open(cfg Config) {
	b.t.Helper()
	if err := b.Node().Do(func() (err error) {
		b.sensor, err = Open(cfg)
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	b.sensor.newSink = func(func(Event)) sink { return &b.recorder }
}

// run runs the sensor until stop is called.
func (b *tapped) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- b.sensor.Run(ctx, func(e Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, b.sensor.Close()); err != nil {
			b.t.Errorf("run: %v", err)
		}
		if b.mu.Lock(); !b.ended {
			b.t.Error("the sink was not finished")
		}
		b.mu.Unlock()
	})
	b.t.Cleanup(stop)
	return stop
}

// wait waits until ok accepts what was seen so far.
func (b *tapped) wait(what string, ok func([]sight) bool) []sight {
	b.t.Helper()
	var seen []sight
	err := lab.Until(b.t.Context(), 10*time.Second, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if seen = slices.Clone(b.seen); !ok(seen) {
			return errors.New("not seen")
		}
		return nil
	})
	if err != nil {
		b.t.Fatalf("wait for %s: %v; seen: %d packets, links %v", what, err, len(seen), b.known)
	}
	return seen
}

func (b *tapped) service(addr netip.Addr, rules ...lab.Rule) *lab.Server {
	b.t.Helper()
	s, err := b.AddServer(rules...)
	if err != nil {
		b.t.Fatal(err)
	}
	to := s.Addr4
	if addr.Is6() {
		to = s.Addr6
	}
	if err := b.AddService(addr, lab.Random, to); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *tapped) pod(name string, nameservers ...netip.Addr) *lab.Pod {
	b.t.Helper()
	p, err := b.AddPod(lab.PodConfig{Name: name, Nameservers: nameservers})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *tapped) resolve(p *lab.Pod, r lab.Resolver, name string) {
	b.t.Helper()
	if _, err := p.Resolve(b.t.Context(), r, 1, name); err != nil {
		b.t.Fatal(err)
	}
}

// A question and its answer are seen four times, in order: at the pod's link, as
// the pod knows them, and at the uplink, translated.
func TestWay(t *testing.T) {
	b := tap(t, Config{})
	b.held = 3
	b.run()
	for _, f := range []struct {
		service netip.Addr
		of      func(*lab.Pod, *lab.Server) (pod, server netip.Addr)
	}{
		{service4, func(p *lab.Pod, s *lab.Server) (netip.Addr, netip.Addr) { return p.Addr4, s.Addr4 }},
		{service6, func(p *lab.Pod, s *lab.Server) (netip.Addr, netip.Addr) { return p.Addr6, s.Addr6 }},
	} {
		s := b.service(f.service, lab.Rule{Name: "*", Addrs: []netip.Addr{router4, router6}})
		// The pod, and its link, come while the sensor runs.
		p := b.pod("client", f.service)
		client4, server := f.of(p, s)
		b.resolve(p, lab.MuslStatic, "name.test.")
		ways := map[uint16][]sight{} // by DNS id
		b.wait("the way of two questions", func(all []sight) bool {
			clear(ways)
			for _, s := range all {
				if s.Src.Addr() == client4 || s.Dst.Addr() == client4 {
					id := uint16(s.Message[0])<<8 | uint16(s.Message[1])
					ways[id] = append(ways[id], s)
				}
			}
			return len(ways) == 2 && !slices.ContainsFunc(all, func(s sight) bool { return s.Link == "" }) && complete(ways)
		})
		for _, way := range ways {
			want := []struct {
				link     string
				role     role
				egress   bool
				src, dst netip.Addr
			}{
				{p.Link, client, false, client4, f.service},
				{lab.Uplink, uplink, true, client4, server},
				{lab.Uplink, uplink, false, server, client4},
				{p.Link, client, true, f.service, client4},
			}
			for i, w := range want {
				s := way[i]
				if s.Link != w.link || s.Role != w.role || s.Egress != w.egress || s.Src.Addr() != w.src || s.Dst.Addr() != w.dst {
					t.Errorf("step %d is %+v, want %+v", i, s, w)
				}
				if age := time.Since(s.At); age < 0 || age > 10*time.Second || i > 0 && s.At.Before(way[i-1].At) {
					t.Errorf("step %d was at %v, the one before at %v", i, s.At, way[max(i-1, 0)].At)
				}
			}
		}
		if _, ok := b.local[addrOf(netip.MustParseAddr("172.18.0.2"))]; !ok || len(b.local) < 4 {
			t.Errorf("local addresses: %v", b.local)
		}
	}
	if b.late > 0 {
		t.Errorf("%d packets came after a tick that promised that there were none", b.late)
	}
	if got := b.sensor.Counters(); got.Packets < 16 || got.Discarded != 1 || got.Malformed != 2 || got.Pending != 3 || got.Lost != 0 {
		t.Errorf("counters: %+v", got)
	}
}

func complete(ways map[uint16][]sight) bool {
	for _, w := range ways {
		if len(w) != 4 {
			return false
		}
	}
	return true
}

// The node's own questions to a server of its own pass lo, out and in.
func TestLoopback(t *testing.T) {
	b := tap(t, Config{Ports: []uint16{53, 5353}})
	b.run()
	err := b.Node().Do(func() error {
		c, err := net.Dial("udp4", "127.0.0.1:5353")
		if err != nil {
			return err
		}
		_, err = c.Write(queryBytes)
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	b.wait("a question and an ICMP error on lo", func(all []sight) bool {
		kinds := map[string]bool{}
		for _, s := range all {
			if s.Role == loopback && s.Dst.Port() == 5353 {
				kinds[fmt.Sprint(s.Kind, s.Egress)] = true
			}
		}
		return kinds["datagramtrue"] && kinds["datagramfalse"] && kinds["unreachablefalse"]
	})
}

// What a pod puts on its link comes out of the ring as it is: every frame of the
// table of TestDecode, through the kernel's VLAN handling, its filter in a real
// packet socket and the ring.
func TestFrames(t *testing.T) {
	b := tap(t, Config{})
	p := b.pod("client", service4)
	// Room for the longest.
	if err := errors.Join(b.Node().Do(func() error { return mtu(p.Link, 9000) }), p.Do(func() error { return mtu("eth0", 9000) })); err != nil {
		t.Fatal(err)
	}
	b.run()
	want, refused := map[decoded][]string{}, 0
	send := func(proto uint16, frame []byte) {
		t.Helper()
		if err := p.Do(func() error { return sendFrame("eth0", proto, frame) }); err != nil {
			t.Fatal(err)
		}
	}
	for name, f := range samples() {
		proto := uint16(etherTypeIPv4)
		switch {
		case strings.Contains(name, "VLAN") || strings.Contains(name, "QinQ"):
			// The kernel takes one tag off: there are up to three on the link.
			proto, f = etherTypeQinQ, tag(etherTypeVLAN, f)
		case f[0]>>4 == 6:
			proto = etherTypeIPv6
		}
		var pk packet
		inner := f
		if proto == etherTypeQinQ {
			inner = f[4:]
		}
		if decode(inner[:min(len(inner), snapLength)], []uint16{53}, &pk) {
			want[pk.decoded()] = append(want[pk.decoded()], name)
		} else {
			refused++
		}
		send(proto, f)
	}
	if refused < 10 {
		t.Fatalf("only %d frames that are to be refused", refused)
	}
	end := udp(4242, 53, []byte("the end"))
	send(etherTypeIPv4, ip4(unix.IPPROTO_UDP, pod4, service4, end))
	seen := b.wait("the last frame", func(all []sight) bool {
		return slices.ContainsFunc(all, func(s sight) bool { return s.Link == p.Link && s.Message == "the end" })
	})
	got := map[decoded]int{}
	for _, s := range seen {
		if s.Link == p.Link && !s.Egress {
			got[s.decoded]++
		}
	}
	for d, names := range want {
		if got[d] != len(names) {
			t.Errorf("%v: seen %d times, want %d: %+v", names, got[d], len(names), d)
		}
		delete(got, d)
	}
	for d, n := range got {
		if d.Message != "the end" {
			t.Errorf("seen %d times, but nobody sent it: %+v", n, d)
		}
	}
}

// mtu sets the MTU of a link of the calling thread's namespace.
func mtu(name string, bytes int) error {
	l, err := rtnl.LinkByName(name)
	if err != nil {
		return err
	}
	return rtnl.LinkSetMTU(l, bytes)
}

// sendFrame puts a frame on a link of the calling thread's namespace.
func sendFrame(name string, proto uint16, frame []byte) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := unix.SockaddrLinklayer{Protocol: proto>>8 | proto<<8, Ifindex: link.Index, Halen: 6}
	copy(to.Addr[:], "\xee\xee\xee\xee\xee\xee")
	return errors.Join(unix.Sendto(fd, frame, 0, &to), unix.Close(fd))
}

// What does not fit into the ring is counted and said, with the time.
func TestOverrun(t *testing.T) {
	b := tap(t, Config{RingBytes: 1}) // two blocks
	p := b.pod("client", service4)
	begin := time.Now()
	const packets = 3000
	err := p.Do(func() error {
		c, err := net.Dial("udp4", service4.String()+":53")
		if err != nil {
			return err
		}
		defer c.Close()
		for range packets {
			if _, err := c.Write(queryBytes); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sent := time.Now()
	b.run()
	var loss Loss
	b.wait("a report of the loss", func([]sight) bool {
		for _, e := range b.events {
			loss, _ = e.(Loss)
		}
		return loss.Packets > 0
	})
	c := b.sensor.Counters()
	if c.Packets == 0 || c.Lost != loss.Packets || c.Packets+c.Lost < packets {
		t.Errorf("%d packets at two links: %+v, %+v", packets, c, loss)
	}
	if len(b.losses) == 0 || loss.To.Before(sent) || loss.To.After(time.Now()) || loss.From.Before(begin.Add(-time.Second)) || loss.From.After(sent) {
		t.Errorf("sent from %v to %v, lost %+v, said to the sink: %v", begin, sent, loss, b.losses)
	}
	// It goes on.
	if err := p.Do(func() error {
		return sendFrame("eth0", etherTypeIPv4, ip4(unix.IPPROTO_UDP, pod4, service4, udp(4242, 53, []byte("afterwards"))))
	}); err != nil {
		t.Fatal(err)
	}
	b.wait("a packet after the loss", func(all []sight) bool {
		return slices.ContainsFunc(all, func(s sight) bool { return s.Message == "afterwards" })
	})
}

// While nothing happens nobody wakes, and the first packet is seen at once all
// the same.
func TestIdle(t *testing.T) {
	b := tap(t, Config{})
	p := b.pod("client", service4)
	b.run()
	b.wait("the sensor to be idle", func([]sight) bool { return b.gap > idleBeat*7/10 })
	begin := time.Now()
	if err := p.Do(func() error {
		return sendFrame("eth0", etherTypeIPv4, ip4(unix.IPPROTO_UDP, pod4, service4, udp(4242, 53, queryBytes)))
	}); err != nil {
		t.Fatal(err)
	}
	b.wait("a packet", func(all []sight) bool { return len(all) > 0 })
	if took := time.Since(begin); took > idleBeat*8/10 {
		t.Errorf("a packet was seen after %v", took)
	}
}

// Links that go are forgotten, and others are not looked at when some are
// named.
func TestLinksComeAndGo(t *testing.T) {
	b := tap(t, Config{Interfaces: []string{"cali2"}})
	b.run()
	blind := func(want bool) {
		t.Helper()
		b.wait(fmt.Sprintf("blind: %v", want), func([]sight) bool {
			if len(b.events) == 0 {
				return false
			}
			last := b.events[len(b.events)-1].(Blindness)
			return last.Reason == NoLinks && last.Blind == want && (last.Evidence != "") == want
		})
	}
	blind(true)
	s := b.service(service4, lab.Rule{Name: "*", Addrs: []netip.Addr{router4}})
	first, second := b.pod("first", service4), b.pod("second", service4)
	blind(false)
	for _, p := range []*lab.Pod{first, second} {
		b.resolve(p, lab.Glibc, "name.test.")
	}
	if s.Questions() == 0 {
		t.Fatal("nothing was asked")
	}
	seen := b.wait("the second pod's packets", func(all []sight) bool { return len(all) >= 4 })
	for _, s := range seen {
		if s.Link != second.Link {
			t.Errorf("seen at %s, which is not configured: %+v", s.Link, s)
		}
	}
	if err := b.Node().Do(func() error {
		l, err := rtnl.LinkByName(second.Link)
		if err != nil {
			return err
		}
		return rtnl.LinkDel(l)
	}); err != nil {
		t.Fatal(err)
	}
	blind(true)
	b.wait("the link to be forgotten", func([]sight) bool {
		for _, l := range b.known {
			if l.name == second.Link {
				return false
			}
		}
		return true
	})
}

// Close gives everything back, also after an Open that fails.
func TestClose(t *testing.T) {
	descriptors := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	b := tap(t, Config{})
	if err := b.sensor.Close(); err != nil {
		t.Fatal(err)
	}
	before := descriptors()
	for range 3 {
		b.open(Config{})
		if err := b.sensor.Close(); err != nil {
			t.Fatal(err)
		}
		if err := withoutNetRaw(b.Node(), func() error { _, err := Open(Config{}); return err }); !errors.Is(err, ErrPermission) {
			t.Errorf("without CAP_NET_RAW: %v", err)
		}
	}
	if after := descriptors(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// withoutNetRaw runs fn on a thread of the namespace that has no CAP_NET_RAW and
// ends.
func withoutNetRaw(n *lab.Namespace, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is spoilt
		done <- func() error {
			if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
				return err
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				return err
			}
			data[0].Effective &^= 1 << unix.CAP_NET_RAW
			if err := unix.Capset(&header, &data[0]); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}
