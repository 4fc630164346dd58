package lookup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// ErrPermission is in the chain of Open's error when the kernel refuses a packet
// socket: the process lacks CAP_NET_RAW.
var ErrPermission = errors.New("CAP_NET_RAW is missing")

// Config says what the sensor looks at. The zero value of a field means its
// default.
type Config struct {
	// Ports are the ports of nameservers, 16 at most; 53 by default.
	Ports []uint16
	// Interfaces are names of links or patterns (path.Match); by default all
	// links that carry pods, the uplinks and lo.
	Interfaces []string
	// Pending is how many lookups may be pending at a time; 100,000 by default.
	Pending int
	// Slow is the time from a question to its answer above which a lookup is
	// reported; a second by default.
	Slow time.Duration
	// RingBytes is the size of the rings of packets that the sensor shares with
	// the kernel; 8 MiB by default.
	RingBytes int
}

func (c Config) withDefaults() Config {
	if len(c.Ports) == 0 {
		c.Ports = []uint16{53}
	}
	if c.Pending == 0 {
		c.Pending = 100_000
	}
	if c.Slow == 0 {
		c.Slow = time.Second
	}
	if c.RingBytes == 0 {
		c.RingBytes = defaultRingBytes
	}
	return c
}

// Sensor taps the links of one network namespace.
type Sensor struct {
	cfg      Config
	ring     *ring // packets that are read on each beat
	far      *ring // packets beyond the clients' links, read when they are needed
	watcher  *linkWatcher
	waiter   waiter
	opened   time.Time
	newSink  func(emit func(Event)) sink
	counters struct{ packets, lost, discarded, malformed, pending atomic.Uint64 }
}

// sink is what the packets go to, from one goroutine: the tracker.
type sink interface {
	// links tells all links and local addresses, at the start and whenever one
	// of them has changed.
	links(links []link, local map[addr]struct{})
	// packet is called in the order of time, but for packets that were seen
	// beyond the clients' links: they may come up to keepFor too late.
	packet(p *packet)
	// needs says whether packets that were seen beyond the clients' links up to
	// a time are to be handed over; else they are skipped.
	needs(until int64) bool
	skipped(until int64)
	// tick is called after each reading of the ring, with the time when that
	// began. All packets that were seen more than the time unseen before that
	// have been handed over.
	tick(now int64)
	// lost tells that packets from between these times may be missing.
	lost(from, to int64)
	// finish is called once, last.
	finish()

	discarded() uint64
	malformed() uint64
	pending() int
}

// Open opens a sensor for the network namespace of the calling thread. It needs
// CAP_NET_RAW in it, else the error wraps ErrPermission. Packets are kept from
// here on; Run reads them.
func Open(cfg Config) (*Sensor, error) {
	cfg = cfg.withDefaults()
	cfg.Ports, cfg.Interfaces = slices.Clone(cfg.Ports), slices.Clone(cfg.Interfaces)
	program, err := filter(cfg.Ports, everything, nil)
	if err != nil {
		return nil, err
	}
	none, err := filter(cfg.Ports, noShare, nil)
	if err != nil {
		return nil, err
	}
	s := &Sensor{cfg: cfg}
	s.newSink = func(emit func(Event)) sink {
		return newTracker(trackerConfig{pending: cfg.Pending, slow: cfg.Slow}, emit)
	}
	if s.watcher, err = openLinkWatcher(cfg.Interfaces); err != nil {
		return nil, err
	}
	if s.ring, err = openRing(program, cfg.RingBytes/2); err != nil {
		return nil, errors.Join(err, s.watcher.close())
	}
	if s.far, err = openRing(none, cfg.RingBytes-cfg.RingBytes/2); err != nil {
		return nil, errors.Join(err, s.ring.close(), s.watcher.close())
	}
	if s.waiter, err = newWaiter(s.ring.fd, s.far.fd, s.watcher.fd); err != nil {
		return nil, errors.Join(err, s.ring.close(), s.far.close(), s.watcher.close())
	}
	s.opened = time.Now()
	return s, nil
}

// Close frees what Open took. Run must have returned.
func (s *Sensor) Close() error {
	return errors.Join(s.ring.close(), s.far.close(), s.watcher.close(), s.waiter.close())
}

// Counters may be called at any time, from any goroutine.
func (s *Sensor) Counters() Counters {
	c := &s.counters
	return Counters{
		Packets: c.packets.Load(), Lost: c.lost.Load(), Discarded: c.discarded.Load(),
		Malformed: c.malformed.Load(), Pending: c.pending.Load(),
	}
}

// Run reads packets until ctx ends and calls emit with each event, always from
// one goroutine; emit must not block. It returns nil only when ctx has ended.
func (s *Sensor) Run(ctx context.Context, emit func(Event)) error {
	defer s.waiter.until(ctx)()
	r := newReader(s, emit)
	for {
		ending := ctx.Err() != nil
		if err := r.read(time.Now()); err != nil {
			return fmt.Errorf("watch lookups: %w", err)
		}
		if ending {
			r.finish(time.Now())
			return nil
		}
		if r.quiet < quietReadings {
			s.waiter.beat(ctx, r.beat)
			continue
		}
		happened, err := s.waiter.happens(idleBeat)
		if err != nil {
			return fmt.Errorf("watch lookups: %w", err)
		}
		if happened {
			r.quiet = 0
		}
	}
}
