package lookup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// makeBlock makes a block as the kernel does.
func makeBlock(frames ...frame) []byte {
	b := make([]byte, blockBytes)
	binary.NativeEndian.PutUint32(b[blockStatus:], unix.TP_STATUS_USER)
	binary.NativeEndian.PutUint32(b[blockPackets:], uint32(len(frames)))
	binary.NativeEndian.PutUint32(b[blockFirst:], blockHeader)
	at := blockHeader
	for i, f := range frames {
		const data = 96 // for a socket of the type SOCK_DGRAM
		h := b[at:]
		size := (data + len(f.data) + 7) &^ 7
		if i < len(frames)-1 {
			binary.NativeEndian.PutUint32(h[packetNext:], uint32(size))
		}
		binary.NativeEndian.PutUint32(h[packetSec:], uint32(f.at/1e9))
		binary.NativeEndian.PutUint32(h[packetNsec:], uint32(f.at%1e9))
		binary.NativeEndian.PutUint32(h[packetSnap:], uint32(len(f.data)))
		binary.NativeEndian.PutUint16(h[packetData:], data)
		binary.NativeEndian.PutUint32(h[packetIfindex:], uint32(f.link))
		if f.egress {
			h[packetType] = unix.PACKET_OUTGOING
		}
		copy(h[data:], f.data)
		at += size
	}
	return b
}

func walked(block []byte) (frames []frame) {
	var f frame
	for w := walkBlock(block); w.next(&f); {
		frames = append(frames, f)
	}
	return frames
}

func same(a, b []frame) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d packets, want %d", len(a), len(b))
	}
	for i := range a {
		if a[i].at != b[i].at || a[i].link != b[i].link || a[i].egress != b[i].egress || !bytes.Equal(a[i].data, b[i].data) {
			return fmt.Errorf("packet %d: %+v, want %+v", i, a[i], b[i])
		}
	}
	return nil
}

func TestWalk(t *testing.T) {
	three := []frame{
		{at: 1_795_000_000_123_456_789, link: 3, data: samples()["question4"]},
		{at: 4_294_967_295_999_999_999, link: 1 << 30, egress: true, data: samples()["answer6"]},
		{at: 1, link: 7, data: []byte{1}},
	}
	second := blockHeader + (96+len(three[0].data)+7)&^7
	put := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint32(b[at:], v) }
	}
	tests := []struct {
		name string
		lie  func(block []byte)
		want int // of the three
	}{
		{"no lie", func([]byte) {}, 3},
		{"no packets", put(blockPackets, 0), 0},
		{"fewer packets", put(blockPackets, 2), 2},
		{"more packets", put(blockPackets, 1<<32-1), 3},
		{"first in the block's header", put(blockFirst, blockHeader-1), 0},
		{"first behind the block", put(blockFirst, blockBytes+1), 0},
		{"first at the block's end", put(blockFirst, blockBytes), 0},
		{"next is itself", put(second+packetNext, 8), 2},
		{"next behind the block", put(second+packetNext, 1<<32-8), 2},
		{"next at the block's end", put(second+packetNext, uint32(blockBytes-second)), 2},
		{"too long", put(second+packetSnap, blockBytes), 1},
		{"length overflows", put(second+packetSnap, 1<<32-1), 1},
		{"data in the header", func(b []byte) { binary.NativeEndian.PutUint16(b[second+packetData:], packetHeader-1) }, 1},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b := makeBlock(three...)
			tc.lie(b)
			if err := same(walked(b), three[:tc.want]); err != nil {
				t.Error(err)
			}
		})
	}
	if got := walked(make([]byte, blockHeader-1)); got != nil {
		t.Errorf("%d packets in a block that is too short", len(got))
	}
}

// FuzzWalk: whatever is in a block, no packet reaches out of it, and the walk
// ends.
func FuzzWalk(f *testing.F) {
	f.Add(makeBlock(frame{link: 3, data: samples()["question4"]}, frame{egress: true, data: samples()["answer6"]})[:600])
	f.Fuzz(func(t *testing.T, block []byte) {
		if got := walked(block); len(got) > len(block)/packetHeader {
			t.Errorf("%d packets in %d bytes", len(got), len(block))
		}
	})
}

// BenchmarkDrain takes pairs of lookups from a full ring, as each of two links
// sees them, to a sink that does nothing.
func BenchmarkDrain(b *testing.B) {
	s := samples()
	var frames []frame
	for i := 0; len(frames) < 340; i++ {
		for _, f := range [][]byte{s["question4"], s["answer4"]} {
			frames = append(frames, frame{at: int64(i), link: int32(2 + i%2), egress: i%2 == 0, data: f})
		}
	}
	block := makeBlock(frames...)
	r := testReader(b, new(deaf), bytes.Repeat(block, 32))
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		for i := range r.ring.blocks() {
			binary.NativeEndian.PutUint32(r.ring.memory[i*blockBytes+blockStatus:], unix.TP_STATUS_USER)
		}
		if got := r.drain(r.ring, epoch); got != 32 {
			b.Fatalf("%d blocks", got)
		}
		n += 32 * len(frames)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
}
