package agent

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/ti-mo/conntrack"

	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/internal/lab"
)

// nodeLocal is NodeLocal DNSCache's address.
const nodeLocal = "169.254.20.10"

// serveOnNode runs a server in the node's own network, until the test ends. It
// says nothing of silent.test, and of slow.test only after four seconds: well after
// musl has asked again, and before it gives up.
func (a *boxAgent) serveOnNode(addr string) {
	a.t.Helper()
	var conn net.PacketConn
	err := a.Node().Do(func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp", net.JoinHostPort(addr, "53"))
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		name := m.Question[0].Name
		switch name {
		case "silent.test.":
			return
		case "slow.test.":
			<-time.After(4 * time.Second)
		}
		header := dns.RR_Header{Name: name, Rrtype: m.Question[0].Qtype, Class: dns.ClassINET, Ttl: 5}
		reply := new(dns.Msg).SetReply(m)
		if header.Rrtype == dns.TypeA {
			reply.Answer = []dns.RR{&dns.A{Hdr: header, A: net.IPv4(192, 0, 2, 7)}}
		} else {
			reply.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: net.ParseIP("2001:db8::7")}}
		}
		_ = w.WriteMsg(reply) // the socket may be closed
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	a.t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			a.t.Error(err)
		}
		if err := <-ended; err != nil {
			a.t.Error(err)
		}
	})
}

// inBox runs a command on the node.
func (a *boxAgent) inBox(args ...string) {
	a.t.Helper()
	if _, err := a.box.Run(a.t.Context(), args...); err != nil {
		a.t.Fatal(err)
	}
}

// flows is how many entries the conntrack table has of lookups at an address.
func (a *boxAgent) flows(server netip.Addr) (n int, err error) {
	err = a.Node().Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		all, err := c.Dump(nil)
		for _, f := range all {
			if f.TupleOrig.IP.DestinationAddress == server {
				n++
			}
		}
		return err
	})
	return n, err
}

// TestNotTracked has pods ask NodeLocal DNSCache, whose lookups conntrack never
// sees. The packets still tell what is lost, and why; and that conntrack is
// blind is said, as long as it is.
func TestNotTracked(t *testing.T) {
	a := newBoxAgent(t, lab.BoxConfig{})
	a.start()
	const blind = `nodestead_sensor_blind{reason="notrack",sensor="conntrack"}`
	a.metric(blind, "0")

	a.inBox("ip", "link", "add", "nodelocaldns", "type", "veth", "peer", "name", "nodelocalpeer")
	a.inBox("ip", "address", "add", nodeLocal+"/32", "dev", "nodelocaldns")
	a.inBox("ip", "link", "set", "nodelocaldns", "up")
	rules := [][]string{
		{"PREROUTING", "-d", nodeLocal, "-p", "udp", "--dport", "53"},
		{"OUTPUT", "-s", nodeLocal, "-p", "udp", "--sport", "53"},
	}
	for _, r := range rules {
		a.inBox(slices.Concat([]string{"iptables", "-w", "-t", "raw", "-A"}, r, []string{"-j", "NOTRACK"})...)
	}
	a.serveOnNode(nodeLocal)
	a.metric(blind, "1")
	a.logged("level=WARN", `msg="sensor is blind"`, "sensor=conntrack", "reason=notrack", "remedy=")

	service := netip.MustParseAddr(nodeLocal)
	var scenes []*scene
	for _, s := range []struct {
		cause    incident.Cause
		resolver lab.Resolver
		name     string
		lookups  int // that are lost of each call
	}{
		{incident.ServerSilent, lab.MuslStatic, "silent.test.", 2},
		{incident.ServerSilent, lab.Glibc, "silent.test.", 2},
		{incident.SlowAnswer, lab.MuslDynamic, "slow.test.", 2},
	} {
		scenes = append(scenes, &scene{
			cause: s.cause, name: string(s.resolver), resolver: s.resolver, label: labelOf(s.resolver), service: service,
			qtypes: []string{"A", "AAAA"}, lookups: s.lookups * made, question: s.name,
			pod: a.runPod(lab.CRIPodConfig{
				Namespace: string(s.cause), Name: string(s.resolver), Containers: []string{"build"}, Nameservers: []netip.Addr{service},
			}),
			play: func(s *scene) []told { return a.ask(s.pod, "build", s.resolver, 1, made, s.question) },
		})
	}
	quick := a.runPod(lab.CRIPodConfig{Namespace: "healthy", Name: "quick", Nameservers: []netip.Addr{service}})
	var wg sync.WaitGroup
	wg.Go(func() { a.load(quick, "app", lab.Go, 500, 1, "warm.test.") })
	// What a pod uses is told better once it has asked some times.
	for _, s := range scenes {
		a.load(s.pod, "build", s.resolver, 50, 1, "warm.test.")
	}
	matrix := map[incident.Cause]map[string]int{}
	a.playAll(scenes, matrix)
	wg.Wait()
	t.Log("\n" + confusion(matrix))
	if got := a.ofPod(quick, 0); len(got) > 0 {
		t.Errorf("%d incidents of a pod whose lookups are answered, the first of them %+v", len(got), got[0])
	}
	if n, err := a.flows(service); n > 0 || err != nil {
		t.Errorf("%d lookups are in the conntrack table: %v", n, err)
	}

	for _, r := range rules {
		a.inBox(slices.Concat([]string{"iptables", "-w", "-t", "raw", "-D"}, r, []string{"-j", "NOTRACK"})...)
	}
	a.inBox("ip", "link", "delete", "nodelocaldns")
	a.metric(blind, "0")
	a.logged("level=INFO", `msg="sensor sees again"`, "reason=notrack")
}
