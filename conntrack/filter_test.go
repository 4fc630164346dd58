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

func newKernelFilter(t testing.TB, w wanted) *kernelFilter {
	t.Helper()
	program, err := w.filter()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	if err := attach(fds[1], program); err != nil {
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
	b = appendTuple(b, ctaTupleOrig, proto, src, dst)
	b = appendTuple(b, ctaTupleReply, proto, dst, src)
	b = appendAttr(b, ctaStatus, func(b []byte) []byte { return binary.BigEndian.AppendUint32(b, status) })
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestFilter(t *testing.T) {
	narrow := wanted{asked: []uint16{53, 5353}, answering: []uint16{53, 8053}}
	wide := narrow
	wide.assured = true
	narrowKernel, wideKernel := newKernelFilter(t, narrow), newKernelFilter(t, wide)
	six := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	pod6, service6 := six("[fd00:10:244:1::2]:40000"), six("[fd00:10:96::a]:53")
	mdns := netip.MustParseAddrPort("10.96.0.10:5353")
	web := netip.MustParseAddrPort("10.96.0.20:443")
	const (
		never    = iota
		wideOnly // flows that became ASSURED
		always
	)
	tests := []struct {
		name string
		b    []byte
		want int
	}{
		{"a healthy lookup's new entry", build(eventNew, 0x1a8, 17, pod, service), never},
		{"its first reply", build(eventUpdate, 0x1aa, 17, pod, service), never},
		{"its end", build(eventDestroy, 0x3aa, 17, pod, service), never},
		{"a kept loser's reply", build(eventUpdate, 0x15aa, 17, pod, service), always},
		{"a kept loser's end", build(eventDestroy, 0x17a8, 17, pod, service), always},
		{"a kept loser on another port", build(eventUpdate, 0x15aa, 17, pod, web), always},
		{"assured", build(eventUpdate, 0x1ae, 17, pod, service), wideOnly},
		{"assured on the second port", build(eventUpdate, 0x1ae, 17, pod, mdns), wideOnly},
		{"assured on another port", build(eventUpdate, 0x1ae, 17, pod, web), never},
		{"the end of an assured flow", build(eventDestroy, 0x3ae, 17, pod, service), never},
		{"an orphan", build(eventNew, 0x188, 17, second, pod), always},
		{"an orphan from a target port", build(eventNew, 0x188, 17, netip.AddrPortFrom(second.Addr(), 8053), pod), always},
		{"a new flow from a port that is asked only", build(eventNew, 0x188, 17, netip.AddrPortFrom(second.Addr(), 5353), pod), never},
		{"assured to a target port", build(eventUpdate, 0x1ae, 17, pod, netip.AddrPortFrom(second.Addr(), 8053)), never},
		{"TCP to port 53", build(eventUpdate, 0x1ae, 6, pod, service), never},
		{"TCP from port 53", build(eventNew, 0x188, 6, second, pod), never},
		{"IPv6: a healthy lookup's new entry", build(eventNew, 0x1a8, 17, pod6, service6), never},
		{"IPv6: a kept loser's reply", build(eventUpdate, 0x15aa, 17, pod6, service6), always},
		{"IPv6: assured", build(eventUpdate, 0x1ae, 17, pod6, service6), wideOnly},
		{"IPv6: an orphan", build(eventNew, 0x188, 17, service6, pod6), always},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			for _, assured := range []bool{false, true} {
				k, w, want := narrowKernel, narrow, tc.want == always
				if assured {
					k, w, want = wideKernel, wide, tc.want != never
				}
				got, err := k.passes(tc.b)
				if err != nil {
					t.Fatal(err)
				}
				if got != want {
					t.Errorf("the kernel's filter (assured %v) passes it: %v, want %v", assured, got, want)
				}
				if m, err := decode(tc.b); err == nil && w.trouble(m) != want {
					t.Errorf("the decoder (assured %v) calls it trouble: %v, want %v", assured, !want, want)
				}
			}
		})
	}
}

func TestFilterTakesSixteenPorts(t *testing.T) {
	ports := make([]uint16, maxPorts)
	for i := range ports {
		ports[i] = uint16(1000 + i)
	}
	k := newKernelFilter(t, wanted{asked: ports, answering: ports, assured: true})
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
		if _, err := (wanted{asked: make([]uint16, n), answering: ports}).filter(); err == nil {
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
	narrow, wide := wanted{asked: ports, answering: ports}, wanted{asked: ports, answering: ports, assured: true}
	narrowKernel, wideKernel := newKernelFilter(f, narrow), newKernelFilter(f, wide)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > maxMessage {
			return
		}
		m, err := decode(b)
		for _, x := range []struct {
			w wanted
			k *kernelFilter
		}{{narrow, narrowKernel}, {wide, wideKernel}} {
			passes, perr := x.k.passes(b)
			switch {
			case perr != nil:
				t.Fatal(perr)
			case err != nil && passes && (errors.Is(err, errNotConntrack) || errors.Is(err, errNotUDP)):
				t.Errorf("the filter (assured %v) passes what is none of ours: %v", x.w.assured, err)
			case err == nil && x.w.trouble(m) != passes:
				t.Errorf("trouble %v, filter (assured %v) passes %v: %+v", x.w.trouble(m), x.w.assured, passes, m)
			}
		}
		tr := newTracker(ports, fakeTable{}, func(Finding) {})
		if err == nil {
			tr.message(m, noon)
			tr.tick(noon.Add(20 * 1e9))
		}
	})
}
