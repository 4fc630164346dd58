package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loadClients is how many client addresses a Load asks from.
const loadClients = 64

// Load makes traffic for benchmarks: packets with the bytes of real ones, put on
// a pod's link at a steady rate, without a socket for each of them.
type Load struct {
	pod *Pod
	fd  int
	to  unix.SockaddrLinklayer
	// flows counts the flows made so far: each has a client address and port of
	// its own, and the pairs repeat after some four million.
	flows uint32
}

// AddLoad makes a pod that only makes traffic. What comes back to it is counted
// by its link and thrown away. It lives until the lab is closed.
func (l *Lab) AddLoad() (*Load, error) {
	p, err := l.AddPod(PodConfig{Name: "load", Addresses: loadClients})
	if err != nil {
		return nil, err
	}
	// No socket is there for the answers: drop them before the kernel
	// complains to the server that the port is unreachable.
	conn, err := nftables.New(nftables.WithNetNSFd(p.fd))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	drop := nftables.ChainPolicyDrop
	table := conn.AddTable(&nftables.Table{Name: "load", Family: nftables.TableFamilyINet})
	conn.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter, Policy: &drop,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("drop what comes back: %w", err)
	}
	load := &Load{pod: p}
	if err := p.netlink(load.open); err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	return load, l.atClose(func() error { return unix.Close(load.fd) })
}

// open makes a packet socket that sends on eth0 and receives nothing.
func (l *Load) open(h *netlink.Handle) error {
	link, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	l.to = unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: link.Attrs().Index, Halen: 6} // ETH_P_IP, big endian
	copy(l.to.Addr[:], routerMAC)
	return nil
}

// Lookups sends rate lookups a second for the time: each is an A and an AAAA
// question from a socket's address of its own to the nameserver. It returns how
// many it sent.
func (l *Load) Lookups(ctx context.Context, nameserver netip.Addr, rate int, time time.Duration) (int, error) {
	return l.steady(ctx, rate, time, func(src netip.AddrPort) error {
		to := netip.AddrPortFrom(nameserver, dnsPort)
		for i, qtype := range []byte{1, 28} {
			question := []byte("\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04load\x04test\x00\x00\x00\x00\x01")
			// Ids as musl has them: somewhere, and close together.
			binary.BigEndian.PutUint16(question, uint16(l.flows*40503)+uint16(i)*130)
			question[len(question)-3] = qtype
			if err := l.send(src, to, question); err != nil {
				return err
			}
		}
		return nil
	})
}

// Foreign sends rate UDP packets a second for the time, each a flow of its own
// to where nobody answers. It returns how many it sent.
func (l *Load) Foreign(ctx context.Context, rate int, time time.Duration) (int, error) {
	nowhere := netip.AddrPortFrom(backendNet4.Masked().Addr().Next(), 4242)
	return l.steady(ctx, rate, time, func(src netip.AddrPort) error { return l.send(src, nowhere, []byte("foreign")) })
}

// steady calls one rate times a second, in steps of a millisecond.
func (l *Load) steady(ctx context.Context, rate int, limit time.Duration, one func(src netip.AddrPort) error) (int, error) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	sent, begin := 0, time.Now()
	for {
		now := time.Since(begin)
		for due := int(min(now, limit).Seconds() * float64(rate)); sent < due; sent++ {
			addr := l.pod.Addrs4[l.flows%loadClients]
			port := 1024 + uint16(l.flows/loadClients%64000)
			l.flows++
			if err := one(netip.AddrPortFrom(addr, port)); err != nil {
				return sent, fmt.Errorf("send: %w", err)
			}
		}
		if now >= limit || ctx.Err() != nil {
			return sent, ctx.Err()
		}
		<-ticker.C
	}
}

// send puts one UDP packet on the link.
func (l *Load) send(src, dst netip.AddrPort, payload []byte) error {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], src.Port())
	binary.BigEndian.PutUint16(b[22:], dst.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload))) // a UDP checksum of 0 means none
	err := unix.Sendto(l.fd, append(b, payload...), 0, &l.to)
	if errors.Is(err, unix.ENOBUFS) {
		return nil // the link's queue is full: the packet is lost, as it would be
	}
	return err
}

// Answered is how many packets came back to the load.
func (l *Load) Answered() (n uint64, err error) {
	err = l.pod.netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err == nil {
			n = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	return n, err
}

// AddReflector makes a backend that answers every question on UDP port 53 of its
// IPv4 address with one record, as fast as it can. It takes any UDP packet for a
// question that ends with its type and class, without EDNS. It lives until the
// lab is closed.
func (l *Lab) AddReflector() (*Backend, error) {
	b, err := l.addBackend("reflector")
	if err != nil {
		return nil, err
	}
	var conn *net.UDPConn
	if err := b.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.Addr4, dnsPort)))
		return err
	}); err != nil {
		return nil, fmt.Errorf("add reflector: %w", err)
	}
	if err := forceReadBuffer(conn, 8<<20); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	var loop sync.WaitGroup
	loop.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n > 16 {
				_, _ = conn.WriteToUDPAddrPort(reflect(buf[:n]), from)
			}
		}
	})
	return b, l.atClose(func() error {
		err := conn.Close()
		loop.Wait()
		return err
	})
}

// reflect makes a question an answer: an address of zeros.
func reflect(b []byte) []byte {
	b[2] |= 0x80 // QR
	b[7] = 1     // ANCOUNT
	typeAndClass := b[len(b)-4:]
	length := 4
	if typeAndClass[1] == 28 {
		length = 16
	}
	b = append(b, 0xc0, 12) // the name of the question
	b = append(b, typeAndClass...)
	b = append(b, 0, 0, 0, 5, 0, byte(length)) // TTL, length of the address
	return append(b, make([]byte, length)...)
}
