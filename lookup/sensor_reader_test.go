package lookup

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var epoch = time.Unix(1_795_000_000, 0)

// deaf is a sink that does nothing.
type deaf struct {
	packets int
	needy   bool
	until   int64 // packets were skipped
}

func (n *deaf) links([]link, map[addr]struct{}) {}
func (n *deaf) packet(*packet)                  { n.packets++ }
func (n *deaf) tick(int64)                      {}
func (n *deaf) lost(int64, int64)               {}
func (n *deaf) needs(int64) bool                { return n.needy }
func (n *deaf) skipped(until int64)             { n.until = until }
func (n *deaf) finish()                         {}
func (n *deaf) discarded() uint64               { return 0 }
func (n *deaf) malformed() uint64               { return 0 }
func (n *deaf) pending() int                    { return 0 }

// testReader reads from a ring in plain memory. It knows the links 2, 3 and,
// as ignored, 4.
func testReader(t testing.TB, to sink, memory []byte) *reader {
	t.Helper()
	r := &reader{
		Sensor: &Sensor{cfg: Config{}.withDefaults(), ring: &ring{memory: memory}, far: &ring{memory: make([]byte, 2*blockBytes)}}, sink: to, beat: slowestBeat,
		view: testView(func() (picture, error) {
			return picture{links: []link{{2, "cali1", client}, {3, "eth0", uplink}, {4, "docker0", ignored}}}, nil
		}),
	}
	r.view.refresh(epoch)
	return r
}

func TestDrain(t *testing.T) {
	q := samples()["question4"]
	first := makeBlock(frame{link: 2, data: q}, frame{link: 4, data: q}, frame{link: 3, egress: true, data: samples()["ARP"]})
	second := makeBlock(frame{link: 3, egress: true, data: q})
	kernels := makeBlock(frame{link: 2, data: q})
	binary.NativeEndian.PutUint32(kernels[blockStatus:], unix.TP_STATUS_KERNEL)
	var n deaf
	r := testReader(t, &n, append(append(first, second...), kernels...))
	if got := r.drain(r.ring, epoch); got != 2 || n.packets != 2 || r.Counters().Packets != 4 {
		t.Errorf("%d blocks, %d packets handed over of %d; want 2, 2 of 4", got, n.packets, r.Counters().Packets)
	}
	if got := r.drain(r.ring, epoch); got != 0 || n.packets != 2 {
		t.Errorf("again: %d blocks, %d packets", got, n.packets)
	}
	// The kernel goes on with the third block, then with the first.
	for _, i := range []int{2, 0} {
		binary.NativeEndian.PutUint32(r.ring.memory[i*blockBytes+blockStatus:], unix.TP_STATUS_USER|unix.TP_STATUS_BLK_TMO|unix.TP_STATUS_LOSING)
	}
	if got := r.drain(r.ring, epoch); got != 2 || n.packets != 4 {
		t.Errorf("then: %d blocks, %d packets", got, n.packets)
	}
}

func TestNextBeat(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		beat         time.Duration
		used, blocks int
		want         time.Duration
	}{
		{100 * ms, 0, 64, 100 * ms},
		{100 * ms, 40, 64, 100 * ms},
		{100 * ms, 41, 64, 50 * ms},
		{50 * ms, 16, 64, 50 * ms},
		{50 * ms, 15, 64, 100 * ms},
		{5 * ms, 64, 64, 5 * ms},
		{100 * ms, 0, 2, 100 * ms},
		{100 * ms, 2, 2, 50 * ms},
		{25 * ms, 0, 2, 50 * ms},
	}
	for _, tc := range tests {
		if got := nextBeat(tc.beat, tc.used, tc.blocks); got != tc.want {
			t.Errorf("%v, %d of %d blocks: %v, want %v", tc.beat, tc.used, tc.blocks, got, tc.want)
		}
	}
}

// testView reads links by a function, and is always told that they changed.
func testView(read func() (picture, error)) view {
	return view{
		changed: func() (bool, error) { return true, nil }, readLinks: read, known: map[int32]known{},
		tell: func([]link, map[addr]struct{}) {}, emit: func(Event) {},
	}
}

func TestView(t *testing.T) {
	pod, other := link{2, "cali1", client}, link{3, "cali2", client}
	var (
		now    = epoch
		kernel = picture{links: []link{pod}, local: map[addr]struct{}{addrOf(router4): {}}}
		failed error
		reads  int
		told   [][]link
		events []Event
	)
	v := testView(func() (picture, error) { reads++; return kernel, failed })
	v.configured = true
	v.tell = func(l []link, _ map[addr]struct{}) { told = append(told, l) }
	v.emit = func(e Event) { events = append(events, e) }
	step := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		if err := v.follow(now); err != nil {
			t.Fatal(err)
		}
	}
	wantTold := func(want ...[]link) {
		t.Helper()
		if diff := cmp.Diff(want, told, cmp.AllowUnexported(link{})); diff != "" {
			t.Errorf("told: %s", diff)
		}
		told = nil
	}
	step(0)
	wantTold([]link{pod})
	step(time.Second)
	wantTold()

	// A link whose packet comes before the message about it.
	kernel.links = []link{pod, other}
	if got := v.role(other.index, now); got != client {
		t.Errorf("role of a new link: %v", got)
	}
	wantTold([]link{pod, other})
	reads = 0
	for range 3 {
		if got := v.role(99, now); got != ignored {
			t.Errorf("role of no link: %v", got)
		}
	}
	if reads != 1 {
		t.Errorf("links were read %d times for the packets of one link that is gone", reads)
	}
	wantTold()

	// One that is gone is known for a moment.
	kernel.links = []link{pod}
	step(time.Second)
	wantTold()
	if got := v.role(other.index, now); got != client {
		t.Errorf("role of a link that has just gone: %v", got)
	}
	step(linkGrace + time.Second)
	wantTold([]link{pod})

	// A new address, and links that can't be read.
	kernel.local = map[addr]struct{}{addrOf(router4): {}, addrOf(router6): {}}
	step(time.Second)
	wantTold([]link{pod})
	failed = errors.New("refused")
	step(time.Second)
	step(retryLinks / 2)
	if got := v.role(pod.index, now); got != client {
		t.Errorf("role while links can't be read: %v", got)
	}
	failed = nil
	kernel.links = []link{{2, "cali1", ignored}}
	step(retryLinks)
	wantTold([]link{{2, "cali1", ignored}})
	kernel.links = []link{pod}
	step(time.Second)
	var got []string
	for _, e := range events {
		b := e.(Blindness)
		got = append(got, string(b.Reason)+map[bool]string{true: " begins", false: " ends"}[b.Blind])
	}
	if diff := cmp.Diff([]string{"unreadable begins", "unreadable ends", "no_links begins", "no_links ends"}, got); diff != "" {
		t.Error(diff)
	}
}
