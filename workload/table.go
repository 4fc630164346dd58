package workload

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	// remember is how long a pod that ended still answers for its past.
	remember = 2 * time.Minute
	// maxEnded bounds them, however fast pods come and go.
	maxEnded = 1024
)

// sandbox is what a runtime says of one pod, or of one container of Docker that
// belongs to none.
type sandbox struct {
	id                   string
	namespace, name, uid string
	addrs                []netip.Addr
	host                 bool // in the node's own network
	pid                  int  // of a process in its network namespace; 0 unknown
	created              time.Time
	containers           []container

	nameservers []netip.Addr // of its resolv.conf, where the runtime tells
	search      []string
}

type container struct{ id, name string }

// pod is a sandbox with what the kernel says of it.
type pod struct {
	sandbox
	netns string // "net:[4026532212]"; "" unknown
	links []int  // the node's ends of its links
	until time.Time
}

// workload is what is true of any socket of the pod.
func (p *pod) workload() Workload {
	w := Workload{Namespace: p.namespace, Pod: p.name, UID: p.uid, Host: p.host, Nameservers: p.nameservers, Search: p.search}
	if len(p.containers) > 0 && !slices.ContainsFunc(p.containers, func(c container) bool { return c.name != p.containers[0].name }) {
		w.Container = p.containers[0].name
	}
	return w
}

// table knows which pod had which address and link, when. It does no I/O and
// reads no clock. It is not safe for concurrent use.
type table struct {
	live     map[string]*pod // by sandbox
	ended    []*pod          // oldest first
	byAddr   map[netip.Addr][]*pod
	byLink   map[int]*pod
	byNetns  map[string]*pod
	byHolder map[string]*pod // by the id of a container or sandbox

	local map[netip.Addr]bool // the node's own addresses
	// shared are the node's links that lead to no single network namespace: a
	// bridge, the uplink, a tunnel.
	shared   map[int]bool
	loopback int
}

func newTable() *table {
	return &table{
		live:     make(map[string]*pod),
		byAddr:   make(map[netip.Addr][]*pod),
		byLink:   make(map[int]*pod),
		byNetns:  make(map[string]*pod),
		byHolder: make(map[string]*pod),
	}
}

// at returns the pod that had the address on the link at that time. A link with
// one pod behind it is the best witness: the kernel counts its indices up, so an
// address is given to the next pod at once, an index is not.
func (t *table) at(link int, a netip.Addr, when time.Time) *pod {
	if p := t.byLink[link]; p != nil && link != 0 {
		return p
	}
	var best *pod
	for _, p := range t.byAddr[a] {
		switch {
		case p.created.After(when), !p.until.IsZero() && p.until.Before(when):
		case link != 0 && len(p.links) > 0 && !t.shared[link]: // another pod's
		case best == nil || p.created.After(best.created):
			best = p
		}
	}
	return best
}

// isHost tells whether the address on the link is the node's own.
func (t *table) isHost(link int, a netip.Addr) bool {
	return link != 0 && link == t.loopback || t.local[a] && (link == 0 || t.shared[link])
}

// alive tells whether a pod of this name is there; without a pod's name, a
// container of this name.
func (t *table) alive(w Workload) bool {
	for _, p := range t.live {
		if p.namespace == w.Namespace && p.name == w.Pod && (w.Pod != "" || p.workload().Container == w.Container) {
			return true
		}
	}
	return false
}

// update takes the runtime's list of all that lives, and returns the pods that
// ended and have no successor of the same name.
func (t *table) update(list []sandbox, now time.Time) (gone []Workload) {
	listed := make(map[string]bool, len(list))
	var ended []*pod
	for _, s := range list {
		listed[s.id] = true
		p := t.live[s.id]
		if p != nil && !restarted(p.sandbox, s) {
			t.renew(p, s)
			continue
		}
		if p != nil {
			ended = append(ended, t.end(p, now))
			s.created = now
		}
		if s.created.After(now) || s.created.IsZero() {
			s.created = now
		}
		t.add(&pod{sandbox: s})
	}
	for id, p := range t.live {
		if !listed[id] {
			ended = append(ended, t.end(p, now))
		}
	}
	for _, p := range ended {
		if w := p.workload(); !t.alive(w) {
			gone = append(gone, w)
		}
	}
	t.prune(now)
	return gone
}

// restarted tells whether a sandbox has begun anew under its old id, as
// containers of Docker do. What was not known before is no change.
func restarted(was, is sandbox) bool {
	return was.pid != 0 && was.pid != is.pid || len(was.addrs) > 0 && !slices.Equal(was.addrs, is.addrs)
}

func (t *table) add(p *pod) {
	t.live[p.id] = p
	t.index(p)
}

// renew takes what the runtime has learned of a pod since: new containers, and
// what was still missing when the pod was young.
func (t *table) renew(p *pod, s sandbox) {
	for _, c := range p.containers {
		delete(t.byHolder, c.id)
	}
	p.containers, p.pid = s.containers, s.pid
	p.addrs, p.host = s.addrs, s.host
	t.index(p)
}

func (t *table) index(p *pod) {
	t.byHolder[p.id] = p
	for _, c := range p.containers {
		t.byHolder[c.id] = p
	}
	if p.host {
		return // its address is the node's
	}
	for _, a := range p.addrs {
		if !slices.Contains(t.byAddr[a], p) {
			t.byAddr[a] = append(t.byAddr[a], p)
		}
	}
}

// end moves a pod from the living to the ended.
func (t *table) end(p *pod, now time.Time) *pod {
	delete(t.live, p.id)
	if p.until.IsZero() { // else its link has told already
		p.until = now
	}
	t.ended = append(t.ended, p)
	return p
}

// prune forgets what ended long ago.
func (t *table) prune(now time.Time) {
	n := max(0, len(t.ended)-maxEnded)
	for n < len(t.ended) && now.Sub(t.ended[n].until) > remember {
		n++
	}
	for _, p := range t.ended[:n] {
		t.forget(p)
	}
	t.ended = slices.Delete(t.ended, 0, n)
}

func (t *table) forget(p *pod) {
	for _, a := range p.addrs {
		t.byAddr[a] = slices.DeleteFunc(t.byAddr[a], func(q *pod) bool { return q == p })
		if len(t.byAddr[a]) == 0 {
			delete(t.byAddr, a)
		}
	}
	maps.DeleteFunc(t.byLink, func(_ int, q *pod) bool { return q == p })
	maps.DeleteFunc(t.byNetns, func(_ string, q *pod) bool { return q == p })
	maps.DeleteFunc(t.byHolder, func(_ string, q *pod) bool { return q == p })
}

// attach records what the kernel says of a pod.
func (t *table) attach(p *pod, netns string, links []int) {
	p.netns, p.links = netns, links
	if netns != "" && !p.host {
		t.byNetns[netns] = p
	}
	for _, l := range links {
		t.byLink[l] = p
	}
}

// unlinked ends the time of the pod whose last link is gone; the runtime says
// later that the pod has ended.
func (t *table) unlinked(link int, now time.Time) {
	delete(t.shared, link)
	p := t.byLink[link]
	if p == nil || !p.until.IsZero() {
		return
	}
	// The last link stays in the list, so that the address on the link of
	// another pod is not taken for this one's.
	rest := slices.DeleteFunc(slices.Clone(p.links), func(l int) bool { return l == link })
	if len(rest) == 0 {
		p.until = now
		return
	}
	p.links = rest
}
