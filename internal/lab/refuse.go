package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// To close a socket is not enough for the kernel to refuse what is sent to it: a
// child that another goroutine just starts has it, too, until it executes its
// program.

// stopListening has the kernel refuse connections from now on, and give the port
// to who asks for it next, whoever has the socket.
func stopListening(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var shut error
	err = raw.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	if err := errors.Join(err, shut); err != nil {
		return fmt.Errorf("stop listening: %w", err)
	}
	return nil
}

// waitNoUDP waits until no UDP socket of the namespace has the port. Nothing stops
// one that somebody else has.
func (n *Namespace) waitNoUDP(port uint16) error {
	end := fmt.Sprintf(":%04X", port)
	err := n.Do(func() error {
		return poll(func() (bool, error) {
			for _, name := range []string{"udp", "udp6"} {
				b, err := os.ReadFile("/proc/thread-self/net/" + name)
				if err != nil {
					return false, err
				}
				for line := range strings.Lines(string(b)) {
					// A number, the local address and port in hex, the remote ones, ….
					if fields := strings.Fields(line); len(fields) > 1 && strings.HasSuffix(fields[1], end) {
						return false, nil
					}
				}
			}
			return true, nil
		})
	})
	if err != nil && !errors.Is(err, os.ErrClosed) { // else its sockets have ended with it
		return fmt.Errorf("wait until nobody has UDP port %d: %w", port, err)
	}
	return nil
}
