package lookup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// The tests of this file read the kernel's own ring in a node in a box. They
// need root.

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
			slices.SortFunc(way, func(a, b sight) int { return a.At.Compare(b.At) }) // they come by two rings
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
				if age := time.Since(s.At); age < 0 || age > 10*time.Second {
					t.Errorf("step %d was at %v", i, s.At)
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
	// The loss is reported before what was not lost is read.
	var c Counters
	b.wait("the packets that were not lost", func([]sight) bool {
		c = b.sensor.Counters()
		return c.Packets > 0 && c.Packets+c.Lost >= packets
	})
	if c.Lost != loss.Packets {
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
	// A sensor that waits for the idle beat is late each time; a machine that stands still, once.
	var late []time.Duration
	for range 3 {
		var before int
		b.wait("the sensor not to be idle", func([]sight) bool { return b.gap <= idleBeat*7/10 })
		b.wait("the sensor to be idle", func(all []sight) bool { before = len(all); return b.gap > idleBeat*7/10 })
		begin := time.Now()
		if err := p.Do(func() error {
			return sendFrame("eth0", etherTypeIPv4, ip4(unix.IPPROTO_UDP, pod4, service4, udp(4242, 53, queryBytes)))
		}); err != nil {
			t.Fatal(err)
		}
		b.wait("a packet", func(all []sight) bool { return len(all) > before })
		took := time.Since(begin)
		if took <= idleBeat*8/10 {
			return
		}
		late = append(late, took)
	}
	t.Errorf("a packet was seen after %v", late)
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
