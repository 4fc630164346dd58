package workload

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is what New needs. The zero value of a field means its default.
type Config struct {
	// HostRoot is where the node's file system is mounted; default "/".
	HostRoot string
	// CRI is "auto" (the default: the first socket at its usual places that
	// answers, else Docker's), "off", or the path of a socket, with or without
	// "unix://". The path is this process's, HostRoot is not put before it.
	CRI string
	// Proc is "auto" (the default) or "off": /proc is not read.
	Proc string
	// Log gets a line at Info when a source is found or lost; default none.
	Log *slog.Logger
	// Gone, if set, is called by Run when a pod or a container without a pod
	// has ended and no other of its name is there. It must not block. One of the
	// same name may start later: see Finder.Alive.
	Gone func(Workload)
}

// Finder answers whose an address is. Make it by New, Run it once, Close it. The
// methods that answer may be called from any goroutine, at any time.
type Finder struct {
	cri    string
	root   string
	proc   procfs // "" when it is off
	log    *slog.Logger
	gone   func(Workload)
	kernel *kernel
	netns  string // the node's own network namespace

	wake   chan struct{} // asks for a refresh
	missed atomic.Int64  // when a miss last asked for one, UnixNano
	*inspector

	mu        sync.RWMutex
	table     *table
	sockets   map[netip.AddrPort]located
	refreshed chan struct{} // closed by the next refresh
	sources   Sources

	refreshes, failures atomic.Uint64
}

// New opens the Finder's sockets in the network namespace of the calling thread,
// which must be the node's. It fails only when the kernel refuses those; every
// other source may be missing, and is looked for again.
func New(cfg Config) (*Finder, error) {
	f := &Finder{
		cri:       cmp.Or(cfg.CRI, "auto"),
		root:      cmp.Or(cfg.HostRoot, "/"),
		log:       cfg.Log,
		gone:      cfg.Gone,
		wake:      make(chan struct{}, 1),
		table:     newTable(),
		sockets:   make(map[netip.AddrPort]located),
		refreshed: make(chan struct{}),
		inspector: newInspector(),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	switch cmp.Or(cfg.Proc, "auto") {
	case "auto":
		f.proc = procfs(filepath.Join(f.root, "proc"))
	case "off":
	default:
		return nil, fmt.Errorf("proc is %q, not auto or off", cfg.Proc)
	}
	var err error
	if f.netns, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("name the network namespace: %w", err)
	}
	if f.kernel, err = openKernel(); err != nil {
		return nil, err
	}
	return f, nil
}

// Close frees the sockets. Call it after Run has returned. It waits for
// inspections that are under way, but no longer than a second for one that a
// container's file system keeps from ending.
func (f *Finder) Close() error {
	f.drain(time.Second)
	return f.kernel.close()
}

// Run keeps the cache until ctx ends. It returns nil only then.
func (f *Finder) Run(ctx context.Context) error {
	workers, ctx := errgroup.WithContext(ctx)
	workers.Go(func() error {
		defer context.AfterFunc(ctx, f.kernel.interrupt)()
		return f.watchLinks(ctx)
	})
	workers.Go(func() error { return newKeeper(f).run(ctx) })
	return workers.Wait()
}

// watchLinks asks for a refresh whenever a link comes, changes or goes.
func (f *Finder) watchLinks(ctx context.Context) error {
	for {
		events, err := f.kernel.receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		now := time.Now()
		f.mu.Lock()
		for _, e := range events {
			if e.gone {
				f.table.unlinked(e.index, now)
			}
		}
		f.mu.Unlock()
		f.poke()
	}
}

// poke asks for a refresh. It never blocks.
func (f *Finder) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// missInterval is how often misses, of which strangers can make as many as they
// like, may ask for a refresh.
const missInterval = 2 * time.Second

// miss asks for a refresh because the cache had no answer.
func (f *Finder) miss() {
	now, last := time.Now().UnixNano(), f.missed.Load()
	if now-last >= int64(missInterval) && f.missed.CompareAndSwap(last, now) {
		f.poke()
	}
}

// At returns who used the address on the node's link at that time: from the
// cache, without any I/O. A link of 0 is not known, and so is a port of 0. When
// Locate has found the process behind that socket within half a minute of that
// time, its container, name and libc are in the answer, too. At a miss it
// returns false and asks for a refresh in the background.
func (f *Finder) At(link int, client netip.AddrPort, t time.Time) (Workload, bool) {
	a := f.at(link, client, t)
	if !a.known || a.young {
		f.miss()
	}
	return a.Workload, a.known
}

// answer is what the cache says.
type answer struct {
	Workload
	known   bool
	located bool   // with the process
	young   bool   // a pod without a container yet
	sandbox string // "" when the node's own, or not known
	netns   string
}

func (f *Finder) at(link int, client netip.AddrPort, t time.Time) answer {
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	f.mu.RLock()
	defer f.mu.RUnlock()
	var a answer
	if p := f.table.at(link, client.Addr(), t); p != nil {
		a = answer{Workload: p.workload(), known: true, young: len(p.containers) == 0, sandbox: p.id, netns: p.netns}
	} else if f.table.isHost(link, client.Addr()) {
		a = answer{Workload: Workload{Host: true}, known: true, netns: f.netns}
	}
	if s, ok := f.sockets[client]; ok && s.fits(link, a, t) {
		a.Workload, a.known, a.located = s.Workload, true, true
	}
	return a
}

// Alive tells whether a pod of that name, or without one a container of that
// name, lives now as far as is known.
func (f *Finder) Alive(w Workload) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.table.alive(w)
}

// Sources are what the Finder learns from now.
type Sources struct {
	// Runtime names the container runtime, "" when none answers: then pods and
	// containers that are not known yet are not named.
	Runtime string
	// Processes tells whether /proc can be read, for Locate.
	Processes bool
}

// Sources may be called at any time, from any goroutine.
func (f *Finder) Sources() Sources {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.sources
}

// Counters are the Finder's own counts since New.
type Counters struct {
	Pods       uint64 // that live now (a gauge)
	Remembered uint64 // that ended lately and are still known (a gauge)
	Refreshes  uint64 // of the cache
	Failures   uint64 // of the container runtime to answer
	Located    uint64 // processes found by Locate
	Unlocated  uint64 // not found: the socket was closed, or /proc not readable
	Skipped    uint64 // not looked for, because there were too many to look for
}

// Counters may be called at any time, from any goroutine.
func (f *Finder) Counters() Counters {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return Counters{
		Pods: uint64(len(f.table.live)), Remembered: uint64(len(f.table.ended)),
		Refreshes: f.refreshes.Load(), Failures: f.failures.Load(),
		Located: f.found.Load(), Unlocated: f.notFound.Load(), Skipped: f.skipped.Load(),
	}
}

// awaitRefresh asks for a refresh and waits a little for it. It tells whether
// the cache was refreshed.
func (f *Finder) awaitRefresh(ctx context.Context) bool {
	f.mu.RLock()
	refreshed, sources := f.refreshed, f.sources
	f.mu.RUnlock()
	if sources.Runtime == "" {
		return false
	}
	f.miss()
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	select {
	case <-refreshed:
		return true
	case <-limit.C:
	case <-ctx.Done():
	}
	return false
}
