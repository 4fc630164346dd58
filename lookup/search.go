package lookup

import "bytes"

const (
	maxSearches = 8 // that a client has open at once
	allSearches = 2048
	maxSteps    = 8   // names of a search that are kept
	searchName  = 128 // octets of a name that takes part in a search
	searchIdle  = 6e9
)

// search is a name that a client looks for with one suffix of its search list
// after the other.
type search struct {
	used  int64
	steps [maxSteps]searchStep
	count uint8 // steps taken
	// credited: a name that exists was found, what it cost is counted.
	credited bool
	lookups  int // of the steps before the latest
}

// searchStep is one name.
type searchStep struct {
	hash    uint32
	length  uint8
	a, aaaa result
	others  uint8 // lookups of other types
	failed  bool  // one came to nothing
	found   bool  // one came to something
	name    [searchName]byte
}

func (s *searchStep) lookups() int {
	n := int(s.others)
	if s.a != resultNone {
		n++
	}
	if s.aaaa != resultNone {
		n++
	}
	return n
}

// set notes a type's result; resultTimeout stands for none yet.
func (s *searchStep) set(t Type, r result) {
	switch t {
	case A:
		s.a = r
	case AAAA:
		s.aaaa = r
	}
	switch r {
	case resultNoError:
		s.found = true
	case resultTimeout:
	default:
		s.failed = true
	}
}

// open says whether a type was not asked yet in this step.
func (s *searchStep) open(t Type) bool {
	switch t {
	case A:
		return s.a == resultNone
	case AAAA:
		return s.aaaa == resultNone
	default:
		return false
	}
}

func (s *search) latest() *searchStep { return &s.steps[s.count-1] }

func (s *search) begin(name []byte, hash uint32, at int64) {
	s.used, s.count, s.credited, s.lookups = at, 1, false, 0
	s.steps[0].reset(name, hash)
}

func (s *searchStep) reset(name []byte, hash uint32) {
	s.hash, s.length, s.a, s.aaaa, s.others, s.failed, s.found = hash, uint8(len(name)), resultNone, resultNone, 0, false, false
	copy(s.name[:], name)
}

func (s *search) next(name []byte, hash uint32, at int64) {
	s.lookups += s.latest().lookups()
	s.used = at
	s.count++ // searching takes care of the limit
	s.latest().reset(name, hash)
}

// relation is how a name follows another in a search.
type relation uint8

const (
	unrelated relation = iota
	perhaps            // they differ in suffixes of which neither contains the other
	follows
)

// relate tells whether name may be what a resolver tries after before. With
// perhaps it gives a hash of both suffixes, and one of what the names share.
func relate(before, name []byte) (r relation, suffixes, base uint32) {
	n := 0
	for n < len(before) && n < len(name) && before[n] != 0 {
		end := n + 1 + int(before[n])
		if end >= len(before) || end >= len(name) || !sameName(before[n:end], name[n:end]) {
			break
		}
		n = end
	}
	if n == 0 {
		return unrelated, 0, 0
	}
	old, rest := before[n:], name[n:]
	switch {
	case len(old) <= 1 && len(rest) <= 1:
		return unrelated, 0, 0 // the same name
	case len(old) <= 1 || len(rest) <= 1:
		return follows, 0, 0 // one of them is the name as it is
	}
	// default.svc.cluster.local, then svc.cluster.local
	for tail := old[1+int(old[0]):]; len(tail) >= len(rest) && len(tail) > 1; tail = tail[1+int(tail[0]):] {
		if sameName(tail, rest) {
			return follows, 0, 0
		}
	}
	return perhaps, uint32(mix(hashName(old), hashName(rest))), uint32(hashName(before[:n]))
}

