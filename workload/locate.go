package workload

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"time"
)

const (
	// locatedFor is how far from the time of its location a socket is taken for
	// the same one; keepLocated is how long the answer is kept, for lookups that
	// are reported only when they are over.
	locatedFor  = 30 * time.Second
	keepLocated = time.Minute
	maxLocated  = 4096
)

// located is what Locate found for a client's socket.
type located struct {
	Workload
	at      time.Time
	link    int
	sandbox string
}

// fits tells whether the socket that asked at t is this one. A pod that is not
// in the cache has no sandbox; then the link must be the same.
func (l located) fits(link int, a answer, t time.Time) bool {
	return t.Sub(l.at).Abs() <= locatedFor && (l.sandbox == a.sandbox || !a.known) &&
		(a.known || link == 0 || l.link == 0 || l.link == link)
}

// Locate is At, and finds the process that holds the client's UDP socket now,
// for its container, name, libc and resolv.conf. Call it while the lookup waits
// for its answer. It reads /proc, in a node with a thousand processes for some
// ten milliseconds, never for more than two seconds. When there are many to
// locate, it answers for some of them as At does.
func (f *Finder) Locate(ctx context.Context, link int, client netip.AddrPort, t time.Time) (Workload, bool) {
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	ctx, cancel := context.WithTimeout(ctx, inspectTime)
	defer cancel()
	a := f.at(link, client, t)
	if !a.known && f.awaitRefresh(ctx) {
		a = f.at(link, client, t)
	}
	for !a.located && f.proc != "" && client.Port() != 0 && (a.netns != "" || link != 0) {
		end, under := f.begin(cmp.Or(a.netns, fmt.Sprintf("link %d", link)))
		if under != nil {
			select {
			case <-under: // mostly it was the other question of the same socket
				a = f.at(link, client, t)
				continue
			case <-ctx.Done():
			}
		}
		if end == nil {
			f.skipped.Add(1)
			break
		}
		found, ok := f.inspect(ctx, end, query{link: link, client: client, t: t, netns: a.netns})
		if !ok {
			f.notFound.Add(1)
			break
		}
		f.found.Add(1)
		return f.name(ctx, a, found, link, client), true
	}
	return a.Workload, a.known
}

// query is what inspect looks for.
type query struct {
	link   int
	client netip.AddrPort
	t      time.Time
	netns  string // "": that at the other end of the link
}

// process is what /proc says of the processes that hold a socket: what all of
// them have in common.
type process struct {
	Workload
	netns      string
	containers []string
}

// inspect looks into /proc. What a container's file system keeps from ending is
// left behind when ctx ends, with what was found until then.
func (f *Finder) inspect(ctx context.Context, end func(), q query) (found process, ok bool) {
	results := make(chan process, 2)
	go func() {
		defer end()
		defer close(results)
		f.look(ctx, q, results)
	}()
	for {
		select {
		case p, more := <-results:
			if !more {
				return found, ok
			}
			found, ok = p, true
		case <-ctx.Done():
			return found, ok
		}
	}
}

// look sends what it finds: first what only the kernel was asked for, then what
// was read in the container.
func (f *Finder) look(ctx context.Context, q query, results chan<- process) {
	all, err := f.census(ctx, f.proc, q.t)
	if err != nil {
		f.log.Debug("processes not listed", "err", err)
		return
	}
	if q.netns == "" {
		q.netns = f.behind(q.link, all)
	}
	pids := all.pids[q.netns]
	var inodes []uint64
	for _, pid := range pids[:min(len(pids), 3)] { // any of them; one may just have ended
		if inodes, err = f.proc.udp(pid, q.client); err == nil {
			break
		}
	}
	if len(inodes) == 0 {
		return
	}
	holders := f.proc.holders(ctx, pids, inodes)
	if len(holders) == 0 {
		return
	}
	p := f.process(holders[0])
	for _, pid := range holders[1:] {
		p = p.common(f.process(pid))
	}
	p.netns = q.netns
	results <- p
	if text, err := f.proc.containerFile(holders[0], "etc/resolv.conf"); err == nil {
		p.Nameservers, p.Search = parseResolvConf(text)
		results <- p
	}
}

// behind is the network namespace at the other end of a link; "" when no
// process is in it.
func (f *Finder) behind(link int, all *census) string {
	l, err := f.kernel.handle.LinkByIndex(link)
	if err != nil || l.Attrs().NetNsID == noPeer {
		return ""
	}
	for netns, pids := range all.pids {
		if peer, err := f.kernel.peer(f.proc.path(pids[0], "ns/net")); err == nil && peer == l.Attrs().NetNsID {
			return netns
		}
	}
	return ""
}

func (f *Finder) process(pid int) process {
	return process{
		Workload:   Workload{Process: f.proc.comm(pid), Libc: f.proc.libc(pid)},
		containers: f.proc.containers(pid),
	}
}

// common keeps what is true of both.
func (p process) common(q process) process {
	if p.Process != q.Process {
		p.Process = ""
	}
	if p.Libc != q.Libc {
		p.Libc = ""
	}
	n := 0
	for n < min(len(p.containers), len(q.containers)) && p.containers[n] == q.containers[n] {
		n++
	}
	p.containers = p.containers[:n]
	return p
}

// name puts a name to the process's container, and remembers the answer.
func (f *Finder) name(ctx context.Context, a answer, p process, link int, client netip.AddrPort) Workload {
	w, sandbox, ok := f.byContainer(p)
	if !ok && len(p.containers) > 0 && f.awaitRefresh(ctx) { // the container is new
		w, sandbox, ok = f.byContainer(p)
	}
	if !ok {
		w, sandbox = a.Workload, a.sandbox
		if len(p.containers) > 0 {
			w.Container = "" // not one that the runtime has told of
		}
	}
	w.Host = p.netns == f.netns
	w.Process, w.Libc = p.Process, p.Libc
	if p.Nameservers != nil || p.Search != nil { // as the container has them now
		w.Nameservers, w.Search = p.Nameservers, p.Search
	}
	if w.Host {
		sandbox = a.sandbox // At finds the node, not the pod
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sockets) < maxLocated { // old ones go at a refresh
		f.sockets[client] = located{Workload: w, at: time.Now(), link: link, sandbox: sandbox}
	}
	return w
}

// byContainer finds the pod by its process's cgroup, or by its network.
func (f *Finder) byContainer(p process) (w Workload, sandbox string, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, id := range p.containers { // outermost first: docker in docker is its pod's
		pod := f.table.byHolder[id]
		if pod == nil {
			continue
		}
		w = pod.workload()
		w.Container = "" // of a pod without containers yet
		for _, c := range pod.containers {
			if c.id == id {
				w.Container = c.name
			}
		}
		return w, pod.id, true
	}
	if pod := f.table.byNetns[p.netns]; pod != nil && len(p.containers) == 0 {
		return pod.workload(), pod.id, true
	}
	return Workload{}, "", false
}
