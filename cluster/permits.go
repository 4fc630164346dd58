package cluster

import (
	"context"
	"sync"
	"time"
)

// offerTime is how long a slot waits for the caller that asked for it.
const offerTime = time.Minute

// Permits gets slots for a caller that must not wait for them, such as a pass
// that has more to do: it asks, goes on, and asks again when it is told to. It has
// one slot at a time, however many restarts are wanted.
type Permits struct {
	slots *Slots
	ready func()
	asked chan struct{}

	mu    sync.Mutex
	offer *offer // a slot that is ours and that nobody has taken up; nil: none
}

// offer is a slot for whoever asks next.
type offer struct {
	release func()
	ended   chan struct{} // closed when the restart has
}

// NewPermits gives permits that come of slots while Run runs. ready is called
// when there is one; it must not block.
func NewPermits(slots *Slots, ready func()) *Permits {
	return &Permits{slots: slots, ready: ready, asked: make(chan struct{}, 1)}
}

// Permit tells whether a restart may begin now. If so, release must be called
// when it has ended; it is that of Slots.Acquire with the ctx of Run. Otherwise
// why says what is waited for.
func (p *Permits) Permit() (release func(), ok bool, why string) {
	if o := p.take(); o != nil {
		return sync.OnceFunc(func() {
			defer close(o.ended)
			o.release()
		}), true, ""
	}
	select {
	case p.asked <- struct{}{}:
	default: // that is known
	}
	return nil, false, p.slots.waitsFor()
}

// take takes the offer, if there is one.
func (p *Permits) take() *offer {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.offer
	p.offer = nil
	return o
}

// Run gets slots for those who ask until ctx ends.
func (p *Permits) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.asked:
		}
		release, err := p.slots.Acquire(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		o := &offer{release: release, ended: make(chan struct{})}
		p.mu.Lock()
		p.offer = o
		p.mu.Unlock()
		select {
		case <-p.asked: // by those whom this is for
		default:
		}
		p.ready()
		timer := time.NewTimer(offerTime)
		select {
		case <-o.ended:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if p.take() != nil { // nobody wants it any more
			release()
			continue
		}
		select {
		case <-o.ended:
		case <-ctx.Done():
			return nil
		}
	}
}
