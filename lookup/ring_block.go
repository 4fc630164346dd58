package lookup

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// bigEndian tells the host's byte order.
var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// Offsets in a block and in a packet's header (linux/if_packet.h: struct
// tpacket_block_desc, tpacket3_hdr and, aligned to 16 bytes behind it,
// sockaddr_ll).
const (
	blockStatus  = 8
	blockPackets = 12
	blockFirst   = 16
	blockUsed    = 20 // its length in bytes
	blockLast    = 40 // when the kernel closed it: seconds, nanoseconds
	blockHeader  = 48

	packetNext    = 0
	packetSec     = 4
	packetNsec    = 8
	packetSnap    = 12
	packetData    = 24
	packetIfindex = 48 + 4
	packetType    = 48 + 10
	packetHeader  = 48 + 20
)

// frame is one packet of a block, as it lies in the ring.
type frame struct {
	at     int64 // nanoseconds since 1970
	link   int32
	egress bool
	data   []byte // from the network header on
}

// blockTime is when the kernel closed a block: no packet in it is newer, and none
// in the next one is older.
func blockTime(block []byte) int64 {
	return int64(binary.NativeEndian.Uint32(block[blockLast:]))*1e9 + int64(binary.NativeEndian.Uint32(block[blockLast+4:]))
}

// walk goes over the packets of a block. It believes no offset.
type walk struct {
	rest []byte // from the next packet's header to the block's end
	left uint32
}

func walkBlock(block []byte) walk {
	if len(block) < blockHeader {
		return walk{}
	}
	first := binary.NativeEndian.Uint32(block[blockFirst:])
	if first < blockHeader || uint64(first) > uint64(len(block)) {
		return walk{}
	}
	return walk{rest: block[first:], left: binary.NativeEndian.Uint32(block[blockPackets:])}
}

// next fills f with the next packet and tells whether there was one. What f
// points to lies in the block.
func (w *walk) next(f *frame) bool {
	if w.left == 0 || len(w.rest) < packetHeader {
		return false
	}
	h := (*[packetHeader]byte)(w.rest)
	data, snap := uint32(binary.NativeEndian.Uint16(h[packetData:])), binary.NativeEndian.Uint32(h[packetSnap:])
	if data < packetHeader || uint64(data)+uint64(snap) > uint64(len(w.rest)) {
		w.left = 0
		return false
	}
	f.at = int64(binary.NativeEndian.Uint32(h[packetSec:]))*1e9 + int64(binary.NativeEndian.Uint32(h[packetNsec:]))
	f.link = int32(binary.NativeEndian.Uint32(h[packetIfindex:]))
	f.egress = h[packetType] == unix.PACKET_OUTGOING
	f.data = w.rest[data : data+snap : data+snap]
	w.left--
	switch next := binary.NativeEndian.Uint32(h[packetNext:]); {
	case next == 0: // the block's last
		w.left = 0
	case next < packetHeader || uint64(next) > uint64(len(w.rest)):
		w.left = 0
	default:
		w.rest = w.rest[next:]
	}
	return true
}

// warm reads a byte of each cache line of a block that is in use, one right
// after the other, so that the processor fetches many at a time. The packets
// that are then taken one by one would wait for each. What it returns is of no use
// but to keep the compiler from leaving the reads out.
func warm(block []byte) (sum byte) {
	if len(block) < blockHeader {
		return 0
	}
	const line = 64
	used := min(uint(binary.NativeEndian.Uint32(block[blockUsed:])), uint(len(block)))
	for i := uint(0); i < used; i += line {
		sum ^= block[i]
	}
	return sum
}
