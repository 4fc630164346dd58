package lookup

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

var capture = flag.Bool("capture", false, "write a frame of each kind that is seen in the lab to testdata/frames, the fuzzer's seeds")

// What resolvers, servers and routers really send: filter and decoder agree on
// each frame, and each kind is there.
func TestLiveFrames(t *testing.T) {
	l := lab.ForTest(t)
	var many []netip.Addr // more than one frame holds
	for i := range 120 {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)}))
	}
	s, err := l.AddServer(lab.Rule{Name: "many.test.", Addrs: many}, lab.Rule{Name: "*", Addrs: many[:2]})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.AddService(service4, lab.Random, s.Addr4), l.AddService(service6, lab.Random, s.Addr6)); err != nil {
		t.Fatal(err)
	}
	four, err := l.AddPod(lab.PodConfig{Name: "four", Nameservers: []netip.Addr{service4}})
	if err != nil {
		t.Fatal(err)
	}
	six, err := l.AddPod(lab.PodConfig{Name: "six", Nameservers: []netip.Addr{service6}})
	if err != nil {
		t.Fatal(err)
	}
	program, err := filter([]uint16{53}, everything, nil)
	if err != nil {
		t.Fatal(err)
	}
	var r *ring
	if err := l.Node().Do(func() error { r, err = openRing(program, defaultRingBytes); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}()
	k := newKernelFilter(t, 53)
	kinds := map[string][]byte{}
	// collect takes frames until all of these kinds were among them.
	collect := func(name string, want ...string) {
		t.Helper()
		err := lab.Until(t.Context(), 5*time.Second, func() error {
			for block := r.take(); block != nil; block = r.take() {
				for _, f := range walked(block) {
					data := bytes.Clone(f.data)
					if err := k.agree(data, 53); err != nil {
						t.Errorf("%v: % x", err, data)
					}
					if kind := name + "-" + liveKind(data); kinds[kind] == nil {
						kinds[kind] = data
					}
				}
				r.give()
			}
			for _, w := range want {
				if kinds[name+"-"+w] == nil {
					return fmt.Errorf("no %s-%s", name, w)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for family, p := range map[string]*lab.Pod{"4": four, "6": six} {
		nameserver, router := service4, router4
		if family == "6" {
			nameserver, router = service6, router6
		}
		for _, resolver := range lab.Resolvers() {
			if _, err := p.Resolve(t.Context(), resolver, 1, "name.test"); err != nil {
				t.Fatal(err)
			}
			collect(string(resolver), "question"+family, "answer"+family)
		}
		if _, err := p.Resolve(t.Context(), lab.MuslStatic, 1, "many.test"); err != nil {
			t.Fatal(err)
		}
		collect("many", "fragment"+family)
		ask := func(network string, to netip.Addr) {
			t.Helper()
			err := p.Do(func() error {
				c, err := net.Dial(network, netip.AddrPortFrom(to, 53).String())
				if err != nil {
					return err
				}
				_, err = c.Write(queryBytes)
				return errors.Join(err, c.Close())
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		ask("tcp", nameserver)
		collect("tcp", "connect"+family)
		ask("udp", router) // nobody listens there
		collect("router", "unreachable"+family)
		// Of two VLAN tags the kernel takes one off.
		if q := kinds["musl-static-question"+family]; q != nil {
			etherType := uint16(etherTypeIPv4)
			if family == "6" {
				etherType = etherTypeIPv6
			}
			err := p.Do(func() error { return sendFrame("eth0", etherTypeQinQ, tag(etherTypeVLAN, tag(etherType, q))) })
			if err != nil {
				t.Fatal(err)
			}
			collect("tagged", "vlan-question"+family)
		}
	}
	if *capture && !t.Failed() {
		if err := os.MkdirAll(filepath.Join("testdata", "frames"), 0o755); err != nil {
			t.Fatal(err)
		}
		for kind, frame := range kinds {
			if err := os.WriteFile(filepath.Join("testdata", "frames", kind), frame, 0o644); err != nil {
				t.Error(err)
			}
		}
	}
}

// liveKind names a frame for people.
func liveKind(b []byte) string {
	var p packet
	if !decode(b, []uint16{53}, &p) {
		return "refused"
	}
	var kind strings.Builder
	inner := untag(b)
	if len(inner) < len(b) {
		kind.WriteString("vlan-")
	}
	switch {
	case p.kind == connect:
		kind.WriteString("connect")
	case p.kind == unreachable:
		kind.WriteString("unreachable")
	case inner[0]>>4 == 4 && inner[6]&0x20 != 0, inner[0]>>4 == 6 && inner[6] == unix.IPPROTO_FRAGMENT:
		kind.WriteString("fragment")
	case p.dst.port == 53:
		kind.WriteString("question")
	default:
		kind.WriteString("answer")
	}
	if p.src.addr.is4() {
		return kind.String() + "4"
	}
	return kind.String() + "6"
}
