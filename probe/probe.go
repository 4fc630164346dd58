package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// DefaultInterval is how often a name is asked when Config does not say.
const DefaultInterval = 30 * time.Second

// The outcomes that are no rcode.
const (
	// NoData is NOERROR without a record of the type that was asked (RFC 2308).
	NoData = "nodata"
	// Timeout: no answer came.
	Timeout = "timeout"
)

// Config is what New needs.
type Config struct {
	// Names are what is asked, and always absolute: a missing dot at the end is
	// added. None: Run asks nothing.
	Names []string
	// Nameservers are asked all at once, as musl does. It reads three of them
	// from resolv.conf at most; here all are asked.
	Nameservers []netip.AddrPort
	// Interval is the time between two lookups of a name, give or take a tenth;
	// default DefaultInterval.
	Interval time.Duration
	// Listen opens the unconnected socket of one lookup; network is "udp4", or
	// "udp" when a nameserver is of IPv6. By default it is a socket of the
	// process's network namespace.
	Listen func(network string) (*net.UDPConn, error)
}

// Result is what came of one question at one nameserver.
//
// All nameservers are asked at once, and what any of them answers is not asked
// again: a nameserver that lost its first question then has the outcome
// Timeout, though another one served the client well.
type Result struct {
	// Time is when the first question was sent.
	Time time.Time
	// Name is absolute; Type is dns.TypeA or dns.TypeAAAA.
	Name       string
	Type       uint16
	Nameserver netip.AddrPort
	// Outcome is the rcode in lower case, NoData or Timeout. An answer that musl
	// takes (NOERROR, NXDOMAIN) stands above all others; else it is the last one.
	Outcome string
	// Accepted: this is the answer that musl would have gone on with, the first
	// acceptable one of all nameservers. When no result of a question has it,
	// musl fails with EAI_AGAIN.
	Accepted bool
	// Truncated: the answer had TC set, which musl before 1.2.4 ignores.
	Truncated bool
	// Took is the time from the first question to that answer, or to the end.
	Took time.Duration
	// Attempts is how often this nameserver was asked.
	Attempts int
	// Stray is an address that an answer to this question came from and that had
	// not been asked: an answer that was not translated back. Zero for none.
	Stray netip.AddrPort
	// Err is why a question could not be sent, nil when all of them were.
	Err error
}

// Probe asks. Its methods may be called from several goroutines.
type Probe struct {
	names       []string
	nameservers []netip.AddrPort
	interval    time.Duration
	listen      func(network string) (*net.UDPConn, error)
	ask         func(ctx context.Context, name string) []Result // a seam of Run
}

// New checks the configuration. It sends nothing.
func New(cfg Config) (*Probe, error) {
	p := &Probe{interval: cfg.Interval, listen: cfg.Listen}
	var errs []error
	for _, n := range cfg.Names {
		if _, ok := dns.IsDomainName(n); !ok || n == "" {
			errs = append(errs, fmt.Errorf("%q is no domain name", n))
		}
		p.names = append(p.names, dns.CanonicalName(n))
	}
	for _, ns := range cfg.Nameservers {
		if !ns.IsValid() || ns.Port() == 0 {
			errs = append(errs, fmt.Errorf("nameserver %v is no address with a port", ns))
		}
		ns = netip.AddrPortFrom(ns.Addr().Unmap(), ns.Port())
		if !slices.Contains(p.nameservers, ns) { // one result for each
			p.nameservers = append(p.nameservers, ns)
		}
	}
	if len(p.names) > 0 && len(p.nameservers) == 0 {
		errs = append(errs, errors.New("there are names to ask and no nameserver"))
	}
	if p.interval == 0 {
		p.interval = DefaultInterval
	}
	if p.interval < 0 {
		errs = append(errs, fmt.Errorf("interval %v is negative", p.interval))
	}
	if p.listen == nil {
		p.listen = func(network string) (*net.UDPConn, error) { return net.ListenUDP(network, nil) }
	}
	p.ask = p.Ask
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	return p, nil
}

// Run asks each name at every interval until ctx ends, and hands over each
// result; emit is never called twice at once. The first lookups are spread over
// an interval, so that the nodes of a cluster don't ask together. It returns nil
// when ctx has ended.
func (p *Probe) Run(ctx context.Context, emit func(Result)) error {
	var mu sync.Mutex
	var workers errgroup.Group
	for _, name := range p.names {
		workers.Go(func() error {
			for wait := rand.N(p.interval); rest(ctx, wait); {
				start := time.Now()
				results := p.ask(ctx, name)
				if ctx.Err() != nil {
					break // cut short: they prove nothing
				}
				mu.Lock()
				for _, r := range results {
					emit(r)
				}
				mu.Unlock()
				wait = jittered(p.interval) - time.Since(start)
			}
			return nil
		})
	}
	if len(p.names) == 0 {
		<-ctx.Done()
	}
	return workers.Wait()
}

// jittered is d give or take a tenth.
func jittered(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// rest waits for d and tells whether ctx still lives.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
