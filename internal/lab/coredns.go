package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// coreDNSModule is the CoreDNS that the lab runs.
const coreDNSModule = "github.com/coredns/coredns@v1.14.0"

// CoreDNS is the real server in a backend's namespace.
type CoreDNS struct {
	Backend

	log     *os.File
	cmd     *exec.Cmd
	exited  chan struct{} // closed when cmd.Wait has returned
	closing sync.Once
	err     error
}

// AddCoreDNS runs CoreDNS with this Corefile, in which "{addr4}" and "{addr6}"
// stand for its addresses, and waits until it answers on port 53 of both. It
// builds CoreDNS when the cache has none, which takes minutes.
func (l *Lab) AddCoreDNS(corefile string) (*CoreDNS, error) {
	b, err := l.addBackend("coredns")
	if err != nil {
		return nil, fmt.Errorf("add CoreDNS: %w", err)
	}
	return l.runCoreDNS(*b, corefile)
}

// RunCoreDNS is Lab.AddCoreDNS in this pod: what the server asks others goes
// through the node, as a pod's own questions do.
func (p *Pod) RunCoreDNS(corefile string) (*CoreDNS, error) {
	return p.lab.runCoreDNS(Backend{Namespace: p.Namespace, Addr4: p.Addr4, Addr6: p.Addr6}, corefile)
}

func (l *Lab) runCoreDNS(b Backend, corefile string) (*CoreDNS, error) {
	c, err := l.startCoreDNS(b, corefile)
	if err != nil {
		return nil, fmt.Errorf("run CoreDNS: %w", err)
	}
	return c, nil
}

func (l *Lab) startCoreDNS(b Backend, corefile string) (*CoreDNS, error) {
	binary, err := l.coreDNSBinary()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(l.dir, "coredns-"+b.Addr4.String())
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "Corefile")
	corefile = strings.NewReplacer("{addr4}", b.Addr4.String(), "{addr6}", b.Addr6.String()).Replace(corefile)
	if err := os.WriteFile(conf, []byte(corefile), 0o644); err != nil {
		return nil, err
	}
	c := &CoreDNS{Backend: b, exited: make(chan struct{})}
	if c.log, err = os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
		return nil, err
	}
	c.cmd = exec.Command(binary, "-conf", conf)
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	if err := c.Start(c.cmd); err != nil {
		return nil, errors.Join(err, c.log.Close())
	}
	go func() {
		defer close(c.exited)
		_ = c.cmd.Wait() // Close waits for this, and knows why it ended
	}()
	for _, a := range []netip.Addr{c.Addr4, c.Addr6} {
		if err := c.waitAnswer(a); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if err := l.atClose(c.Close); err != nil {
		return nil, err
	}
	return c, nil
}

// waitAnswer asks, from its own namespace, until the server answers anything.
func (c *CoreDNS) waitAnswer(a netip.Addr) error {
	client := dns.Client{Timeout: time.Second}
	question := new(dns.Msg).SetQuestion(".", dns.TypeNS)
	ctx, stop := context.WithCancel(c.lab.ctx)
	defer stop()
	err := Until(ctx, bootTime, func() error {
		select {
		case <-c.exited:
			stop() // no use to wait
			return fmt.Errorf("it ended: %v", c.cmd.ProcessState)
		default:
		}
		return c.Do(func() error {
			_, _, err := client.Exchange(question, netip.AddrPortFrom(a, dnsPort).String())
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("no answer from %v: %w: %s", a, err, c.logTail())
	}
	return nil
}

// Log is the path of the file with what CoreDNS logs. It goes with the lab.
func (c *CoreDNS) Log() string { return c.log.Name() }

func (c *CoreDNS) logTail() string {
	b, err := os.ReadFile(c.log.Name())
	if err != nil {
		return err.Error()
	}
	return tail(b)
}

// Close kills the server: from then on the kernel refuses what is sent to it.
// Calls after the first return what the first did.
func (c *CoreDNS) Close() error {
	c.closing.Do(func() {
		if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			c.err = fmt.Errorf("kill CoreDNS: %w", err)
			return
		}
		<-c.exited
		c.err = c.log.Close()
	})
	return c.err
}

// coreDNSBinary returns the path of CoreDNS in the cache and builds it if need be.
func (l *Lab) coreDNSBinary() (string, error) {
	return cached(l.ctx, "coredns", []string{coreDNSModule, runtime.GOARCH}, func(dir string) error {
		l.log.Info("building CoreDNS, which takes some minutes", "module", coreDNSModule)
		return goCommand(l.ctx, dir, "install", coreDNSModule)
	})
}

// goCommand runs the go command outside any module, without cgo, with dir as
// its directory and as where it installs.
func goCommand(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = goEnv(dir)
	return run(cmd)
}

// goEnv is the environment of goCommand.
func goEnv(dir string) []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir, "GOFLAGS=", "GOWORK=off", "GOOS=", "GOARCH=")
}
