package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// holdPriority is after source NAT (100), so that the kernel has chosen the
	// reply tuple, and before confirmation (the end), so that no other packet
	// can see that choice. Held before source NAT, a packet still finds a free port.
	holdPriority nftables.ChainPriority = 200
	// defaultWait is how long a packet is held for others at most.
	defaultWait = 50 * time.Millisecond
	// targetPort is a service's port behind the translation where that is not
	// 53, as OpenShift has it. Packets to it are held as well.
	targetPort = 5353
)

// Holder makes packets collide. It holds UDP packets to port 53 (or targetPort)
// that leave the node over its uplink, or for a pod of a box, after they are translated and before conntrack confirms
// them, and lets those of one client (address and port) go together: so all of
// them were translated before the first was confirmed.
type Holder struct {
	lab     *Lab
	n       int
	wait    time.Duration
	times   uint64 // after so many complete groups nothing is held; 0: always
	number  uint16 // of the queue in the node's namespace
	queue   *nfqueue.Nfqueue
	cancel  context.CancelFunc
	held    chan held
	stop    chan struct{}
	wg      sync.WaitGroup
	full    atomic.Uint64
	partial atomic.Uint64
	closing sync.Once
	err     error
}

// held is one packet in the queue.
type held struct {
	id     uint32
	client netip.AddrPort
}

// group are the held packets of one client, as they came.
type group struct {
	client   netip.AddrPort
	ids      []uint32
	deadline time.Time
}

// Hold starts to hold packets until n of one client are there, or the first of
// them has waited for wait (0: 50 ms). There can be one Holder at a time.
func (l *Lab) Hold(n int, wait time.Duration) (*Holder, error) {
	return l.HoldTimes(n, wait, 0)
}

// HoldTimes is Hold until so many groups were complete; later packets pass at
// once. So the wait can be longer than any machine stands still, and does not
// delay the packet that a resolver sends again alone.
func (l *Lab) HoldTimes(n int, wait time.Duration, times int) (*Holder, error) {
	h, err := l.hold(n, wait, times)
	if err != nil {
		return nil, fmt.Errorf("hold packets: %w", err)
	}
	return h, nil
}

func (l *Lab) hold(n int, wait time.Duration, times int) (*Holder, error) {
	if n < 1 {
		return nil, fmt.Errorf("groups of %d", n)
	}
	if times < 0 {
		return nil, fmt.Errorf("%d times", times)
	}
	if wait == 0 {
		wait = defaultWait
	}
	number, err := l.takeQueue()
	if err != nil {
		return nil, err
	}
	var queue *nfqueue.Nfqueue
	err = l.node.Do(func() (err error) {
		queue, err = nfqueue.Open(&nfqueue.Config{
			NfQueue:      number,
			MaxQueueLen:  1 << 16,
			MaxPacketLen: 64, // the IP header and the ports
			Copymode:     nfqueue.NfQnlCopyPacket,
			Flags:        nfqueue.NfQaCfgFlagFailOpen,
		})
		return err
	})
	if err != nil {
		l.releaseQueue()
		return nil, fmt.Errorf("open queue: %w", err)
	}
	h := &Holder{lab: l, n: n, wait: wait, times: uint64(times), number: number, queue: queue, held: make(chan held), stop: make(chan struct{})}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.start(ctx); err != nil {
		h.cancel()
		l.releaseQueue()
		return nil, errors.Join(err, queue.Close())
	}
	h.wg.Go(h.run)
	if err := h.addRules(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if err := l.atClose(h.Close); err != nil {
		return nil, err
	}
	return h, nil
}

// takeQueue returns the number of a new queue. No number is used twice: a queue
// outlives its socket for a moment when another goroutine just then starts a
// program, as the child has all descriptors until it executes the program.
func (l *Lab) takeQueue() (uint16, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holding {
		return 0, errors.New("another Holder is open")
	}
	l.holding = true
	l.queues++
	return l.queues, nil
}

func (l *Lab) releaseQueue() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holding = false
}

// start binds to the queue and has run get every packet that comes to it.
func (h *Holder) start(ctx context.Context) error {
	if err := h.queue.Con.SetReadBuffer(16 << 20); err != nil {
		return fmt.Errorf("enlarge the queue's buffer: %w", err)
	}
	if err := h.queue.SetOption(netlink.NoENOBUFS, true); err != nil {
		return fmt.Errorf("set option of the queue: %w", err)
	}
	packet := func(a nfqueue.Attribute) int {
		if a.PacketID == nil {
			return 0
		}
		p := held{id: *a.PacketID}
		if a.Payload != nil {
			p.client = clientOf(*a.Payload)
		}
		select {
		case h.held <- p:
		case <-h.stop: // Close accepts what is in the queue
		}
		return 0
	}
	failed := func(error) int {
		if ctx.Err() != nil {
			return 1
		}
		return 0
	}
	if err := h.queue.RegisterWithErrorFunc(ctx, packet, failed); err != nil {
		return fmt.Errorf("bind to queue: %w", err)
	}
	return nil
}

// Full is the number of groups that were let go because they were complete.
func (h *Holder) Full() uint64 { return h.full.Load() }

// Partial is the number of groups that were let go because they had waited.
func (h *Holder) Partial() uint64 { return h.partial.Load() }

