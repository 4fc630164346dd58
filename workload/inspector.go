package workload

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// inspectTime bounds one look into /proc; inspectRate is how many of them
	// begin in a second: when all DNS of a node is down, a sample must do.
	inspectTime = 2 * time.Second
	inspectRate = 20
	// inspections is how many may be under way. A pod has at most one, so that
	// one that hangs in its own file system (FUSE) does not hold up the others.
	inspections = 8
	// censusFor is how long a list of all processes serves others as well.
	censusFor = 2 * time.Second
)

// inspector bounds what the looks into /proc cost.
type inspector struct {
	found, notFound, skipped atomic.Uint64

	slots chan struct{}

	beginning sync.Mutex // of what follows
	busy      map[string]chan struct{}
	second    int64
	begun     int // in that second

	counting sync.Mutex // of last, and held while it is made
	last     *census
}

func newInspector() *inspector {
	return &inspector{slots: make(chan struct{}, inspections), busy: make(map[string]chan struct{})}
}

// begin asks to look at a pod. It returns end, to be called after it, or nil
// when there are too many; or a channel that is closed when the look at this pod
// that is under way has ended.
func (i *inspector) begin(pod string) (end func(), under <-chan struct{}) {
	i.beginning.Lock()
	defer i.beginning.Unlock()
	if done, ok := i.busy[pod]; ok {
		return nil, done
	}
	if second := time.Now().Unix(); second != i.second {
		i.second, i.begun = second, 0
	}
	if i.begun >= inspectRate {
		return nil, nil
	}
	select {
	case i.slots <- struct{}{}:
	default:
		return nil, nil
	}
	i.begun++
	done := make(chan struct{})
	i.busy[pod] = done
	return func() {
		i.beginning.Lock()
		defer i.beginning.Unlock()
		delete(i.busy, pod)
		close(done)
		<-i.slots
	}, nil
}

// drain waits until nothing is under way, and lets nothing begin after that.
func (i *inspector) drain(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for range inspections {
		select {
		case i.slots <- struct{}{}:
		case <-timer.C:
			return
		}
	}
}

// census returns a list of processes that holds every one that asked at t and
// still lives: one that was made after t, or a new one.
func (i *inspector) census(ctx context.Context, p procfs, t time.Time) (*census, error) {
	i.counting.Lock()
	defer i.counting.Unlock()
	if c := i.last; c != nil && c.at.After(t) && time.Since(c.at) < censusFor {
		return c, nil
	}
	c, err := p.census(ctx)
	if err != nil {
		return nil, err
	}
	i.last = c
	return c, nil
}
