package lookup

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// kernelFilter runs the socket filter in the kernel on any bytes: a datagram
// socket pair with the filter attached, which needs no privileges.
type kernelFilter struct {
	in, out int
	buf     []byte
}

func newKernelFilter(t testing.TB, ports ...uint16) *kernelFilter {
	t.Helper()
	program, err := filter(ports, everything, nil)
	if err != nil {
		t.Fatal(err)
	}
	return newKernelProgram(t, program)
}

func newKernelProgram(t testing.TB, program []bpf.RawInstruction) *kernelFilter {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	if err := attach(fds[1], program); err != nil {
		t.Fatal(err)
	}
	return &kernelFilter{in: fds[0], out: fds[1], buf: make([]byte, 1<<16)}
}

// passes tells whether the kernel lets a frame through. What passes is cut to
// the snap length.
func (k *kernelFilter) passes(b []byte) (bool, error) {
	// The filter runs while the datagram is sent; one that it refuses is gone.
	if err := unix.Send(k.in, b, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return false, fmt.Errorf("send %d bytes: %w", len(b), err)
	}
	n, _, err := unix.Recvfrom(k.out, k.buf, 0)
	if errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("receive: %w", err)
	}
	if n != min(len(b), snapLength) {
		return false, fmt.Errorf("%d of %d bytes came through", n, len(b))
	}
	return true, nil
}

// agree checks that the decoder takes what the filter lets through, and nothing
// else. What lies behind the snap length only the filter sees.
func (k *kernelFilter) agree(b []byte, ports ...uint16) error {
	passes, err := k.passes(b)
	if err != nil {
		return err
	}
	var p packet
	if whole := decode(b, ports, &p); whole != passes {
		return fmt.Errorf("the filter passes it: %v, the decoder takes it: %v", passes, whole)
	}
	if cut := decode(b[:min(len(b), snapLength)], ports, &p); cut && !passes {
		return errors.New("the decoder takes the beginning of what the filter refuses")
	}
	return nil
}

func TestFilterPorts(t *testing.T) {
	var most []uint16
	for p := range uint16(maxPorts) {
		most = append(most, 5300+p)
	}
	k := newKernelFilter(t, most...)
	for _, port := range append([]uint16{53, 5299, 5300 + maxPorts}, most...) {
		for _, f := range [][]byte{
			ip4(unix.IPPROTO_UDP, pod4, service4, udp(40000, port, queryBytes)),
			ip6(unix.IPPROTO_UDP, service6, pod6, udp(port, 40000, queryBytes)),
			ip4(unix.IPPROTO_TCP, pod4, service4, tcp(40000, port, tcpSYN)),
			ip4(unix.IPPROTO_ICMP, service4, pod4, icmp(3, 3, ip4(unix.IPPROTO_UDP, pod4, service4, udp(40000, port, queryBytes)))),
			ip6(unix.IPPROTO_ICMPV6, service6, pod6, icmp(1, 4, ip6(unix.IPPROTO_UDP, pod6, service6, udp(40000, port, queryBytes)))),
		} {
			got, err := k.passes(f)
			if err != nil {
				t.Fatal(err)
			}
			if want := port >= 5300 && port < 5300+maxPorts; got != want {
				t.Errorf("port %d: passes %v, want %v: % x", port, got, want, f)
			}
			if err := k.agree(f, most...); err != nil {
				t.Errorf("port %d: %v", port, err)
			}
		}
	}
	for _, ports := range [][]uint16{nil, append(most, 53)} {
		if _, err := filter(ports, everything, nil); err == nil {
			t.Errorf("a filter for %d ports", len(ports))
		}
	}
}
