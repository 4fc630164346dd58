package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/ti-mo/netfilter"
	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The functions of this file look once, without a sensor, in the network
// namespace of the calling thread. They return an error that wraps ErrPermission
// when CAP_NET_ADMIN is missing.

// ReadStatistics reads the namespace's counters. clashResolve tells whether the
// kernel counts collisions apart from drops (Linux 5.10 and later).
func ReadStatistics() (s Statistics, clashResolve bool, err error) {
	var r reader
	if r.conn, err = netfilter.Dial(nil); err != nil {
		return Statistics{}, false, fmt.Errorf("open conntrack: %w", err)
	}
	s, err = r.read()
	if clashResolve = err == nil; errors.Is(err, errNoClashResolve) {
		err = nil
	}
	return s, clashResolve, errors.Join(err, r.conn.Close())
}

// Settings are the namespace's sysctls below net.netfilter that decide what
// conntrack tells and holds.
type Settings struct {
	// Loaded is false when the kernel does no connection tracking at all.
	Loaded bool
	// Events, Accounting and Timestamps are nf_conntrack_events, _acct and
	// _timestamp; "" when the kernel was built without them.
	Events, Accounting, Timestamps string
	// Max and Buckets are nf_conntrack_max and _buckets.
	Max, Buckets uint64
}

// ReadSettings reads the sysctls. It needs no capability.
func ReadSettings() (Settings, error) {
	var errs []error
	read := func(name string) (value string) {
		f, err := openSysctl(name)
		if err == nil {
			value, err = f.read()
			err = errors.Join(err, f.close())
		}
		errs = append(errs, err)
		return value
	}
	number := func(name string) uint64 {
		value := read(name)
		if value == "" {
			return 0
		}
		n, err := strconv.ParseUint(value, 10, 64)
		errs = append(errs, err)
		return n
	}
	s := Settings{
		Events: read("nf_conntrack_events"), Accounting: read("nf_conntrack_acct"), Timestamps: read("nf_conntrack_timestamp"),
		Max: number("nf_conntrack_max"), Buckets: number("nf_conntrack_buckets"),
	}
	s.Loaded = s.Max > 0 || s.Buckets > 0
	return s, errors.Join(errs...)
}

// Exemption is what takes DNS out of connection tracking.
type Exemption struct {
	// NodeLocal: the link of NodeLocal DNSCache exists.
	NodeLocal bool
	// Rule says where a rule of nftables (iptables-nft's included) exempts DNS,
	// "" when none does. Those of iptables-legacy are not seen.
	Rule string
}

// FindExemption looks for what exempts UDP packets of the ports; none means 53.
func FindExemption(ports []uint16) (found Exemption, err error) {
	if len(ports) == 0 {
		ports = []uint16{53}
	}
	e, err := openExemptions(ports)
	if err != nil {
		return Exemption{}, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	_, err = e.links.LinkByName(nodeLocalLink)
	if _, missing := errors.AsType[rtnl.LinkNotFoundError](err); err != nil && !missing {
		return Exemption{}, fmt.Errorf("find link %s: %w", nodeLocalLink, err)
	}
	found.NodeLocal = err == nil
	_, err = e.ruleGeneration()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return found, nil // a kernel without nftables has no such rules
	}
	if err != nil {
		return found, err
	}
	found.Rule, err = e.notrackRule()
	return found, err
}

// FindBackend asks the table where packets of an original tuple really go. It
// is not found when they are not tracked, or their entry has ended.
func FindBackend(t Tuple) (backend netip.AddrPort, found bool, err error) {
	table, err := openTable()
	if err != nil {
		return netip.AddrPort{}, false, err
	}
	f, found := table.lookup(t)
	return f.backend, found, table.close()
}
