package conntrack

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ti-mo/netfilter"
	"golang.org/x/sync/errgroup"
)

// ErrPermission is returned by Open when the process lacks CAP_NET_ADMIN in
// the user namespace that owns the network namespace.
var ErrPermission = errors.New("CAP_NET_ADMIN is missing")

// tickInterval is how often the sensor reads statistics and settings. It
// bounds how late a drop, a loss or a blindness is reported.
const tickInterval = time.Second

// Config is what Open needs. The zero value of a field means its default.
type Config struct {
	// Ports are the UDP server ports to watch; default 53, at most 16.
	Ports []uint16
	// ReceiveBuffer is the size of the socket's receive buffer in bytes;
	// default 8 MiB.
	ReceiveBuffer int
}

// Sensor watches one network namespace. Open it, Run it once, Close it.
type Sensor struct {
	ports      []uint16
	events     *socket
	table      *kernelTable
	statistics reader
	exempt     *exemptions
	enabled    sysctl // nf_conntrack_events
	accounting sysctl // nf_conntrack_acct

	messages, lost atomic.Uint64
	exemption      atomic.Pointer[exemption]
}

// Open opens the sensor's sockets and files in the network namespace of the
// calling thread. Run may then be called on any thread.
func Open(cfg Config) (*Sensor, error) {
	if len(cfg.Ports) == 0 {
		cfg.Ports = []uint16{53}
	}
	if cfg.ReceiveBuffer == 0 {
		cfg.ReceiveBuffer = defaultReceiveBuffer
	}
	s := &Sensor{ports: cfg.Ports}
	if err := s.open(cfg.ReceiveBuffer); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sensor) open(receiveBuffer int) (err error) {
	program, err := wanted{asked: s.ports, answering: s.ports}.filter()
	if err != nil {
		return err
	}
	if s.events, err = listen(program, receiveBuffer); err != nil {
		return err
	}
	if s.table, err = openTable(); err != nil {
		return err
	}
	if s.statistics.conn, err = netfilter.Dial(nil); err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	if s.exempt, err = openExemptions(s.ports); err != nil {
		return err
	}
	if s.enabled, err = openSysctl("nf_conntrack_events"); err != nil {
		return err
	}
	s.accounting, err = openSysctl("nf_conntrack_acct")
	return err
}

// Close frees sockets and files. Call it after Run has returned.
func (s *Sensor) Close() error {
	var errs []error
	if s.events != nil {
		errs = append(errs, s.events.close())
	}
	if s.table != nil {
		errs = append(errs, s.table.close())
	}
	if s.statistics.conn != nil {
		errs = append(errs, s.statistics.conn.Close())
	}
	if s.exempt != nil {
		errs = append(errs, s.exempt.close())
	}
	errs = append(errs, s.enabled.close(), s.accounting.close())
	return errors.Join(errs...)
}

// Counters are the sensor's own counts since Open.
type Counters struct {
	Messages uint64 // messages that the kernel queued and the sensor read
	Lost     uint64 // messages that the kernel could not queue
}

// Counters may be called at any time, from any goroutine.
func (s *Sensor) Counters() Counters {
	return Counters{Messages: s.messages.Load(), Lost: s.lost.Load()}
}

// Statistics reads the kernel's counters now. It may be called at any time,
// from any goroutine.
func (s *Sensor) Statistics() (Statistics, error) {
	now, err := s.statistics.read()
	if errors.Is(err, errNoClashResolve) {
		err = nil // reported as a Blindness; the other counters are good
	}
	return now, err
}

// Run reads until ctx ends and calls emit with each finding, always from one
// goroutine; emit must not block. It returns nil only when ctx has ended.
func (s *Sensor) Run(ctx context.Context, emit func(Finding)) error {
	workers, ctx := errgroup.WithContext(ctx)
	workers.Go(func() error {
		return s.exempt.watch(ctx, func(e exemption) { s.exemption.Store(&e) })
	})
	workers.Go(func() error {
		defer context.AfterFunc(ctx, s.events.interrupt)()
		return s.read(ctx, newWatch(s, emit))
	})
	return workers.Wait()
}

// read takes messages as they come and looks at everything else once a tick.
func (s *Sensor) read(ctx context.Context, w *watch) error {
	next := w.tick(time.Now())
	for ctx.Err() == nil {
		n, overrun, err := s.events.receive(ctx, next, func(b []byte) {
			if m, err := decode(b); err == nil {
				w.tracker.message(m, time.Now())
			}
		})
		if err != nil {
			return err
		}
		s.messages.Add(uint64(n))
		now := time.Now()
		switch {
		case !now.Before(next):
			next = w.tick(now)
		case overrun:
			w.loss(now)
		default:
			w.whole = now
		}
		if err := w.refilter(now); err != nil {
			return err
		}
		if n > 0 {
			rest(ctx, beat)
		}
	}
	w.tracker.finish()
	return nil
}
