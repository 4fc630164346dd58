package conntrack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/internal/lab"
)

// Healthy traffic gives no finding, and hardly a message: 50,000 lookups by all
// resolvers, a CoreDNS that asks over long-lived sockets, and 20,000 foreign
// flows of UDP and TCP.
func TestHealthyTraffic(t *testing.T) {
	const (
		lookups = 50_000
		through = 5_000 // of them through the CoreDNS on the node
		foreign = 10_000
	)
	b := newBox(t, lab.Random, lab.Rule{Name: "*", Addrs: answer})
	for _, s := range b.servers {
		s.Record(false)
	}
	forwarder := b.pod("coredns")
	if _, err := forwarder.RunCoreDNS(fmt.Sprintf(". {\n bind {addr4} {addr6}\n forward . %s\n}\n", service4)); err != nil {
		t.Fatal(err)
	}
	load, err := b.AddLoad()
	if err != nil {
		t.Fatal(err)
	}
	b.sense(Config{})
	before := b.statistics()

	var traffic errgroup.Group
	traffic.SetLimit(4)
	resolve := func(r lab.Resolver, count int, nameserver netip.Addr) {
		p := b.pod(string(r), nameserver)
		traffic.Go(func() error {
			answers, err := p.Resolve(t.Context(), r, count, "healthy.test.")
			if err != nil {
				return err
			}
			failed := 0
			for _, a := range answers {
				if a.Err != "" {
					failed++
				}
			}
			if len(answers) != count || failed > 0 {
				return fmt.Errorf("%s: %d of %d lookups, %d failed", r, len(answers), count, failed)
			}
			return nil
		})
	}
	resolvers := lab.Resolvers()
	for _, r := range resolvers {
		resolve(r, through/len(resolvers), forwarder.Addr4)
		for _, s := range []netip.Addr{service4, service6} {
			resolve(r, (lookups-through)/len(resolvers)/2, s)
		}
	}
	traffic.Go(func() error {
		n, err := load.Foreign(t.Context(), foreign/2, 2*time.Second)
		if err == nil && n != foreign {
			err = fmt.Errorf("%d foreign UDP flows, want %d", n, foreign)
		}
		return err
	})
	traffic.Go(func() error { return tcpFlows(b, foreign) })
	if err := traffic.Wait(); err != nil {
		t.Fatal(err)
	}
	after := b.statistics()
	messages := b.sensor.Counters().Messages
	questions := b.servers[0].Questions() + b.servers[1].Questions()
	clashes := after.ClashResolved - before.ClashResolved
	t.Logf("%d lookups, %d questions reached the servers, %d clashes in the kernel, %d messages: %.2f per 1,000 lookups",
		lookups, questions, clashes, messages, float64(messages)*1000/lookups)
	// Nothing makes packets collide here, but two CPUs may do it by chance: then
	// there may be an UPDATE and a DESTROY.
	if messages > 2*clashes {
		t.Errorf("%d messages passed the filter, with %d clashes", messages, clashes)
	}
	if questions < 2*lookups {
		t.Errorf("%d questions reached the servers, want at least %d", questions, 2*lookups)
	}
	// Flows that became ASSURED are judged after a while.
	b.resolveFor(forwarder, settle+2*tickInterval)
	b.mu.Lock()
	defer b.mu.Unlock()
	if uint64(len(b.findings)) > clashes {
		t.Errorf("%d findings in healthy traffic: %+v", len(b.findings), last(b.findings, 5))
	}
}

// resolveFor keeps the forwarder's sockets in use for a while.
func (b *box) resolveFor(forwarder *lab.Pod, d time.Duration) {
	b.t.Helper()
	p := b.pod("patient", forwarder.Addr4)
	for begin := time.Now(); time.Since(begin) < d; {
		b.resolve(p, lab.MuslStatic, 100, "healthy.test.")
	}
}

// tcpFlows makes TCP connections from a pod through the node.
func tcpFlows(b *box, n int) error {
	p, err := b.AddPod(lab.PodConfig{Name: "tcp"})
	if err != nil {
		return err
	}
	var listener net.Listener
	if err := b.servers[0].Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(b.servers[0].Addr4, 8080).String())
		return err
	}); err != nil {
		return err
	}
	var server errgroup.Group
	server.Go(func() error {
		for range n {
			c, err := listener.Accept()
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, c)
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	err = p.Do(func() error {
		for range n {
			c, err := net.Dial("tcp4", listener.Addr().String())
			if err != nil {
				return err
			}
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = server.Wait()
	}
	return errors.Join(err, listener.Close())
}