// searching notes that a lookup began: it may go on with a search, or be the
// other half of a search's latest step.
func (t *tracker) searching(c *asker, e *entry, name []byte) {
	if len(name) > searchName {
		return
	}
	for i, s := range c.search {
		if e.start-s.used > searchIdle {
			continue
		}
		latest := s.latest()
		if latest.hash == e.nameHash && latest.open(Type(e.qtype)) && sameName(latest.name[:latest.length], name) {
			t.join(c, e, i)
			return
		}
	}
	for i, s := range c.search {
		latest := s.latest()
		if e.start-s.used > searchIdle || !latest.failed || latest.found || s.count == maxSteps ||
			latest.name[0] != name[0] || latest.hash == e.nameHash {
			continue
		}
		how, rule, base := relate(latest.name[:latest.length], name)
		if how == perhaps && !t.rules.known(rule, base) || how == unrelated {
			continue
		}
		s.next(name, e.nameHash, e.start)
		t.join(c, e, i)
		return
	}
}

// join makes a lookup part of a search's latest step.
func (t *tracker) join(c *asker, e *entry, i int) {
	s := c.search[i]
	e.search, e.step = uint8(i+1), s.count-1
	s.used = e.start
	switch Type(e.qtype) {
	case A, AAAA:
		s.latest().set(Type(e.qtype), resultTimeout)
	default:
		s.latest().others++
	}
}

// searched notes how a lookup ended. One that came to nothing may begin a
// search.
func (t *tracker) searched(c *asker, e *entry) {
	s := t.searchOf(c, e)
	if s == nil {
		if e.result == resultNoError || e.result == resultTimeout || e.length > searchName {
			return
		}
		if e.result == resultNoData && e.pair != 0 {
			if p := t.store.at(e.pair); p.is(over) && p.result == resultNoError {
				return // the name exists
			}
		}
		name := t.store.name(e, &t.buf)
		i := t.freeSearch(c, e.start)
		if i < 0 {
			return
		}
		s = c.search[i]
		s.begin(name, e.nameHash, e.start)
		t.join(c, e, i)
		if e.pair != 0 {
			if p := t.store.at(e.pair); p.search == 0 && p.nameHash == e.nameHash {
				t.join(c, p, i)
				if p.is(over) {
					s.steps[0].set(Type(p.qtype), p.result)
				}
			}
		}
	}
	step := &s.steps[e.step]
	step.set(Type(e.qtype), e.result)
	s.used = max(s.used, e.time(e.ended))
	if e.result == resultNoError && e.step > 0 && !s.credited {
		s.credited = true
		t.wasted(c, e, s.lookups)
	}
}

// searchOf gives the search that a lookup belongs to, nil when it belongs to
// none or when that one's place was needed for another.
func (t *tracker) searchOf(c *asker, e *entry) *search {
	if e.search == 0 || int(e.search) > len(c.search) {
		return nil
	}
	s := c.search[e.search-1]
	if e.step >= s.count || s.steps[e.step].hash != e.nameHash {
		return nil
	}
	return s
}

// freeSearch gives the position of a search that may be begun anew, -1 for none.
func (t *tracker) freeSearch(c *asker, now int64) int {
	oldest := -1
	for i, s := range c.search {
		if now-s.used > searchIdle {
			return i
		}
		if oldest < 0 || s.used < c.search[oldest].used {
			oldest = i
		}
	}
	if len(c.search) < maxSearches && t.searches < allSearches {
		t.searches++
		c.search = append(c.search, &search{})
		return len(c.search) - 1
	}
	return oldest
}

// before gives the steps of a search before a lookup's own, and whether others
// came after it.
func (s *search) before(step uint8) (steps []Step, wentOn bool) {
	for i := range s.steps[:step] {
		st := &s.steps[i]
		steps = append(steps, Step{Name: present(bytes.Clone(st.name[:st.length])), A: st.a.outcome(), AAAA: st.aaaa.outcome()})
	}
	return steps, s.count-1 > step
}

// rules are the pairs of suffixes that were seen to follow each other with more
// than one name, as those of a search list do.
type rules struct {
	seen [256]struct{ rule, base uint32 }
	sure [256]uint32
}

// known says whether a pair of suffixes is one of a search list, and learns it.
func (r *rules) known(rule, base uint32) bool {
	i := rule % uint32(len(r.seen))
	if r.sure[i] == rule {
		return true
	}
	s := &r.seen[i]
	if s.rule == rule && s.base != base {
		r.sure[i] = rule
		return true
	}
	s.rule, s.base = rule, base
	return false
}
