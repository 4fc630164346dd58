package lookup

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// farBlocks makes a ring of so many blocks in plain memory, the first of which
// the kernel has handed over, closed at these times and with a packet each.
func farBlocks(blocks int, closed ...time.Time) *ring {
	r := &ring{memory: make([]byte, blocks*blockBytes)}
	for i, at := range closed {
		b := makeBlock(frame{at: at.UnixNano(), link: 3, egress: true, data: samples()["question4"]})
		binary.NativeEndian.PutUint32(b[blockLast:], uint32(at.Unix()))
		binary.NativeEndian.PutUint32(b[blockLast+4:], uint32(at.Nanosecond()))
		copy(r.memory[i*blockBytes:], b)
	}
	return r
}

// handed is how many blocks are not the kernel's.
func (r *ring) handed() (n int) {
	for i := range r.blocks() {
		if *r.status(i) != unix.TP_STATUS_KERNEL {
			n++
		}
	}
	return n
}

func TestRelease(t *testing.T) {
	ago := func(ms ...int) (times []time.Time) {
		for _, m := range ms {
			times = append(times, epoch.Add(-time.Duration(m)*time.Millisecond))
		}
		return times
	}
	tests := []struct {
		name    string
		closed  []time.Time
		fresh   int
		needy   bool
		left    int           // blocks that are kept
		packets int           // handed over
		skipped time.Duration // before now; 0 for none
	}{
		{"young, and there is room", ago(290, 200, 100), 1, false, 3, 0, 0},
		{"the old ones go", ago(600, 310, 200, 100), 1, false, 2, 0, 310 * time.Millisecond},
		{"room for as much again", ago(90, 80, 70, 60, 50, 40), 3, false, 2, 0, 60 * time.Millisecond},
		{"at least a quarter", ago(90, 80, 70, 60, 50, 40, 30), 1, false, 6, 0, 90 * time.Millisecond},
		{"needed, so all are read", ago(600, 310, 200, 100), 1, true, 0, 4, 0},
		{"needed, but nothing has to go", ago(290, 200, 100), 1, true, 3, 0, 0},
		{"more than the ring holds at a beat", ago(70, 60, 50, 40, 30, 20, 10, 0), 8, false, 0, 0, time.Nanosecond},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			d := deaf{needy: tc.needy}
			r := testReader(t, &d, make([]byte, 2*blockBytes))
			r.far = farBlocks(8, tc.closed...)
			if blocks, packets := r.far.count(); blocks != len(tc.closed) || packets != len(tc.closed) {
				t.Fatalf("%d blocks with %d packets are new", blocks, packets)
			}
			r.release(tc.fresh, epoch)
			if got := r.far.handed(); got != tc.left || r.far.kept != tc.left || d.packets != tc.packets {
				t.Errorf("%d blocks are kept, it says %d, %d packets were handed over; want %d, %d", got, r.far.kept, d.packets, tc.left, tc.packets)
			}
			var until int64
			if tc.skipped > 0 {
				until = epoch.Add(-tc.skipped.Truncate(time.Millisecond)).UnixNano()
			}
			if d.until != until {
				t.Errorf("skipped until %v before now, want %v", epoch.Sub(time.Unix(0, d.until)), tc.skipped)
			}
			if got := r.Counters().Packets; got != uint64(len(tc.closed)-tc.left) {
				t.Errorf("%d packets are counted, want %d", got, len(tc.closed)-tc.left)
			}
		})
	}
}

// Before the others, they are read when there are few, when somebody needs them,
// and once in a while.
func TestAhead(t *testing.T) {
	many := make([]time.Time, fewPackets)
	for i := range many {
		many[i] = epoch
	}
	for _, tc := range []struct {
		name  string
		there []time.Time
		needy bool
		since time.Duration // all were read
		want  int
	}{
		{"few", many[:fewPackets-1], false, time.Second, fewPackets - 1},
		{"many", many, false, time.Second, 0},
		{"many, and needed", many, true, time.Second, fewPackets},
		{"many, for long", many, false, fullInterval, fewPackets},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := deaf{needy: tc.needy}
			r := testReader(t, &d, make([]byte, 2*blockBytes))
			r.far, r.full = farBlocks(fewPackets+1, tc.there...), epoch.Add(-tc.since)
			if fresh := r.ahead(epoch); fresh != len(tc.there) || d.packets != tc.want {
				t.Errorf("%d packets of %d were handed over, want %d", d.packets, fresh, tc.want)
			}
			// Those that are kept are no new ones.
			if fresh, _ := r.far.count(); fresh != 0 {
				t.Errorf("%d blocks are new once more", fresh)
			}
		})
	}
}
