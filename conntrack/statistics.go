package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
)

// Requests for statistics (nfnetlink_conntrack.h).
const (
	msgCTGetStatsCPU = 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	msgCTGetStats    = 5 // IPCTNL_MSG_CT_GET_STATS
	ctaGlobalEntries = 1 // CTA_STATS_GLOBAL_ENTRIES
	ctaGlobalMax     = 2 // CTA_STATS_GLOBAL_MAX_ENTRIES, Linux 4.18 and later
	statClashResolve = 14
	statAttributes   = 16 // one more than the highest CTA_STATS_*
)

// Statistics are the namespace's conntrack counters, summed over all CPUs and
// extended to 64 bits (the kernel's are u32 and wrap). They start at the
// kernel's own values.
type Statistics struct {
	Found, Invalid, Insert, InsertFailed, Drop, EarlyDrop uint64
	Error, SearchRestart, ClashResolved, ChainTooLong     uint64
	// Entries and Limit are the table's fill and its limit now.
	Entries, Limit uint64
}

// cpuCounters are one CPU's counters as the kernel gives them, indexed by
// CTA_STATS_*.
type cpuCounters [statAttributes]uint32

// meter extends the kernel's per-CPU counters to 64 bits. It must read at
// least once in the time that a counter takes to go around half its range.
type meter struct {
	last  map[uint16]cpuCounters
	total [statAttributes]uint64
}

// add takes one CPU's reading. A counter that went back by less than half its
// range began anew (the conntrack module was loaded again).
func (c *meter) add(cpu uint16, now cpuCounters) {
	if c.last == nil {
		c.last = map[uint16]cpuCounters{}
	}
	before := c.last[cpu]
	for i := range now {
		delta := now[i] - before[i]
		if delta > 1<<31 {
			delta = now[i]
		}
		c.total[i] += uint64(delta)
	}
	c.last[cpu] = now
}

func (c *meter) statistics() Statistics {
	t := &c.total
	return Statistics{
		Found: t[2], Invalid: t[4], Insert: t[8], InsertFailed: t[9], Drop: t[10], EarlyDrop: t[11],
		Error: t[12], SearchRestart: t[13], ClashResolved: t[statClashResolve], ChainTooLong: t[15],
	}
}

// reader asks the kernel for statistics. It is safe for concurrent use.
type reader struct {
	mu    sync.Mutex
	conn  *netfilter.Conn
	meter meter
}

// errNoClashResolve: the kernel is older than 5.10, or does not say.
var errNoClashResolve = errors.New("the kernel's statistics lack clash_resolve (Linux 5.10 and later have it)")

// read gives the counters now. With errNoClashResolve the others are good.
func (r *reader) read() (Statistics, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	perCPU, err := r.query(msgCTGetStatsCPU, netlink.Request|netlink.Dump)
	if err != nil {
		return Statistics{}, fmt.Errorf("read conntrack statistics: %w", permission(err))
	}
	clash := false
	for _, m := range perCPU {
		has, err := r.meter.take(m.Data)
		if err != nil {
			return Statistics{}, err
		}
		clash = clash || has
	}
	global, err := r.query(msgCTGetStats, netlink.Request|netlink.Acknowledge)
	if err != nil {
		return Statistics{}, fmt.Errorf("read conntrack's entries: %w", permission(err))
	}
	s := r.meter.statistics()
	for _, m := range global {
		if len(m.Data) < nfgenmsgLen {
			continue
		}
		s.Entries = max(s.Entries, word(m.Data[nfgenmsgLen:], ctaGlobalEntries))
		s.Limit = max(s.Limit, word(m.Data[nfgenmsgLen:], ctaGlobalMax))
	}
	if !clash {
		return s, errNoClashResolve
	}
	return s, nil
}

func (r *reader) query(kind netfilter.MessageType, flags netlink.HeaderFlags) ([]netlink.Message, error) {
	req, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: kind, Flags: flags,
	}, nil)
	if err != nil {
		return nil, err
	}
	return r.conn.Query(req)
}

// take takes the kernel's reply for one CPU: struct nfgenmsg with the CPU as
// res_id, then one u32 for each counter (ctnetlink_ct_stat_cpu_fill_info). It
// tells whether clash_resolve is among them.
func (c *meter) take(b []byte) (clash bool, err error) {
	if len(b) < nfgenmsgLen {
		return false, fmt.Errorf("conntrack statistics of %d bytes: too short", len(b))
	}
	attrs := b[nfgenmsgLen:]
	var counters cpuCounters
	for i := range counters {
		counters[i] = uint32(word(attrs, uint16(i)))
	}
	c.add(binary.BigEndian.Uint16(b[2:]), counters)
	return find(attrs, statClashResolve) != nil, nil
}

// word reads a u32 attribute, 0 when there is none.
func word(attrs []byte, kind uint16) uint64 {
	v := find(attrs, kind)
	if len(v) != 4 {
		return 0
	}
	return uint64(binary.BigEndian.Uint32(v))
}

// drops compares two readings. A packet whose entry collided and could not be
// kept counts in drop and insert_failed, one that found the table full in drop
// alone, one that met a hash chain too long in chaintoolong and insert_failed
// (nf_conntrack_core.c, Linux 5.10 and later).
func drops(before, now Statistics, from, to time.Time) (Drop, bool) {
	rise := func(a, b uint64) uint64 {
		if b < a {
			return 0
		}
		return b - a
	}
	dropped := rise(before.Drop, now.Drop)
	failed := rise(before.InsertFailed, now.InsertFailed)
	long := rise(before.ChainTooLong, now.ChainTooLong)
	clash := min(dropped, rise(long, failed))
	d := Drop{
		From: from, To: to,
		Clash: clash, ChainTooLong: long, TableFull: dropped - clash,
		Evicted: rise(before.EarlyDrop, now.EarlyDrop),
		Entries: now.Entries, Limit: now.Limit,
	}
	return d, d.Clash+d.ChainTooLong+d.TableFull+d.Evicted > 0
}
