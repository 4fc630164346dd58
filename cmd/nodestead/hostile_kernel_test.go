package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// A pod that floods the node with questions that nobody answers, from ports of
// its invention, and others that send what is no DNS: memory is bounded, what is
// thrown away is counted, and the lookups of a decent pod are all counted.
func TestHostilePackets(t *testing.T) {
	const (
		pending = 5000
		calls   = 300
	)
	l := lab.ForTest(t)
	service, nowhere := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.244.3.250")
	s, err := l.AddServer(lab.Rule{Name: "*", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AddService(service, lab.Random, s.Addr4); err != nil {
		t.Fatal(err)
	}
	pod, err := l.AddPod(lab.PodConfig{Name: "decent", Nameservers: []netip.Addr{service}})
	if err != nil {
		t.Fatal(err)
	}
	odd, err := l.AddPod(lab.PodConfig{Name: "odd"})
	if err != nil {
		t.Fatal(err)
	}
	flood, err := l.AddLoad()
	if err != nil {
		t.Fatal(err)
	}
	cmd, stderr := start(t, l.Node(), "nodestead", "watch", "--http.watch=127.0.0.1:9853", "--names.lookups.pending="+strconv.Itoa(pending))
	ready := func() error { _, err := scrape(l, "go_goroutines"); return err }
	if err := lab.Until(t.Context(), time.Minute, ready); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done, end := context.WithCancel(ctx)
	var traffic errgroup.Group
	traffic.Go(func() error {
		_, err := flood.Lookups(done, nowhere, 10_000, time.Minute)
		return ignore(done, err)
	})
	traffic.Go(func() error { return odd.Do(func() error { return sendOdd(done, service) }) })
	answers, err := pod.Resolve(ctx, lab.Glibc, calls, "decent.test.")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		if a.Err != "" {
			t.Fatalf("the decent pod's lookup failed: %+v", a)
		}
	}
	for name, atLeast := range map[string]float64{
		"nodestead_dns_lookups_discarded_total": pending,
		"nodestead_dns_malformed_total":         10,
	} {
		err := lab.Until(ctx, 20*time.Second, func() error {
			v, err := scrape(l, name)
			if err == nil && v < atLeast {
				err = fmt.Errorf("%s is %v, want %v or more", name, v, atLeast)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	for name, atMost := range map[string]float64{
		"nodestead_dns_lookups_pending": pending,
		"process_resident_memory_bytes": 64 << 20,
	} {
		if v, err := scrape(l, name); err != nil || v > atMost {
			t.Errorf("%s is %v, want %v or less (%v)", name, v, atMost, err)
		}
	}
	end()
	if err := traffic.Wait(); err != nil {
		t.Errorf("traffic: %v", err)
	}
	// A noerror of glibc is the decent pod's alone; one call in a hundred may look like musl.
	for _, qtype := range []string{"A", "AAAA"} {
		sample := `nodestead_dns_lookups_total{namespace="",outcome="noerror",qtype="` + qtype + `",resolver="glibc"}`
		err := lab.Until(ctx, 20*time.Second, func() error {
			v, err := scrape(l, sample)
			if err == nil && v < 0.99*calls {
				err = fmt.Errorf("%s is %v, the pod made %d", sample, v, calls)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, stderr)
	}
}

// sendOdd sends what a parser may stumble over until ctx ends.
func sendOdd(ctx context.Context, to netip.Addr) error {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 53)))
	if err != nil {
		return err
	}
	defer conn.Close()
	header := []byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00")
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		for _, message := range [][]byte{
			{}, {0}, header[:11], header,
			append(header[:12:12], "\xc0\x0c\x00\x01\x00\x01"...),                                              // a name that points to itself
			append(header[:12:12], "\x3fshort"...),                                                             // a label longer than the packet
			append(header[:12:12], bytes.Repeat([]byte("\x3f"+strings.Repeat("a", 63)), 8)...),                 // a name without end
			append([]byte("\x00\x01\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff"), "\x01a\x00\x00\x01\x00\x01"...), // counts that lie
			bytes.Repeat([]byte{0xff}, 65507),                                                                  // the largest datagram
		} {
			if _, err := conn.Write(message); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return nil
}

// scrape gives the value of a sample of /metrics.
func scrape(l *lab.Lab, sample string) (float64, error) {
	resp, err := l.Node().HTTPClient().Get("http://127.0.0.1:9853/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, sample+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("no %s", sample)
}
