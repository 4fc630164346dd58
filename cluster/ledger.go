package cluster

import (
	"errors"
	"net/http"
	"slices"
	"time"
)

const (
	// eventWindow is the time in which there is one request for each object and
	// cause.
	eventWindow = 10 * time.Minute
	// eventKeys is how many objects and causes are told apart in that time.
	eventKeys = 1000
	// eventBurst and eventPause limit the requests of one node: so many at once,
	// and one more after each pause. 5,000 nodes with trouble are 500 a second.
	eventBurst = 10
	eventPause = 10 * time.Second
	// eventTries is how often one Event is tried in vain before it is lost.
	eventTries = 5
)

// eventKey is what is told apart.
type eventKey struct {
	About
	cause, subject string
}

// entry is what is known of one object and cause.
type entry struct {
	event Event // its count is all that happened
	sent  uint64
	made  bool // there is an Event of its name
	due   time.Time
	tries int
}

// ledger decides which Events are sent, and when. It is a plain value: each
// method takes the time.
type ledger struct {
	node    string
	entries map[eventKey]*entry
	bucket  bucket
	lost    uint64 // of what happened: it is in no Event
}

func newLedger(node string) *ledger {
	return &ledger{node: node, entries: make(map[eventKey]*entry), bucket: bucket{tokens: eventBurst}}
}

// note takes what happened to an object.
func (l *ledger) note(now time.Time, about About, f Finding) {
	key := eventKey{about, f.Cause, f.Subject}
	e := l.entries[key]
	if e == nil {
		if len(l.entries) >= eventKeys {
			l.lost += f.Count
			return
		}
		e = &entry{due: now}
		l.entries[key] = e
		l.open(e, key, now)
	}
	e.event.Message, e.event.Warning, e.event.Last = clean(f.Message), f.Warning, now
	e.event.Count += f.Count
}

// open gives an entry a new Event.
func (l *ledger) open(e *entry, key eventKey, now time.Time) {
	e.event.Name = eventName(key, l.node, now)
	e.event.About, e.event.Reason, e.event.Node = key.About, reason(key.cause), l.node
	e.event.First, e.event.Last, e.made = now, now, false
}

// next gives the entry that shall be sent now, or the time to ask again; that is
// zero when there is nothing to wait for. An entry of which nothing is left to
// say is forgotten when its time is over.
func (l *ledger) next(now time.Time) (eventKey, *entry, time.Time) {
	var key eventKey
	var first *entry
	for k, e := range l.entries {
		if e.event.Count == e.sent && !now.Before(e.due) {
			delete(l.entries, k)
			continue
		}
		if first == nil || e.due.Before(first.due) {
			key, first = k, e
		}
	}
	switch {
	case first == nil:
		return eventKey{}, nil, time.Time{}
	case now.Before(first.due):
		return eventKey{}, nil, first.due
	}
	if at := l.bucket.take(now); !at.IsZero() {
		return eventKey{}, nil, at
	}
	return key, first, time.Time{}
}

// settle takes what came of sending an entry, whose count was sent then.
func (l *ledger) settle(now time.Time, key eventKey, sent uint64, err error) {
	e := l.entries[key]
	created := !e.made
	switch {
	case err == nil:
		e.sent, e.made, e.tries, e.due = sent, true, 0, now.Add(eventWindow)
		return
	case created && errors.Is(err, ErrConflict):
		e.made = true // a request before was carried out after all, with another count perhaps
		return
	case !created && errors.Is(err, ErrNotFound):
		// An Event lives for an hour, or for as long as the cluster likes.
		// What it told is told; the next one counts anew.
		e.event.Count -= e.sent
		e.sent = 0
		last := e.event.Last
		l.open(e, key, now)
		e.event.Last = last
		return
	}
	e.tries++
	// Refused for good: the namespace has gone, or we may not.
	refused, ok := errors.AsType[*statusError](err)
	final := ok && slices.Contains([]int{
		http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnprocessableEntity,
	}, refused.code)
	if final || e.tries >= eventTries {
		l.lost += e.event.Count - e.sent
		e.sent, e.tries, e.due = e.event.Count, 0, now.Add(eventWindow)
		return
	}
	e.due = now.Add(max(eventPause<<e.tries, after(err)))
}

// bucket is a token bucket.
type bucket struct {
	tokens int
	filled time.Time // when the last token that is counted came in
}

// take takes a token, or gives the time when there is one.
func (b *bucket) take(now time.Time) time.Time {
	if n := int(now.Sub(b.filled) / eventPause); b.tokens+n >= eventBurst || b.filled.IsZero() {
		b.tokens, b.filled = eventBurst, now
	} else {
		b.tokens, b.filled = b.tokens+n, b.filled.Add(time.Duration(n)*eventPause)
	}
	if b.tokens == 0 {
		return b.filled.Add(eventPause)
	}
	b.tokens--
	return time.Time{}
}

// benign tells whether an error says only that an Event is there already, or no
// more, or that its namespace has gone.
func benign(err error) bool { return errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) }
