package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rtnl "github.com/vishvananda/netlink"

	"github.com/nodestead/nodestead/internal/lab"
)

// skipping is a tracker that counts how often packets were skipped.
type skipping struct {
	*tracker
	times *atomic.Int64
}

func (s skipping) skipped(until int64) {
	s.times.Add(1)
	s.tracker.skipped(until)
}

// A lookup that is lost amid many healthy ones, whose packets beyond their
// clients' links nobody reads, has all of its own as evidence.
func TestLostInFlood(t *testing.T) {
	l := lab.ForTest(t)
	reflector, err := l.AddReflector()
	if err != nil {
		t.Fatal(err)
	}
	var rules []lab.Rule
	const tries = 3 // on a busy machine the ring may overflow
	for i := range tries {
		rules = append(rules, lab.Rule{Name: fmt.Sprintf("lost%d.test.", i), Type: uint16(AAAA), Times: 1, Drop: true})
	}
	server, err := l.AddServer(append(rules, anyAddress)...)
	if err != nil {
		t.Fatal(err)
	}
	flooded := netip.MustParseAddr("10.96.0.11")
	if err := errors.Join(l.AddService(flooded, lab.Random, reflector.Addr4), l.AddService(service4, lab.Random, server.Addr4)); err != nil {
		t.Fatal(err)
	}
	load, err := l.AddLoad()
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.AddPod(lab.PodConfig{Name: "client", Nameservers: []netip.Addr{service4}})
	if err != nil {
		t.Fatal(err)
	}
	var s *Sensor
	if err := l.Node().Do(func() (err error) { s, err = Open(Config{}); return err }); err != nil {
		t.Fatal(err)
	}
	var skips atomic.Int64
	s.newSink = func(emit func(Event)) sink {
		return skipping{newTracker(trackerConfig{}, emit), &skips}
	}
	var mu sync.Mutex
	lookups := map[string]Lookup{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Run(ctx, func(e Event) {
			if l, ok := e.(Lookup); ok {
				mu.Lock()
				defer mu.Unlock()
				lookups[l.Name] = l
			}
		})
	}()
	defer func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	}()
	// one says why it proves nothing: packets were lost, or all of them were read, because the
	// flood's own lookups have to wait for their answers.
	one := func(name string) (nothing string) {
		before, skipped := s.Counters(), skips.Load()
		flood := make(chan error, 1)
		go func() { _, err := load.Lookups(ctx, flooded, 10000, 4*time.Second); flood <- err }()
		if err := lab.Until(ctx, 3*time.Second, func() error {
			if skips.Load() < skipped+3 {
				return errors.New("nothing was skipped")
			}
			return nil
		}); err != nil {
			nothing = err.Error()
		}
		if _, err := p.Resolve(ctx, lab.MuslStatic, 1, name); err != nil {
			t.Error(err)
		}
		if err := <-flood; err != nil {
			t.Error(err)
		}
		var got Lookup
		if err := lab.Until(ctx, 10*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			var ok bool
			if got, ok = lookups[name]; !ok {
				return errors.New("not reported")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if n := s.Counters().Lost - before.Lost; n > 0 {
			return fmt.Sprintf("%d packets were lost", n)
		}
		if !got.TimedOut || got.Uncertain || len(got.Asked) != 2 || len(got.Left) != 2 || len(got.Entered) != 1 || len(got.Backends) != 1 {
			t.Errorf("%+v", got)
		}
		return nothing
	}
	for i := range tries {
		nothing := one(fmt.Sprintf("lost%d.test.", i))
		if nothing == "" {
			return
		}
		t.Logf("it proves nothing: %s", nothing)
	}
	t.Errorf("nothing was proved: %+v", s.Counters())
}

// With more addresses than a filter takes all packets go into one ring, and when
// there are fewer, into both again.
func TestManyAddresses(t *testing.T) {
	b := tap(t, Config{})
	b.service(service4, lab.Rule{Name: "*", Drop: true})
	p := b.pod("client", service4)
	r := newReader(b.sensor, func(Event) {})
	defer func() {
		if err := b.sensor.Close(); err != nil {
			t.Error(err)
		}
	}()
	// The pod's question passes its link, and leaves on the uplink.
	ask := func() (ahead, rest int) {
		t.Helper()
		if err := r.read(time.Now()); err != nil {
			t.Fatal(err)
		}
		err := p.Do(func() error {
			c, err := net.Dial("udp4", netip.AddrPortFrom(service4, 53).String())
			if err != nil {
				return err
			}
			_, err = c.Write(queryBytes)
			return errors.Join(err, c.Close())
		})
		if err != nil {
			t.Fatal(err)
		}
		err = lab.Until(t.Context(), 5*time.Second, func() error {
			_, n := b.sensor.far.count()
			_, m := b.sensor.ring.count()
			ahead, rest = ahead+n, rest+m
			if ahead+rest < 2 {
				return fmt.Errorf("%d and %d packets", ahead, rest)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return ahead, rest
	}
	addresses := func(change func(rtnl.Link, *rtnl.Addr) error) {
		t.Helper()
		err := b.Node().Do(func() error {
			lo, err := rtnl.LinkByName("lo")
			if err != nil {
				return err
			}
			for i := range maxOwn {
				a := rtnl.NewIPNet([]byte{192, 0, 2, byte(i)})
				if err := change(lo, &rtnl.Addr{IPNet: a}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r.view.notYet = time.Time{}
	}
	for _, step := range []struct {
		name   string
		change func(rtnl.Link, *rtnl.Addr) error
		far    int
	}{
		{"at first", func(rtnl.Link, *rtnl.Addr) error { return nil }, 1},
		{"too many addresses", rtnl.AddrAdd, 0},
		{"fewer again", rtnl.AddrDel, 1},
	} {
		addresses(step.change)
		if far, rest := ask(); far != step.far || far+rest != 2 {
			t.Errorf("%s: %d packets are in the far ring, %d in the other; want %d of 2", step.name, far, rest, step.far)
		}
	}
}
