package workload

import (
	"context"
	"maps"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// settle lets what belongs together happen before it is read: a link comes,
	// goes up and gets its route in a few milliseconds.
	settle = 50 * time.Millisecond
	// minInterval is between refreshes, and what is still incomplete is looked
	// at again after it.
	minInterval = 500 * time.Millisecond
	// youth is how long a link or pod may take to be complete; after that it is
	// taken for what it is.
	youth = 10 * time.Second
	// A runtime with events is asked rarely. One without (containerd before 1.7)
	// tells of new containers of a pod only when asked: often while pods are
	// young, as their init containers give way to others.
	withEvents, withoutEvents, young = 30 * time.Second, 10 * time.Second, 2 * time.Second
	youngPod                         = time.Minute
)

// keeper keeps the Finder's table.
type keeper struct {
	*Finder
	runtime  runtime // nil: none answers
	docker   bool    // it is Docker's API
	events   *atomic.Bool
	leave    func() // ends the watch of its events
	redialAt time.Time
	better   time.Time
	fails    int

	firstSeen map[int]time.Time // links to other namespaces that belong to no pod yet
	said      map[string]source
}

func newKeeper(f *Finder) *keeper {
	return &keeper{Finder: f, firstSeen: make(map[int]time.Time), said: make(map[string]source)}
}

func (k *keeper) run(ctx context.Context) error {
	defer k.disconnect()
	for ctx.Err() == nil {
		began := time.Now()
		next := k.refresh(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(next):
		case <-k.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(settle, minInterval-time.Since(began))):
			}
			select { // what came meanwhile is served as well
			case <-k.wake:
			default:
			}
		}
	}
	return nil
}

// refresh reads every source once, and says when to come again.
func (k *keeper) refresh(ctx context.Context) time.Duration {
	k.refreshes.Add(1)
	var sources Sources
	if k.proc != "" {
		err := k.proc.readable()
		k.say("processes", "", "the process of a lookup, its container and libc are not known; that takes the node's /proc below host_root, and the capability SYS_PTRACE", err)
		sources.Processes = err == nil
	}
	list, answered := k.list(ctx)
	if k.runtime != nil {
		sources.Runtime = k.runtime.String()
	}
	links, err := k.kernel.links()
	k.say("links", "", "pods are told by their address only", err)
	now := time.Now()
	var gone []Workload
	k.mu.Lock()
	if err == nil {
		k.table.local, k.table.shared, k.table.loopback = links.local, links.shared, links.loopback
	}
	if answered {
		gone = k.table.update(list, now)
	}
	k.mu.Unlock()
	if err == nil {
		k.join(ctx, links)
	}
	k.mu.Lock()
	close(k.refreshed)
	k.refreshed = make(chan struct{})
	k.sources = sources
	maps.DeleteFunc(k.sockets, func(_ netip.AddrPort, l located) bool { return now.Sub(l.at) > keepLocated })
	k.mu.Unlock()
	if k.gone != nil {
		for _, w := range gone {
			k.gone(w)
		}
	}
	return k.next(links, now)
}

// list asks the runtime for all that lives; false when there is none, or it
// does not answer.
func (k *keeper) list(ctx context.Context) ([]sandbox, bool) {
	k.connect(ctx)
	if k.runtime == nil {
		return nil, false
	}
	asking, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	list, err := k.runtime.sandboxes(asking)
	if ctx.Err() != nil {
		return nil, false
	}
	if err != nil {
		k.failures.Add(1)
		k.say(fromRuntime, "", "pods that start from now on are not named", err)
		k.disconnect()
		return nil, false
	}
	k.fails = 0
	k.say(fromRuntime, k.runtime.String(), "", nil)
	return list, true
}

// source is what was last logged of a source.
type source struct {
	missing bool
	is      string
}

// say logs when a source is missing or lost, and when it is there again or is
// another one. That /proc and the links are there goes without saying.
func (k *keeper) say(name, is, cost string, err error) {
	last, now := k.said[name], source{missing: err != nil, is: is}
	k.said[name] = now
	switch {
	case now.missing && !last.missing:
		k.log.Info("workload source is missing", "from", name, "cost", cost, "err", err)
	case !now.missing && now != last:
		k.log.Info("workload source is there", "from", name, "is", is)
	}
}
