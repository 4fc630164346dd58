package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"
	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

var capture = flag.Bool("capture", false, "write one message of each kind that the kernel sends to testdata/messages, the fuzzer's seeds")

var everything = wanted{asked: []uint16{53}, answering: []uint16{53}, assured: true}

// What the kernel really sends: the filter, the decoder and the library's
// decoder agree on each message.
func TestLiveMessages(t *testing.T) {
	const delay = lateAnswer
	b := newBox(t, lab.Alternate, lab.Rule{Name: "slow.test.", Addrs: answer, Delay: delay}, lab.Rule{Name: "*", Addrs: answer})
	for _, s := range []string{"timestamp", "acct"} {
		if err := b.Node().Sysctl("net/netfilter/nf_conntrack_"+s, "1"); err != nil {
			t.Fatal(err)
		}
	}
	all, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0xffffffff}})
	if err != nil {
		t.Fatal(err)
	}
	var events *socket
	if err := b.Node().Do(func() (err error) {
		events, err = listen(all, defaultReceiveBuffer)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := events.close(); err != nil {
			t.Error(err)
		}
	}()

	four, six := b.pod("four", service4), b.pod("six", service6)
	b.resolve(four, lab.Glibc, 2, "healthy.test.")
	b.resolve(six, lab.MuslStatic, 2, "healthy.test.")
	h := b.hold(2)
	for _, p := range []*lab.Pod{four, six} {
		b.collide(p, h)
		b.lookupThatWaits(p, delay)
	}
	// The end of entries: now, not in minutes.
	if err := b.Node().Do(func() error {
		conn, err := ct.Dial(nil)
		if err != nil {
			return err
		}
		return errors.Join(conn.Flush(), conn.Close())
	}); err != nil {
		t.Fatal(err)
	}

	k := newKernelFilter(t, everything)
	kinds := map[string]int{}
	_, _, err = events.receive(t.Context(), time.Now().Add(time.Second), func(msg []byte) {
		msg = bytes.Clone(msg)
		kind, err := agree(k, msg)
		if err != nil {
			t.Errorf("%v\n% x", err, msg)
			return
		}
		if kinds[kind]++; *capture && kinds[kind] == 1 {
			if err := os.WriteFile(filepath.Join("testdata", "messages", kind), msg, 0o644); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"4", "6"} {
		for _, kind := range []string{"new", "reply", "assured", "destroyed", "kept", "kept-destroyed", "orphan"} {
			if kinds[kind+family] == 0 {
				t.Errorf("no message of the kind %s%s; seen: %v", kind, family, kinds)
			}
		}
	}
	t.Logf("messages of each kind: %v", kinds)
}

// agree checks that filter and decoders agree on a message, and gives its kind.
func agree(k *kernelFilter, msg []byte) (string, error) {
	var e ct.Event
	if err := e.Unmarshal(netlink.Message{Header: netlink.Header{
		Length: binary.NativeEndian.Uint32(msg), Type: netlink.HeaderType(binary.NativeEndian.Uint16(msg[4:])),
		Flags: netlink.HeaderFlags(binary.NativeEndian.Uint16(msg[6:])),
	}, Data: msg[nlmsgHeaderLen:]}); err != nil {
		return "", fmt.Errorf("the library can't decode: %w", err)
	}
	passes, err := k.passes(msg)
	if err != nil {
		return "", err
	}
	m, err := decode(msg)
	if errors.Is(err, errNotUDP) && e.Flow.TupleOrig.Proto.Protocol != unix.IPPROTO_UDP && !passes {
		return "other", nil
	}
	if err != nil {
		return "", err
	}
	if everything.trouble(m) != passes {
		return "", fmt.Errorf("trouble %v, but the filter passes it: %v", !passes, passes)
	}
	f := e.Flow
	theirs := message{
		event:    event(e.Type), // both count new, update, destroy from 1
		status:   uint32(f.Status),
		timeout:  time.Duration(f.Timeout) * time.Second,
		original: Tuple{ends(f.TupleOrig)[0], ends(f.TupleOrig)[1], f.Zone},
		backend:  ends(f.TupleReply)[0], client: ends(f.TupleReply)[1],
	}
	if !f.Timestamp.Start.IsZero() && m.event == eventDestroy {
		theirs.start = f.Timestamp.Start
	}
	if theirs.start.Equal(m.start) {
		theirs.start = m.start
	}
	if theirs != m {
		return "", fmt.Errorf("decoded %+v, the library %+v", m, theirs)
	}
	kind := map[event]string{eventNew: "new", eventUpdate: "reply", eventDestroy: "destroyed"}[m.event]
	switch {
	case m.status&statusNATClash != 0 && m.event == eventUpdate:
		kind = "kept"
	case m.status&statusNATClash != 0:
		kind = "kept-destroyed"
	case m.event == eventNew && passes:
		kind = "orphan"
	case passes:
		kind = "assured"
	}
	return kind + map[bool]string{true: "4", false: "6"}[m.original.Source.Addr().Is4()], nil
}

func ends(t ct.Tuple) [2]netip.AddrPort {
	return [2]netip.AddrPort{
		netip.AddrPortFrom(t.IP.SourceAddress, t.Proto.SourcePort),
		netip.AddrPortFrom(t.IP.DestinationAddress, t.Proto.DestinationPort),
	}
}

// Rules that take DNS out of tracking are found, as nft and iptables write them,
// and rules that don't are not taken for them.
func TestNotrackRules(t *testing.T) {
	b := newBox(t, lab.Random)
	b.install("nftables", "iptables")
	tests := []struct {
		name  string
		rules [][]string
		want  bool
	}{
		{"nft, one port", [][]string{{"nft", "add rule inet t early udp dport 53 notrack"}}, true},
		{"nft, answers", [][]string{{"nft", "add rule inet t early udp sport 53 notrack"}}, true},
		{"nft, a set of ports", [][]string{{"nft", "add rule inet t early udp dport { 53, 123 } notrack"}}, true},
		{"nft, one address", [][]string{{"nft", "add rule inet t early ip daddr 169.254.20.10 udp dport 53 notrack"}}, true},
		{"nft, everything", [][]string{{"nft", "add rule inet t early notrack"}}, true},
		{"nft, all of UDP", [][]string{{"nft", "add rule inet t early meta l4proto udp notrack"}}, true},
		{"nft, by a jump", [][]string{{"nft", "add chain inet t more"}, {"nft", "add rule inet t early jump more"}, {"nft", "add rule inet t more udp dport 53 notrack"}}, true},
		{"iptables, NodeLocal's", [][]string{{"iptables-nft", "-t", "raw", "-A", "PREROUTING", "-d", "169.254.20.10/32", "-p", "udp", "-m", "udp", "--dport", "53", "-j", "NOTRACK"}}, true},
		{"iptables, CT", [][]string{{"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "CT", "--notrack"}}, true},
		{"ip6tables", [][]string{{"ip6tables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "CT", "--notrack"}}, true},
		{"nft, a jump by port", [][]string{{"nft", "add chain inet t more"}, {"nft", "add rule inet t early ip daddr 169.254.20.10 udp dport 53 jump more"}, {"nft", "add rule inet t more notrack"}}, true},
		{"nft, a jump for TCP", [][]string{{"nft", "add chain inet t more"}, {"nft", "add rule inet t early meta l4proto tcp jump more"}, {"nft", "add rule inet t more notrack"}}, false},
		{"nft, goto for TCP", [][]string{{"nft", "add chain inet t more"}, {"nft", "add rule inet t early meta l4proto tcp goto more"}, {"nft", "add rule inet t more notrack"}}, false},
		{"nft, a jump for one link", [][]string{{"nft", "add chain inet t more"}, {"nft", "add rule inet t early iifname lo jump more"}, {"nft", "add rule inet t more notrack"}}, false},
		{"nft, another port", [][]string{{"nft", "add rule inet t early udp dport 4789 notrack"}}, false},
		{"nft, a set of other ports", [][]string{{"nft", "add rule inet t early udp dport { 4789, 8472 } notrack"}}, false},
		{"nft, any other port", [][]string{{"nft", "add rule inet t early udp dport != 53 notrack"}}, false},
		{"nft, TCP", [][]string{{"nft", "add rule inet t early tcp dport 53 notrack"}}, false},
		{"nft, marked packets", [][]string{{"nft", "add rule inet t early meta mark 0x200 notrack"}}, false},
		{"nft, after tracking", [][]string{{"nft", "add rule inet t late udp dport 53 notrack"}}, false},
		{"nft, counted only", [][]string{{"nft", "add rule inet t early udp dport 53 counter"}}, false},
		{"iptables, another port", [][]string{{"iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "8472", "-j", "CT", "--notrack"}}, false},
		{"iptables, marked packets", [][]string{{"iptables-nft", "-t", "raw", "-A", "PREROUTING", "-m", "mark", "--mark", "0x200", "-j", "CT", "--notrack"}}, false},
		{"iptables, a zone", [][]string{{"iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "CT", "--zone", "7"}}, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b.command("nft", "add table inet t")
			b.command("nft", "add chain inet t early { type filter hook prerouting priority -300; }")
			b.command("nft", "add chain inet t late { type filter hook prerouting priority -100; }")
			defer b.command("nft", "delete table inet t")
			defer func() {
				if slices.ContainsFunc(tc.rules, func(r []string) bool { return r[0] != "nft" }) {
					b.command("iptables-nft", "-t", "raw", "-F")
					b.command("ip6tables-nft", "-t", "raw", "-F")
				}
			}()
			for _, r := range tc.rules {
				b.command(r[0], r[1:]...)
			}
			var got exemption
			if err := b.Node().Do(func() error {
				e, err := openExemptions([]uint16{53})
				if err != nil {
					return err
				}
				got = e.look(time.Now())
				return e.close()
			}); err != nil {
				t.Fatal(err)
			}
			if got.err != nil || (got.evidence != "") != tc.want {
				t.Errorf("evidence %q, error %v; want evidence: %v", got.evidence, got.err, tc.want)
			}
		})
	}
}

// While it runs: the sensor says that it became blind, and that it sees again.
func TestNotrackWhileRunning(t *testing.T) {
	b := newBox(t, lab.Random)
	b.install("nftables")
	b.open(Config{})
	b.sensor.exempt.interval, b.sensor.exempt.rulesInterval = 100*time.Millisecond, 100*time.Millisecond
	b.run()
	blinds := func(want bool, by string) {
		t.Helper()
		b.wait(fmt.Sprintf("blind %v by %q", want, by), 10*time.Second, func(f []Finding) bool {
			seen := only[Blindness](f)
			if len(seen) == 0 {
				return false
			}
			l := seen[len(seen)-1]
			return l.Reason == NoTrack && l.Blind == want && strings.Contains(l.Evidence, by)
		})
	}
	link := &rtnl.Veth{LinkAttrs: rtnl.LinkAttrs{Name: nodeLocalLink}, PeerName: "nodelocal-peer"}
	if err := b.Node().Do(func() error { return rtnl.LinkAdd(link) }); err != nil {
		t.Fatal(err)
	}
	blinds(true, nodeLocalLink)
	if err := b.Node().Do(func() error { return rtnl.LinkDel(link) }); err != nil {
		t.Fatal(err)
	}
	blinds(false, "")
	b.command("nft", "add table inet t; add chain inet t early { type filter hook prerouting priority -300; }; add rule inet t early udp dport 53 notrack")
	blinds(true, "chain early")
	b.command("nft", "delete table inet t")
	blinds(false, "")
}