// run groups packets and lets them go.
func (h *Holder) run() {
	groups := make(map[netip.AddrPort]*group)
	var waiting []*group // by deadline: all wait for the same time
	timer := time.NewTimer(h.wait)
	defer timer.Stop()
	for {
		select {
		case <-h.stop:
			return
		case p := <-h.held:
			g := groups[p.client]
			if g == nil && h.times > 0 && h.full.Load() >= h.times {
				h.accept(&group{ids: []uint32{p.id}})
				continue
			}
			if g == nil {
				g = &group{client: p.client, deadline: time.Now().Add(h.wait)}
				groups[p.client] = g
				if waiting = append(waiting, g); len(waiting) == 1 {
					timer.Reset(h.wait)
				}
			}
			if g.ids = append(g.ids, p.id); len(g.ids) < h.n {
				continue
			}
			h.full.Add(1)
			delete(groups, g.client)
			h.accept(g)
		case now := <-timer.C:
			for len(waiting) > 0 && !now.Before(waiting[0].deadline) {
				g := waiting[0]
				waiting = waiting[1:]
				if len(g.ids) > 0 { // not gone already as complete
					h.partial.Add(1)
					delete(groups, g.client)
					h.accept(g)
				}
			}
			if len(waiting) > 0 {
				timer.Reset(time.Until(waiting[0].deadline))
			}
		}
	}
}

// accept lets the packets of a group go, one right after the other.
func (h *Holder) accept(g *group) {
	for _, id := range g.ids {
		// The kernel does not answer a verdict, and fails none that it got.
		_ = h.queue.SetVerdict(id, nfqueue.NfAccept)
	}
	g.ids = nil
}

// Close stops to hold packets and lets go what is held. Calls after the first
// return what the first did.
func (h *Holder) Close() error {
	h.closing.Do(func() {
		// The order matters: the kernel drops all packets in all queues of the
		// namespace when a chain loses its hook, so the queue must be empty
		// before that, and the rules gone before the queue is emptied.
		err1 := h.change(func(conn *nftables.Conn, c *nftables.Chain) { conn.FlushChain(c) })
		close(h.stop)
		h.wg.Wait()
		// Ids count from 1 up, and "up to" is meant in the sense of a signed
		// difference: this is all that is in the queue.
		err2 := h.queue.SetVerdictBatch(1<<31-1, nfqueue.NfAccept)
		err3 := h.change(func(conn *nftables.Conn, c *nftables.Chain) { conn.DelChain(c) })
		h.cancel()
		h.err = errors.Join(err1, err2, err3, h.queue.Close())
		h.lab.releaseQueue()
	})
	return h.err
}

// holdChain is where packets are held.
func (t table) holdChain() *nftables.Chain {
	return &nftables.Chain{
		Name:     "hold",
		Table:    t.Table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookPostrouting,
		Priority: new(holdPriority),
	}
}

// change runs one transaction over the chains of both families.
func (h *Holder) change(fn func(*nftables.Conn, *nftables.Chain)) error {
	return h.lab.nft(func(conn *nftables.Conn) error {
		fn(conn, tableOf(true).holdChain())
		fn(conn, tableOf(false).holdChain())
		return nil
	})
}

// addRules sends the packets to the queue: oifname UPLINK udp dport 53 queue,
// and the same for the links of a box's pods, where a cluster has its DNS servers. It does so by the target NFQUEUE of x_tables, since a kernel may lack nft's
// own "queue".
func (h *Holder) addRules() error {
	return h.change(func(conn *nftables.Conn, c *nftables.Chain) {
		conn.AddChain(c)
		uplink := make([]byte, unix.IFNAMSIZ)
		copy(uplink, Uplink)
		// Without its zeros a name is the beginning of one.
		for _, name := range [][]byte{uplink, []byte(podLinks)} {
			for _, port := range []uint16{dnsPort, targetPort} {
				exprs := []expr.Any{
					&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
					&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: name},
				}
				exprs = append(exprs, matchPort(unix.IPPROTO_UDP, port)...)
				exprs = append(exprs, nfqueueTarget(h.number))
				conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs})
			}
		}
	})
}

// nfqueueTarget is the x_tables target NFQUEUE, revision 3, with the flag that
// lets packets pass while nobody listens: struct xt_NFQ_info_v3 { __u16
// queuenum, queues_total, flags } of linux/netfilter/xt_NFQUEUE.h, padded to eight bytes.
func nfqueueTarget(queue uint16) *expr.Target {
	const bypass = 1
	info := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(info[0:], queue)
	binary.NativeEndian.PutUint16(info[2:], 1)
	binary.NativeEndian.PutUint16(info[4:], bypass)
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}

// clientOf is the source address and port of an IP packet with UDP; zero when
// it is cut short.
func clientOf(packet []byte) netip.AddrPort {
	if len(packet) == 0 {
		return netip.AddrPort{}
	}
	addr, length, header := 12, 4, int(packet[0]&0x0f)*4
	if packet[0]>>4 == 6 {
		addr, length, header = 8, 16, 40
	}
	if len(packet) < max(header, 20)+2 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice(packet[addr : addr+length])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(packet[header:]))
}
