package lookup

import (
	"encoding/binary"
	"slices"
	"time"
)

const (
	// keepFor is how long packets that were seen beyond the clients' links wait
	// in their ring to be needed, if it has room.
	keepFor = 300 * time.Millisecond
	// fewPackets are read in any case: that costs nothing.
	fewPackets = 200
	// fullInterval is the time after which all of them are read, for the servers
	// that healthy lookups are answered by.
	fullInterval = 15 * time.Second
)

// ahead reads what was seen beyond the clients' links, if a lookup needs it,
// before what was seen at them. It tells how many blocks are new.
func (r *reader) ahead(now time.Time) (fresh int) {
	fresh, packets := r.far.count()
	if packets < fewPackets || now.Sub(r.full) >= fullInterval || r.sink.needs(0) {
		r.drain(r.far, now)
		r.full = now
	}
	return fresh
}

// release gives blocks back to the kernel, the oldest first, so that it has room
// until the next beat. Nothing goes unread that a lookup without an answer needs.
func (r *reader) release(fresh int, now time.Time) {
	n, until, packets := 0, int64(0), uint64(0)
	room := max(2*fresh, r.far.blocks()/4)
	for n < r.far.kept {
		block := r.far.peek(n)
		closed := blockTime(block)
		if r.far.blocks()-(r.far.kept-n) >= room && now.UnixNano()-closed < int64(keepFor) {
			break
		}
		until = max(until, closed)
		packets += uint64(binary.NativeEndian.Uint32(block[blockPackets:]))
		n++
	}
	switch {
	case n == 0:
	case r.sink.needs(until):
		r.drain(r.far, now)
	default:
		r.sink.skipped(until)
		for range n {
			r.far.give()
		}
		r.counters.packets.Add(packets)
	}
}

// part tells the kernel which packets go into which ring. For a moment those that
// are seen beyond the clients' links go into none, which is better than into
// both.
func (r *reader) part(local map[addr]struct{}) {
	own, ok := owned(local)
	if ok == r.split && slices.Equal(own, r.own) {
		return
	}
	begin := time.Now()
	if r.split, r.own = ok && r.refilter(near, beyond, own) == nil, own; !r.split {
		r.failed = r.refilter(everything, noShare, nil)
	}
	r.sink.lost(begin.UnixNano(), time.Now().UnixNano())
}

func (r *reader) refilter(ring, far share, own []addr) error {
	for _, f := range []struct {
		fd int
		of share
	}{{r.far.fd, noShare}, {r.ring.fd, ring}, {r.far.fd, far}} {
		program, err := filter(r.cfg.Ports, f.of, own)
		if err != nil {
			return err
		}
		if err := attach(f.fd, program); err != nil {
			return err
		}
	}
	return nil
}
