package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// maxAnswer is far above what a server sends over UDP to who has no EDNS.
const maxAnswer = 4096

// Ask looks one name up, once: A and AAAA from one unconnected socket, at all
// nameservers at once, what is unanswered again after 2.5 s, what fails with
// SERVFAIL again at once (four times in each of the two rounds). It waits for
// every nameserver, at most 5 s or until ctx ends, and gives a result for each
// type and nameserver, A first.
func (p *Probe) Ask(ctx context.Context, name string) []Result {
	if len(p.nameservers) == 0 {
		return nil
	}
	// musl's ids come from the clock and differ by some hundred. Ours are not to
	// be guessed, and as far apart as those.
	id := uint16(rand.N(1 << 16))
	x, err := newExchange(dns.CanonicalName(name), p.nameservers, [2]uint16{id, id + 70 + uint16(rand.N(170))})
	if err != nil {
		return failed(name, p.nameservers, fmt.Errorf("make a question for %s: %w", name, err))
	}
	network := "udp4"
	if slices.ContainsFunc(p.nameservers, func(ns netip.AddrPort) bool { return !ns.Addr().Is4() }) {
		network = "udp"
	}
	conn, err := p.listen(network)
	if err != nil {
		return failed(name, p.nameservers, fmt.Errorf("open a socket for %s: %w", name, err))
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	err = x.converse(ctx, conn)
	results := x.results(time.Now())
	if err != nil {
		for i := range results {
			results[i].Err = errors.Join(results[i].Err, err)
		}
	}
	return results
}

// converse sends and receives until the exchange is over or ctx ends.
func (x *exchange) converse(ctx context.Context, conn *net.UDPConn) error {
	send := func(p packet) {
		_, err := conn.WriteToUDPAddrPort(x.questions[p.question].wire, x.nameservers[p.nameserver])
		x.sent(p, time.Now(), err)
	}
	buf := make([]byte, maxAnswer)
	for {
		now := time.Now()
		for _, p := range x.due(now) {
			send(p)
		}
		if x.over(now) {
			return nil
		}
		if err := conn.SetReadDeadline(x.until()); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		if ctx.Err() != nil { // its interrupt may have come before the deadline was set
			return nil
		}
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if again, ok := x.answer(buf[:n], from, time.Now()); ok {
			send(again)
		}
	}
}

// failed are the results of a lookup that could not even begin.
func failed(name string, nameservers []netip.AddrPort, err error) []Result {
	now := time.Now()
	var out []Result
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		for _, ns := range nameservers {
			out = append(out, Result{Time: now, Name: dns.CanonicalName(name), Type: t, Nameserver: ns, Outcome: Timeout, Err: err})
		}
	}
	return out
}
