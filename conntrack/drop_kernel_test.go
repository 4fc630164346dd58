package conntrack

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// What was dropped is in the time that is told, also where the sensor stood still
// before it read the statistics.
func TestDropIsInItsTime(t *testing.T) {
	b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer})
	b.service(other4, lab.Alternate)
	p := b.pod("client")
	b.open(Config{})
	defer func() {
		if err := b.sensor.Close(); err != nil {
			t.Error(err)
		}
	}()
	w := newWatch(b.sensor, b.found)
	if err := w.statistics(time.Now()); err != nil {
		t.Fatal(err)
	}
	b.hold(4)
	before := time.Now()
	// Two questions to each nameserver, as musl sends them.
	if err := p.Do(func() error {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		for _, to := range []netip.Addr{service4, other4, service4, other4} {
			_, werr := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, 53))
			err = errors.Join(err, werr)
		}
		return errors.Join(err, c.Close())
	}); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), 5*time.Second, func() error {
		if b.statistics().Drop == w.last.Drop {
			return errors.New("nothing was dropped")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	dropped := time.Now()
	if err := w.statistics(before); err != nil {
		t.Fatal(err)
	}
	all := only[Drop](b.findings)
	if len(all) != 1 || all[0].Clash == 0 || all[0].From.After(before) || all[0].To.Before(dropped) {
		t.Errorf("dropped between %v and %v: %+v", before, dropped, b.findings)
	}
}
