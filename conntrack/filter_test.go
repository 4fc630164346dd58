package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// kernelFilter runs the socket filter in the kernel on any bytes: a datagram
// socket pair with the filter attached, which needs no privileges.
type kernelFilter struct{ in, out int }

func newKernelFilter(t testing.TB, ports []uint16) *kernelFilter {
	t.Helper()
	program, err := filter(ports)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	code := make([]unix.SockFilter, len(program))
	for i, p := range program {
		code[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	if err := unix.SetsockoptSockFprog(fds[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		t.Fatal(err)
	}
	return &kernelFilter{in: fds[0], out: fds[1]}
}

// passes tells whether the kernel lets a message through.
func (k *kernelFilter) passes(b []byte) (bool, error) {
	// The filter runs while the datagram is sent; one that it refuses is gone.
	if err := unix.Send(k.in, b, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return false, fmt.Errorf("send %d bytes: %w", len(b), err)
	}
	buf := make([]byte, len(b)+1)
	n, _, err := unix.Recvfrom(k.out, buf, 0)
	if errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("receive: %w", err)
	}
	if n != len(b) {
		return false, fmt.Errorf("%d of %d bytes came through", n, len(b))
	}
	return true, nil
}

// build makes a message as the kernel does.
func build(e event, status uint32, proto uint8, src, dst netip.AddrPort) []byte {
	attr := func(kind uint16, payload []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(unix.NLA_HDRLEN+len(payload)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, payload...)
		for len(b)%unix.NLA_ALIGNTO != 0 {
			b = append(b, 0)
		}
		return b
	}
	const nest = unix.NLA_F_NESTED
	tuple := func(kind uint16, src, dst netip.AddrPort) []byte {
		from, to := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
		if src.Addr().Is6() {
			from, to = ctaIPv6Src, ctaIPv6Dst
		}
		ip := append(attr(from, src.Addr().AsSlice()), attr(to, dst.Addr().AsSlice())...)
		l4 := append(attr(ctaProtoNum, []byte{proto}), attr(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, src.Port()))...)
		l4 = append(l4, attr(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))...)
		return attr(kind|nest, append(attr(ctaTupleIP|nest, ip), attr(ctaTupleProto|nest, l4)...))
	}
	kind, flags := uint16(subsysCTNetlink<<8|msgCTNew), uint16(0)
	switch e {
	case eventNew:
		flags = nlmsgFlagsNewEntry
	case eventDestroy:
		kind = subsysCTNetlink<<8 | msgCTDelete
	}
	b := binary.NativeEndian.AppendUint32(nil, 0)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(b, make([]byte, 8+nfgenmsgLen)...)
	b = append(b, tuple(ctaTupleOrig, src, dst)...)
	b = append(b, tuple(ctaTupleReply, dst, src)...)
	b = append(b, attr(ctaStatus, binary.BigEndian.AppendUint32(nil, status))...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestFilter(t *testing.T) {
	k := newKernelFilter(t, []uint16{53, 5353})
	six := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	pod6, service6 := six("[fd00:10:244:1::2]:40000"), six("[fd00:10:96::a]:53")
	mdns := netip.MustParseAddrPort("10.96.0.10:5353")
	web := netip.MustParseAddrPort("10.96.0.20:443")
	tests := []struct {
		name string
		b    []byte
		want bool
	}{
		{"a healthy lookup's new entry", build(eventNew, 0x1a8, 17, pod, service), false},
		{"its first reply", build(eventUpdate, 0x1aa, 17, pod, service), false},
		{"its end", build(eventDestroy, 0x3aa, 17, pod, service), false},
		{"a kept loser's reply", build(eventUpdate, 0x15aa, 17, pod, service), true},
		{"a kept loser's end", build(eventDestroy, 0x17a8, 17, pod, service), true},
		{"a kept loser on another port", build(eventUpdate, 0x15aa, 17, pod, web), true},
		{"assured", build(eventUpdate, 0x1ae, 17, pod, service), true},
		{"assured on the second port", build(eventUpdate, 0x1ae, 17, pod, mdns), true},
		{"assured on another port", build(eventUpdate, 0x1ae, 17, pod, web), false},
		{"the end of an assured flow", build(eventDestroy, 0x3ae, 17, pod, service), false},
		{"an orphan", build(eventNew, 0x188, 17, second, pod), true},
		{"TCP to port 53", build(eventUpdate, 0x1ae, 6, pod, service), false},
		{"TCP from port 53", build(eventNew, 0x188, 6, second, pod), false},
		{"IPv6: a healthy lookup's new entry", build(eventNew, 0x1a8, 17, pod6, service6), false},
		{"IPv6: a kept loser's reply", build(eventUpdate, 0x15aa, 17, pod6, service6), true},
		{"IPv6: assured", build(eventUpdate, 0x1ae, 17, pod6, service6), true},
		{"IPv6: an orphan", build(eventNew, 0x188, 17, service6, pod6), true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := k.passes(tc.b)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("the kernel's filter passes it: %v, want %v", got, tc.want)
			}
			if m, err := decode(tc.b); err == nil && m.trouble([]uint16{53, 5353}) != tc.want {
				t.Errorf("the decoder calls it trouble: %v, want %v", !tc.want, tc.want)
			}
		})
	}
}

func TestFilterTakesSixteenPorts(t *testing.T) {
	ports := make([]uint16, maxPorts)
	for i := range ports {
		ports[i] = uint16(1000 + i)
	}
	k := newKernelFilter(t, ports)
	for _, port := range append(ports, 53) {
		got, err := k.passes(build(eventUpdate, 0x1ae, 17, pod, netip.AddrPortFrom(service.Addr(), port)))
		if err != nil {
			t.Fatal(err)
		}
		if want := port != 53; got != want {
			t.Errorf("port %d passes: %v, want %v", port, got, want)
		}
	}
	for _, n := range []int{0, maxPorts + 1} {
		if _, err := filter(make([]uint16, n)); err == nil {
			t.Errorf("a filter for %d ports was made", n)
		}
	}
}

// FuzzMessage holds the decoder and the kernel's filter together: what the
// decoder calls trouble the filter lets through, and what the filter lets
// through the decoder calls trouble or malformed. The seeds are messages that
// the kernel sent (testdata/messages) and what the tests build.
func FuzzMessage(f *testing.F) {
	captured, err := filepath.Glob("testdata/messages/*")
	if err != nil || len(captured) == 0 {
		f.Fatalf("no captured messages: %v", err)
	}
	for _, name := range captured {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(build(eventUpdate, 0x15aa, 17, pod, service))
	f.Add(build(eventUpdate, 0x1ae, 17, pod, service))
	f.Add(build(eventNew, 0x188, 17, second, pod))
	ports := []uint16{53}
	k := newKernelFilter(f, ports)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > maxMessage {
			return
		}
		passes, err := k.passes(b)
		if err != nil {
			t.Fatal(err)
		}
		m, err := decode(b)
		switch {
		case err != nil && passes && (errors.Is(err, errNotConntrack) || errors.Is(err, errNotUDP)):
			t.Errorf("the filter passes what is none of ours: %v", err)
		case err == nil && m.trouble(ports) != passes:
			t.Errorf("trouble %v, filter passes %v: %+v", m.trouble(ports), passes, m)
		}
		tr := newTracker(ports, fakeTable{}, func(Finding) {})
		if err == nil {
			tr.message(m, noon)
			tr.tick(noon.Add(20 * 1e9))
		}
	})
}
