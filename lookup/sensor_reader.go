package lookup

import "time"

const (
	// slowestBeat is how long the reader rests between two readings of the ring:
	// the wake-up is what costs, not the packet. When the ring fills quickly, it
	// rests less, down to fastestBeat.
	slowestBeat = 100 * time.Millisecond
	fastestBeat = 5 * time.Millisecond
	// After so many readings without a packet, and with nothing pending, the
	// first packet wakes the reader, or else idleBeat.
	quietReadings = 10
	idleBeat      = time.Second
	// unseen is how long a packet may stay in a block that the kernel has not
	// handed over yet: two rounds of its timer, and a bit for jiffies.
	unseen = 2*retireMillis*time.Millisecond + 20*time.Millisecond
	// lossInterval is the time between two reports of losses.
	lossInterval = time.Second
)

// reader takes packets from the ring to the sink. It lives as long as Run.
type reader struct {
	*Sensor
	emit   func(Event)
	sink   sink
	view   view
	beat   time.Duration
	quiet  int   // readings without a packet
	whole  int64 // until when the drops are known
	own    []addr
	split  bool      // the packets are parted between the two rings
	full   time.Time // when all that was seen beyond the clients' links was read
	loss   Loss      // not yet reported
	told   time.Time
	failed error // of parting the packets
	warmed byte
	p      packet // here, so that it does not go to the heap each time
}

func newReader(s *Sensor, emit func(Event)) *reader {
	r := &reader{Sensor: s, emit: emit, sink: s.newSink(emit), beat: slowestBeat, whole: s.opened.UnixNano()}
	r.view = newView(s.watcher, len(s.cfg.Interfaces) > 0, func(links []link, local map[addr]struct{}) {
		r.sink.links(links, local)
		r.part(local)
	}, emit)
	return r
}

// read empties the ring once.
func (r *reader) read(now time.Time) error {
	// Links first: a pod's first packets come right after its link.
	if err := r.view.follow(now); err != nil {
		return err
	}
	if err := r.drops(now); err != nil {
		return err
	}
	if r.failed != nil {
		return r.failed
	}
	fresh := r.ahead(now)
	full := r.drain(r.ring, now)
	r.sink.tick(now.UnixNano())
	r.release(fresh, now)
	r.beat = min(nextBeat(r.beat, full, r.ring.blocks()), nextBeat(r.beat, fresh, r.far.blocks()))
	if r.quiet++; full+fresh > 0 || r.sink.pending() > 0 {
		r.quiet = 0
	}
	r.counters.discarded.Store(r.sink.discarded())
	r.counters.malformed.Store(r.sink.malformed())
	r.counters.pending.Store(uint64(r.sink.pending()))
	return nil
}

// drain hands over what is in a ring and tells how many blocks that were. The
// kernel fills them meanwhile: it ends after one round.
func (r *reader) drain(from *ring, now time.Time) (blocks int) {
	var (
		f       frame
		packets uint64
	)
	for blocks < from.blocks() {
		block := from.take()
		if block == nil {
			break
		}
		r.warmed = warm(block)
		for w := walkBlock(block); w.next(&f); {
			packets++
			if r.view.role(f.link, now) == ignored || !decode(f.data, r.cfg.Ports, &r.p) {
				continue
			}
			r.p.at, r.p.link, r.p.egress = f.at, f.link, f.egress
			r.sink.packet(&r.p)
		}
		from.give()
		blocks++
	}
	r.counters.packets.Add(packets)
	return blocks
}

// nextBeat halves the rest when more than five eighths of the ring were in use,
// and doubles it when that would leave half of it free.
func nextBeat(beat time.Duration, used, blocks int) time.Duration {
	switch {
	case used*8 > blocks*5:
		return max(beat/2, fastestBeat)
	case used*4 < blocks:
		return min(beat*2, slowestBeat)
	}
	return beat
}

// drops asks the kernel what it had no room for, tells the sink at once, and
// everybody else once in a while.
func (r *reader) drops(now time.Time) error {
	n, err := r.ring.drops()
	if err != nil {
		return err
	}
	m, err := r.far.drops()
	if err != nil {
		return err
	}
	n += m
	from, to := r.whole, now.UnixNano()
	r.whole = to
	if n > 0 {
		r.counters.lost.Add(uint64(n))
		r.sink.lost(from, to)
		if r.loss.Packets == 0 {
			r.loss.From = time.Unix(0, from)
		}
		r.loss.To, r.loss.Packets = now, r.loss.Packets+uint64(n)
	}
	if now.Sub(r.told) >= lossInterval {
		r.tellLoss(now)
	}
	return nil
}

func (r *reader) tellLoss(now time.Time) {
	if r.loss.Packets > 0 {
		r.emit(r.loss)
		r.loss, r.told = Loss{}, now
	}
}

// finish tells what is left to tell.
func (r *reader) finish(now time.Time) {
	r.drain(r.far, now)
	r.tellLoss(now)
	r.sink.finish()
}
