package workload

import (
	"context"
	"maps"
	"net/netip"
	"time"
)

// join finds the network namespaces and the links of the pods that have none
// yet. The kernel's number for the namespace at the other end of a link tells
// whose it is; without /proc, a route to the pod's address alone does.
func (k *keeper) join(ctx context.Context, l links) {
	todo := k.unjoined()
	if len(todo) == 0 {
		return
	}
	var (
		byContainer map[string]int // read when needed
		routes      map[netip.Addr]int
	)
	for _, s := range todo {
		var netns string
		var found []int
		if k.proc != "" {
			if s.pid == 0 && byContainer == nil {
				var err error
				if byContainer, err = k.proc.byContainer(ctx); err != nil {
					k.log.Debug("containers of processes not read", "err", err)
				}
			}
			netns, found = k.peers(s, byContainer, l)
		}
		if netns == "" && !s.host {
			if routes == nil {
				var err error
				if routes, err = k.kernel.hostRoutes(); err != nil {
					k.log.Debug("routes not read", "err", err)
					routes = map[netip.Addr]int{}
				}
			}
			found = routed(s.addrs, routes, l)
		}
		if netns == "" && len(found) == 0 {
			continue
		}
		k.mu.Lock()
		if p := k.table.live[s.id]; p != nil {
			k.table.attach(p, netns, found)
		}
		k.mu.Unlock()
	}
}

// unjoined are the pods whose links are not known.
func (k *keeper) unjoined() []sandbox {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var todo []sandbox
	for _, p := range k.table.live {
		if !p.host && len(p.links) == 0 || p.host && p.netns == "" {
			todo = append(todo, p.sandbox)
		}
	}
	return todo
}

// peers asks the kernel for the namespace of a pod's process and for the links
// that lead there.
func (k *keeper) peers(s sandbox, byContainer map[string]int, l links) (netns string, found []int) {
	pid := s.pid
	for _, c := range s.containers {
		if pid == 0 {
			pid = byContainer[c.id]
		}
	}
	if pid == 0 {
		return "", nil
	}
	netns, err := k.proc.netns(pid)
	if err != nil {
		return "", nil
	}
	if netns == k.netns { // host network, or a process that has taken the pid of the pod's
		if !s.host {
			return "", nil
		}
		return netns, nil
	}
	peer, err := k.kernel.peer(k.proc.path(pid, "ns/net"))
	if err != nil || peer == noPeer {
		return netns, nil
	}
	for _, link := range l.byPeer[peer] {
		if k.kernel.leadsTo(link, peer) {
			found = append(found, link)
		}
	}
	return netns, found
}

// routed are the links of the routes to the addresses. A link that others share
// says nothing.
func routed(addrs []netip.Addr, routes map[netip.Addr]int, l links) (found []int) {
	seen := make(map[int]bool)
	for _, a := range addrs {
		if link, ok := routes[a]; ok && !l.shared[link] && !seen[link] {
			seen[link] = true
			found = append(found, link)
		}
	}
	return found
}

// next says when to refresh again, if nothing happens until then.
func (k *keeper) next(l links, now time.Time) time.Duration {
	if k.runtime == nil {
		if k.cri == "off" {
			return withEvents
		}
		return max(minInterval, time.Until(k.redialAt))
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	present := make(map[int]bool)
	incomplete := false
	for _, peers := range l.byPeer {
		for _, link := range peers {
			present[link] = true
			if k.table.byLink[link] != nil {
				continue
			}
			if _, ok := k.firstSeen[link]; !ok {
				k.firstSeen[link] = now
			}
			incomplete = incomplete || now.Sub(k.firstSeen[link]) < youth
		}
	}
	maps.DeleteFunc(k.firstSeen, func(link int, _ time.Time) bool { return !present[link] })
	youngest := youngPod
	for _, p := range k.table.live {
		age := now.Sub(p.created)
		youngest = min(youngest, age)
		if age < youth && (len(p.containers) == 0 || !p.host && len(p.links) == 0) {
			incomplete = true
		}
	}
	switch {
	case incomplete:
		return minInterval
	case k.events.Load():
		return withEvents
	case youngest < youngPod:
		return young
	default:
		return withoutEvents
	}
}
