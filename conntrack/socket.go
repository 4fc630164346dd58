package conntrack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// beat is how long the reader rests after it has emptied the socket: the
	// wake-up is what costs, not the message.
	beat = 10 * time.Millisecond
	// maxMessage is far above the largest event (some 500 bytes).
	maxMessage = 16 << 10
	// defaultReceiveBuffer holds some 10,000 messages.
	defaultReceiveBuffer = 8 << 20
)

// Multicast groups of NETLINK_NETFILTER (nfnetlink_compat.h).
const (
	groupNew     = 1 // NFNLGRP_CONNTRACK_NEW
	groupUpdate  = 2 // NFNLGRP_CONNTRACK_UPDATE
	groupDestroy = 3 // NFNLGRP_CONNTRACK_DESTROY
)

// socket is a netlink socket that is joined to conntrack's events behind a
// filter.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// listen opens the socket in the calling thread's network namespace. The
// filter is in place before the groups are joined.
func listen(program []bpf.RawInstruction, receiveBuffer int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "ctnetlink")
	if err := prepare(fd, program, receiveBuffer); err != nil {
		_ = file.Close()
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	return &socket{file: file, raw: raw, buf: make([]byte, maxMessage)}, nil
}

func prepare(fd int, program []bpf.RawInstruction, receiveBuffer int) error {
	if err := attach(fd, program); err != nil {
		return err
	}
	// SO_RCVBUFFORCE passes net.core.rmem_max and needs CAP_NET_ADMIN.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return fmt.Errorf("set receive buffer of ctnetlink socket to %d bytes: %w", receiveBuffer, permission(err))
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind ctnetlink socket: %w", permission(err))
	}
	for _, group := range []int{groupNew, groupUpdate, groupDestroy} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return fmt.Errorf("join conntrack group %d: %w", group, permission(err))
		}
	}
	return nil
}

// attach puts the filter in place of the one that is there.
func attach(fd int, program []bpf.RawInstruction) error {
	code := make([]unix.SockFilter, len(program))
	for i, p := range program {
		code[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	if err != nil {
		return fmt.Errorf("attach filter to ctnetlink socket: %w", err)
	}
	return nil
}

// filter changes the filter while messages come.
func (s *socket) filter(program []bpf.RawInstruction) error {
	var failure error
	if err := s.raw.Control(func(fd uintptr) { failure = attach(int(fd), program) }); err != nil {
		return fmt.Errorf("attach filter to ctnetlink socket: %w", err)
	}
	return failure
}

// permission makes EPERM an ErrPermission.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (%w)", ErrPermission, err)
	}
	return err
}

// receive waits until something can be read or the deadline passes, then reads
// until the socket is empty and calls each with every message of the kernel. It
// tells how many there were and whether the kernel said that it dropped some
// (ENOBUFS). An end of the wait by deadline or interrupt is no error.
func (s *socket) receive(ctx context.Context, deadline time.Time, each func([]byte)) (messages int, overrun bool, err error) {
	if err := s.file.SetReadDeadline(deadline); err != nil {
		return 0, false, fmt.Errorf("set deadline on ctnetlink socket: %w", err)
	}
	if ctx.Err() != nil { // an interrupt may have come before the deadline was set
		return 0, false, nil
	}
	var failure error
	err = s.raw.Read(func(fd uintptr) bool {
		for {
			n, from, rerr := unix.Recvfrom(int(fd), s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch {
			case rerr == nil:
				messages++
				if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == 0 && n <= len(s.buf) {
					each(s.buf[:n])
				}
			case errors.Is(rerr, unix.EINTR):
			case errors.Is(rerr, unix.ENOBUFS):
				overrun = true
			case errors.Is(rerr, unix.EAGAIN):
				return messages > 0 || overrun
			default:
				failure = rerr
				return true
			}
		}
	})
	if failure != nil {
		return messages, overrun, fmt.Errorf("receive from ctnetlink socket: %w", failure)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return messages, overrun, fmt.Errorf("wait on ctnetlink socket: %w", err)
	}
	return messages, overrun, nil
}

// interrupt ends a wait in receive. It may be called from any goroutine.
func (s *socket) interrupt() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }

// drops is the kernel's count of messages that it could not queue (sk_drops;
// u32, wraps). What the filter refuses is not in it.
func (s *socket) drops() (uint32, error) {
	var words [16]uint32
	var got uint32
	var failure error
	err := s.raw.Control(func(fd uintptr) { got, failure = memInfo(int(fd), &words) })
	if err == nil {
		err = failure
	}
	if err != nil {
		return 0, fmt.Errorf("read drops of ctnetlink socket: %w", err)
	}
	const dropsIndex = 8 // SK_MEMINFO_DROPS (linux/sock_diag.h)
	if got <= dropsIndex*4 {
		return 0, fmt.Errorf("read drops of ctnetlink socket: %d bytes only", got)
	}
	return words[dropsIndex], nil
}

func (s *socket) close() error { return s.file.Close() }

// rest waits for a beat, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
