package lookup

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// sight is a packet as the sink got it.
type sight struct {
	decoded
	At     time.Time
	Link   string
	Role   role
	Egress bool
}

// recorder is a sink that keeps what it gets.
type recorder struct {
	mu     sync.Mutex
	known  map[int32]link
	local  map[addr]struct{}
	seen   []sight
	losses [][2]int64
	ticked int64
	late   int // packets from before a tick that had passed
	ended  bool
	held   int           // what it says is pending
	last   time.Time     // when tick was called last
	gap    time.Duration // between the last two calls of tick
}

func (r *recorder) links(links []link, local map[addr]struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.local = map[int32]link{}, local
	for _, l := range links {
		r.known[l.index] = l
	}
}

func (r *recorder) packet(p *packet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.at < r.ticked-int64(unseen) {
		r.late++
	}
	l := r.known[p.link]
	r.seen = append(r.seen, sight{decoded: p.decoded(), At: time.Unix(0, p.at), Link: l.name, Role: l.role, Egress: p.egress})
}

func (r *recorder) tick(at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ticked = at
	if now := time.Now(); !r.last.IsZero() {
		r.gap, r.last = now.Sub(r.last), now
	} else {
		r.last = now
	}
}

func (r *recorder) lost(from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.losses = append(r.losses, [2]int64{from, to})
}

func (r *recorder) needs(int64) bool { return true }
func (r *recorder) skipped(int64)    {}

func (r *recorder) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

func (r *recorder) discarded() uint64 { return 1 }
func (r *recorder) malformed() uint64 { return 2 }
func (r *recorder) pending() int      { return r.held }

// tapped is a node in a box with a recorder in place of the tracker.
type tapped struct {
	*lab.Lab
	recorder
	t      *testing.T
	sensor *Sensor
	events []Event // guarded by recorder.mu
}

// tap opens a sensor in the node's namespace, and does not run it yet.
func tap(t *testing.T, cfg Config) *tapped {
	t.Helper()
	b := &tapped{Lab: lab.ForTest(t), t: t}
	b.open(cfg)
	return b
}

func (b *tapped) open(cfg Config) {
	b.t.Helper()
	if err := b.Node().Do(func() (err error) {
		b.sensor, err = Open(cfg)
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	b.sensor.newSink = func(func(Event)) sink { return &b.recorder }
}

// run runs the sensor until stop is called.
func (b *tapped) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- b.sensor.Run(ctx, func(e Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, b.sensor.Close()); err != nil {
			b.t.Errorf("run: %v", err)
		}
		if b.mu.Lock(); !b.ended {
			b.t.Error("the sink was not finished")
		}
		b.mu.Unlock()
	})
	b.t.Cleanup(stop)
	return stop
}

// wait waits until ok accepts what was seen so far.
func (b *tapped) wait(what string, ok func([]sight) bool) []sight {
	b.t.Helper()
	var seen []sight
	err := lab.Until(b.t.Context(), 10*time.Second, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if seen = slices.Clone(b.seen); !ok(seen) {
			return errors.New("not seen")
		}
		return nil
	})
	if err != nil {
		b.t.Fatalf("wait for %s: %v; seen: %d packets, links %v", what, err, len(seen), b.known)
	}
	return seen
}

func (b *tapped) service(addr netip.Addr, rules ...lab.Rule) *lab.Server {
	b.t.Helper()
	s, err := b.AddServer(rules...)
	if err != nil {
		b.t.Fatal(err)
	}
	to := s.Addr4
	if addr.Is6() {
		to = s.Addr6
	}
	if err := b.AddService(addr, lab.Random, to); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *tapped) pod(name string, nameservers ...netip.Addr) *lab.Pod {
	b.t.Helper()
	p, err := b.AddPod(lab.PodConfig{Name: name, Nameservers: nameservers})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *tapped) resolve(p *lab.Pod, r lab.Resolver, name string) {
	b.t.Helper()
	if _, err := p.Resolve(b.t.Context(), r, 1, name); err != nil {
		b.t.Fatal(err)
	}
}

// mtu sets the MTU of a link of the calling thread's namespace.
func mtu(name string, bytes int) error {
	l, err := rtnl.LinkByName(name)
	if err != nil {
		return err
	}
	return rtnl.LinkSetMTU(l, bytes)
}

// sendFrame puts a frame on a link of the calling thread's namespace.
func sendFrame(name string, proto uint16, frame []byte) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := unix.SockaddrLinklayer{Protocol: proto>>8 | proto<<8, Ifindex: link.Index, Halen: 6}
	copy(to.Addr[:], "\xee\xee\xee\xee\xee\xee")
	return errors.Join(unix.Sendto(fd, frame, 0, &to), unix.Close(fd))
}

// withoutNetRaw runs fn on a thread of the namespace that has no CAP_NET_RAW and
// ends.
func withoutNetRaw(n *lab.Namespace, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is spoilt
		done <- func() error {
			if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
				return err
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				return err
			}
			data[0].Effective &^= 1 << unix.CAP_NET_RAW
			if err := unix.Capset(&header, &data[0]); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}
