package incident

import "time"

// Throttle lets one value of each key through in a window of time: the first at
// once, and those that follow within the window merged into one at its end,
// which begins the next window. Nothing is lost: what comes out stands for all
// that went in. It is for one goroutine, and the times given to it must not go
// back.
type Throttle[K comparable, V any] struct {
	window time.Duration
	limit  int
	rules  Rules[K, V]

	held map[K]*held[V]
	// ends is in the order of the windows' ends, which is the order in which
	// they began, because all are of one length.
	ends []end[K]
}

// Rules tell a Throttle what its values are.
type Rules[K comparable, V any] struct {
	// Key says which values belong together.
	Key func(V) K
	// Merge makes one value of two with the same key.
	Merge func(older, newer V) V
	// Fold changes a value whose key is one too many, so that it shares a key
	// with others; the keys that it leads to may exceed the limit. Nil only
	// when the keys cannot exceed it.
	Fold func(V) V
	// Emit takes what comes out.
	Emit func(V)
}

type held[V any] struct {
	value V
	holds bool
}

type end[K comparable] struct {
	key K
	at  time.Time
}

// NewThrottle makes a Throttle that holds at most limit keys besides those
// that Rules.Fold leads to.
func NewThrottle[K comparable, V any](window time.Duration, limit int, rules Rules[K, V]) *Throttle[K, V] {
	return &Throttle[K, V]{window: window, limit: limit, rules: rules, held: make(map[K]*held[V])}
}

// Add takes a value, and emits what is due by now.
func (t *Throttle[K, V]) Add(now time.Time, value V) {
	t.Due(now)
	key := t.rules.Key(value)
	if t.held[key] == nil && len(t.held) >= t.limit && t.rules.Fold != nil {
		value = t.rules.Fold(value)
		key = t.rules.Key(value)
	}
	h := t.held[key]
	switch {
	case h == nil:
		t.begin(now, key)
		t.rules.Emit(value)
	case h.holds:
		h.value = t.rules.Merge(h.value, value)
	default:
		h.value, h.holds = value, true
	}
}

// Due emits what the windows that are over by now held back.
func (t *Throttle[K, V]) Due(now time.Time) {
	for len(t.ends) > 0 && !t.ends[0].at.After(now) {
		key := t.ends[0].key
		t.ends = t.ends[1:]
		h := t.held[key]
		delete(t.held, key)
		if h.holds {
			t.begin(now, key)
			t.rules.Emit(h.value)
		}
	}
}

// Next is when the oldest window ends; false when there is none.
func (t *Throttle[K, V]) Next() (time.Time, bool) {
	if len(t.ends) == 0 {
		return time.Time{}, false
	}
	return t.ends[0].at, true
}

// Flush emits all that is held back, and forgets all keys.
func (t *Throttle[K, V]) Flush() {
	for _, e := range t.ends {
		if h := t.held[e.key]; h.holds {
			t.rules.Emit(h.value)
		}
	}
	clear(t.held)
	t.ends = nil
}

func (t *Throttle[K, V]) begin(now time.Time, key K) {
	t.held[key] = &held[V]{}
	t.ends = append(t.ends, end[K]{key: key, at: now.Add(t.window)})
}
