package conntrack

import (
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// flood makes n new flows from port 53, as a stranger's answers would.
func flood(t *testing.T, b *box, n int) {
	t.Helper()
	p := b.pod("stranger")
	err := p.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: p.Addr4.AsSlice(), Port: 53})
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range n {
			to := netip.AddrPortFrom(b.servers[0].Addr4, uint16(10000+i))
			if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil && !strings.Contains(err.Error(), "refused") {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// withoutNetAdmin runs fn on a thread that has no CAP_NET_ADMIN and ends.
func withoutNetAdmin(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is spoilt
		done <- func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				return err
			}
			data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
			if err := unix.Capset(&header, &data[0]); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}

// install installs what a test runs.
func (b *box) install(packages ...string) {
	b.t.Helper()
	if err := lab.Install(b.t.Context(), slog.New(slog.NewTextHandler(b.t.Output(), nil)), packages...); err != nil {
		b.t.Fatal(err)
	}
}

// command runs a command in the node's namespace.
func (b *box) command(name string, args ...string) {
	b.t.Helper()
	command(b.t, b.Node(), name, args...)
}

func command(t *testing.T, n *lab.Namespace, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
}
