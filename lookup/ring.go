package lookup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// defaultRingBytes: half of them hold what comes near the clients in a fifth
	// of a second of 30,000 lookups a second, half of them what passes beyond in
	// the same time, and more than that: a busy node lets the reader wait.
	defaultRingBytes = 8 << 20
	// blockBytes: the kernel hands over whole blocks, and on a quiet node one
	// for each retire interval, however little is in it. Many small blocks last
	// longer than few large ones when the reader is late.
	blockBytes = 64 << 10
	// retireMillis is after how long the kernel hands over a block that is not
	// full. Its timer first marks a block, and hands it over the next time.
	retireMillis = 50
)

// ring is a packet socket with a ring of blocks (TPACKET_V3) that it shares with
// the kernel. Nobody is woken when packets come: take has to be called.
type ring struct {
	fd     int
	memory []byte
	next   int // index of the oldest block that was not given back
	kept   int // blocks that are counted and not given back, from next on
}

// openRing opens the socket for all links of the calling thread's network
// namespace. It is bound last, so that nothing comes in before the filter and
// the ring are there.
func openRing(program []bpf.RawInstruction, size int) (*ring, error) {
	// The protocol 0 receives nothing until bind names another one.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", permission(err))
	}
	r := &ring{fd: fd}
	if err := r.prepare(program, max(size/blockBytes, 2)); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *ring) prepare(program []bpf.RawInstruction, blocks int) error {
	if err := attach(r.fd, program); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("choose version 3 of the packet ring: %w", err)
	}
	const frame = 2048 // of no meaning in version 3, but checked
	err := unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size: blockBytes, Block_nr: uint32(blocks), Frame_size: frame, Frame_nr: uint32(blocks * blockBytes / frame),
		Retire_blk_tov: retireMillis,
	})
	if err != nil {
		return fmt.Errorf("make packet ring of %d bytes: %w", blocks*blockBytes, err)
	}
	r.memory, err = unix.Mmap(r.fd, 0, blocks*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map packet ring: %w", err)
	}
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in network byte order, on any host
	protocol := uint16(all)
	if bigEndian {
		protocol = unix.ETH_P_ALL
	}
	if err := unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: protocol}); err != nil {
		return fmt.Errorf("bind packet socket: %w", permission(err))
	}
	return nil
}

// permission makes EPERM an ErrPermission.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (%w)", ErrPermission, err)
	}
	return err
}

func (r *ring) blocks() int { return len(r.memory) / blockBytes }

// take returns the oldest block that the kernel has handed over, or nil. It is
// the caller's until give.
func (r *ring) take() []byte {
	if atomic.LoadUint32(r.status(r.next))&unix.TP_STATUS_USER == 0 {
		return nil
	}
	return r.memory[r.next*blockBytes:][:blockBytes:blockBytes]
}

// give hands the block that take returned back to the kernel.
func (r *ring) give() {
	atomic.StoreUint32(r.status(r.next), unix.TP_STATUS_KERNEL)
	r.next = (r.next + 1) % r.blocks()
	r.kept = max(r.kept-1, 0)
}

// peek gives one of the blocks that are kept, counted from the oldest.
func (r *ring) peek(n int) []byte {
	return r.memory[(r.next+n)%r.blocks()*blockBytes:][:blockBytes:blockBytes]
}

// count says how many blocks the kernel handed over since the last call, and how
// many packets are in them. They are not read, and stay as they are.
func (r *ring) count() (blocks, packets int) {
	for ; r.kept < r.blocks(); r.kept++ {
		i := (r.next + r.kept) % r.blocks()
		if atomic.LoadUint32(r.status(i))&unix.TP_STATUS_USER == 0 {
			break
		}
		blocks++
		packets += int(binary.NativeEndian.Uint32(r.memory[i*blockBytes+blockPackets:]))
	}
	return blocks, packets
}

// status is the word by which kernel and reader tell each other whose a block
// is.
func (r *ring) status(block int) *uint32 {
	return (*uint32)(unsafe.Pointer(&r.memory[block*blockBytes+blockStatus]))
}

// drops is the number of packets that the kernel had no room for since the last
// call.
func (r *ring) drops() (uint32, error) {
	s, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("read statistics of packet ring: %w", err)
	}
	return s.Drops, nil
}

func (r *ring) close() error {
	var errs []error
	if r.memory != nil {
		errs = append(errs, unix.Munmap(r.memory))
		r.memory = nil
	}
	errs = append(errs, unix.Close(r.fd))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close packet ring: %w", err)
	}
	return nil
}
