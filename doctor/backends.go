package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/conntrack"
)

// samples is how many flows to a nameserver are made to see where it is
// translated to. With two nameservers over the same ten servers, one check in a
// thousand sees no server twice.
const samples = 8

// distinct judges whether several nameservers are translated to the same
// servers. musl asks all nameservers from one socket at once: two questions that
// reach one server by two addresses have one reply tuple, and the kernel drops
// the second.
func (d *doctor) distinct() Verdict {
	const check = "nameservers_distinct"
	if len(d.Nameservers) < 2 {
		return Verdict{Check: check, State: OK, Evidence: "there is one nameserver only"}
	}
	if err := d.within(func() error {
		_, _, err := conntrack.ReadStatistics() // what is not permitted looks like no entry below
		return err
	}); err != nil {
		return unknown(check, err)
	}
	backends := map[netip.AddrPort][]netip.AddrPort{}
	for _, ns := range d.Nameservers {
		var err error
		if backends[ns], err = d.backends(ns, samples); err != nil {
			return unknown(check, err)
		}
	}
	return judgeDistinct(d.Nameservers, backends)
}

// judgeDistinct takes the servers that each nameserver was translated to, none
// for one whose packets are not tracked and so cannot be dropped for it.
func judgeDistinct(nameservers []netip.AddrPort, backends map[netip.AddrPort][]netip.AddrPort) Verdict {
	v := Verdict{Check: "nameservers_distinct", State: OK}
	var seen []string
	for i, a := range nameservers {
		seen = append(seen, fmt.Sprintf("%v is translated to %s", a, join(backends[a])))
		if len(backends[a]) == 0 {
			seen[i] = fmt.Sprintf("%v is not tracked", a)
		}
		for _, b := range nameservers[i+1:] {
			for _, server := range backends[a] {
				if slices.Contains(backends[b], server) {
					v.State = Finding
					v.Evidence = fmt.Sprintf("%v and %v are both translated to %v: musl asks both at once from one socket, and the kernel drops questions whose answers would come back the same way", a, b, server)
					v.Remedy = "give the pods one of the two nameservers only (the kubelet's clusterDNS, the pod's dnsConfig)"
				}
			}
		}
	}
	if v.State == OK {
		v.Evidence = strings.Join(seen, "; ")
	}
	return v
}

// backends sends some questions to a nameserver, each from a socket of its own,
// and asks conntrack where they went. Untracked questions went nowhere that it
// knows: none.
func (d *doctor) backends(ns netip.AddrPort, n int) ([]netip.AddrPort, error) {
	question, err := new(dns.Msg).SetQuestion(dns.Fqdn(d.reachable()), dns.TypeA).Pack()
	if err != nil {
		return nil, fmt.Errorf("make a question for %s: %w", d.reachable(), err)
	}
	var sockets []*net.UDPConn
	defer func() {
		// Their answers are taken in, so that nobody is told that a port is closed.
		until := time.Now().Add(300 * time.Millisecond)
		for _, c := range sockets {
			if c.SetReadDeadline(until) == nil {
				_, _ = c.Read(make([]byte, 512))
			}
			_ = c.Close()
		}
	}()
	var out []netip.AddrPort
	for range n {
		err := d.within(func() error {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(ns))
			if err != nil {
				return err
			}
			sockets = append(sockets, c)
			if _, err := c.Write(question); err != nil {
				return err
			}
			local, ok := c.LocalAddr().(*net.UDPAddr)
			if !ok {
				return errors.New("a socket has no address")
			}
			from := netip.AddrPortFrom(local.AddrPort().Addr().Unmap(), local.AddrPort().Port())
			backend, found, err := conntrack.FindBackend(conntrack.Tuple{Source: from, Destination: ns})
			if found && !slices.Contains(out, backend) {
				out = append(out, backend)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("see where %v is translated to: %w", ns, err)
		}
	}
	return out, nil
}
