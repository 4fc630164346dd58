package lookup

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// linkGrace is how long a link is kept that is gone: its last packets are
	// still in the ring.
	linkGrace = 2 * time.Second
	// retryLinks is how soon links that could not be read are read again.
	retryLinks = time.Second
	// linkShare bounds what reading links costs: no more than one part in so
	// many of the time.
	linkShare = 20
)

// view is the picture of the links that the reader goes by. It tells the sink
// of each change, and what it cannot see.
type view struct {
	changed    func() (bool, error)
	readLinks  func() (picture, error)
	configured bool // interfaces are named
	tell       func([]link, map[addr]struct{})
	emit       func(Event)

	known  map[int32]known
	cache  [256]cached // of known, by the lowest bits of the index
	local  map[addr]struct{}
	stale  bool      // the kernel told of a change
	notYet time.Time // when links may be read next
	forget time.Time // when links that are gone can be forgotten; zero when none is

	unreadable, none bool
}

// known is a link that exists, or existed until a moment ago. One that never
// was found in the kernel's list is kept as ignored, so that it is not looked
// for again.
type known struct {
	link
	gone time.Time
}

// cached is a link's role at hand: it is asked for with each packet. No link
// has the index 0.
type cached struct {
	index int32
	role  role
}

func newView(w *linkWatcher, configured bool, tell func([]link, map[addr]struct{}), emit func(Event)) view {
	return view{changed: w.changed, readLinks: w.read, configured: configured, tell: tell, emit: emit, known: map[int32]known{}, stale: true}
}

// follow reads the links when they have changed.
func (v *view) follow(now time.Time) error {
	changed, err := v.changed()
	if err != nil {
		return err
	}
	v.stale = v.stale || changed || !v.forget.IsZero() && now.After(v.forget)
	if v.stale && !now.Before(v.notYet) {
		v.refresh(now)
	}
	return nil
}

// role is the role of a link. One that is not known yet is looked for first.
func (v *view) role(index int32, now time.Time) role {
	c := &v.cache[uint8(index)]
	if c.index != index {
		r := v.find(index, now)
		*c = cached{index, r} // after find, which empties the cache
	}
	return c.role
}

func (v *view) find(index int32, now time.Time) role {
	if k, ok := v.known[index]; ok {
		return k.role
	}
	v.refresh(now)
	k, ok := v.known[index]
	if !ok {
		k = known{link: link{index: index}, gone: now}
		v.known[index] = k
	}
	return k.role
}

// refresh reads the links and tells of them when something is new.
func (v *view) refresh(now time.Time) {
	begin := time.Now()
	p, err := v.readLinks()
	v.notYet = now.Add(linkShare * time.Since(begin))
	if err != nil {
		v.notYet = now.Add(retryLinks)
		v.blindness(now, Unreadable, &v.unreadable, err.Error(),
			"let nodestead open netlink sockets: a seccomp profile or security module may forbid them")
		return
	}
	v.blindness(now, Unreadable, &v.unreadable, "", "")
	v.stale = false
	if v.merge(p, now) {
		v.tell(v.links(), v.local)
	}
	evidence := ""
	if v.configured && !slices.ContainsFunc(p.links, func(l link) bool { return l.role != ignored }) {
		evidence = fmt.Sprintf("none of the node's %d links has a configured name and carries packets of its own", len(p.links))
	}
	v.blindness(now, NoLinks, &v.none, evidence, "correct names.lookups.interfaces: it takes names and patterns of the node's links")
}

// merge takes a new picture over and tells whether it differs from the one
// before, other than in links that have just gone.
func (v *view) merge(p picture, now time.Time) (changed bool) {
	there := make(map[int32]bool, len(p.links))
	for _, l := range p.links {
		there[l.index] = true
		if k, ok := v.known[l.index]; !ok || k != (known{link: l}) {
			v.known[l.index] = known{link: l}
			changed = true
		}
	}
	v.cache, v.forget = [256]cached{}, time.Time{}
	for index, k := range v.known {
		switch {
		case there[index]:
			continue
		case k.gone.IsZero():
			k.gone = now
			v.known[index] = k
		case now.Sub(k.gone) > linkGrace:
			delete(v.known, index)
			changed = true
			continue
		}
		if until := k.gone.Add(linkGrace); until.After(v.forget) {
			v.forget = until
		}
	}
	if v.local == nil || !maps.Equal(v.local, p.local) {
		v.local = p.local
		changed = true
	}
	return changed
}

// links are all known links by index.
func (v *view) links() []link {
	links := make([]link, 0, len(v.known))
	for _, index := range slices.Sorted(maps.Keys(v.known)) {
		links = append(links, v.known[index].link)
	}
	return links
}

// blindness reports a change. It is blind when there is evidence for it.
func (v *view) blindness(now time.Time, reason Reason, was *bool, evidence, remedy string) {
	if blind := evidence != ""; blind != *was {
		*was = blind
		b := Blindness{Time: now, Reason: reason, Blind: blind}
		if blind {
			b.Evidence, b.Remedy = evidence, remedy
		}
		v.emit(b)
	}
}
