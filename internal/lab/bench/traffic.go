package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// traffic makes loads in a lab, of two services with the same two backends.
type traffic struct {
	lab            *lab.Lab
	load           *lab.Load
	service, turns netip.Addr
}

func newTraffic(l *lab.Lab) (*traffic, error) {
	t := &traffic{lab: l, service: netip.MustParseAddr("10.96.0.10"), turns: netip.MustParseAddr("10.96.0.11")}
	var backends []netip.Addr
	for range 2 {
		b, err := l.AddReflector()
		if err != nil {
			return nil, err
		}
		backends = append(backends, b.Addr4)
	}
	if err := errors.Join(l.AddService(t.service, lab.Random, backends...), l.AddService(t.turns, lab.Alternate, backends...)); err != nil {
		return nil, err
	}
	// The limit of the table is the machine's: keep entries short, so that the
	// flood stays below it.
	if err := l.Node().Sysctl("net/netfilter/nf_conntrack_udp_timeout", "1"); err != nil {
		return nil, err
	}
	var err error
	t.load, err = l.AddLoad()
	return t, err
}

// lookups asks so often a second, and counts the lookups.
func (t *traffic) lookups(rate int) func(context.Context, time.Duration) (int, error) {
	return func(ctx context.Context, d time.Duration) (int, error) {
		before, err := t.load.Answered()
		if err != nil {
			return 0, err
		}
		n, err := t.load.Lookups(ctx, t.service, rate, d)
		after, err2 := t.load.Answered()
		if err := errors.Join(err, err2); err != nil {
			return 0, err
		}
		// A few may still be under way; without answers it is no load.
		if after-before < uint64(n)*19/10 {
			return 0, fmt.Errorf("%d lookups got %d answers: the machine is too busy", n, after-before)
		}
		return n, nil
	}
}

// storm makes so many collisions a second, and counts them.
func (t *traffic) storm(rate int) func(context.Context, time.Duration) (int, error) {
	return func(ctx context.Context, d time.Duration) (n int, err error) {
		h, err := t.lab.Hold(2, 0)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
		_, err = t.load.Lookups(ctx, t.turns, rate, d)
		return int(h.Full()), err
	}
}
