package cluster

import "time"

// newSlot holds a slot that was just created. If somebody deleted the Lease of a
// slot that is held, its holder has to notice before another one gets it: so a
// new slot is waited for like one whose holder has died.
const newSlot = "nobody-yet"

// longestTTL is the longest time for which a Lease's own word is taken: with a
// slip of the pen in it, a slot would never be free again.
const longestTTL = time.Hour

// verdict is what a look at a slot comes to.
type verdict int

const (
	held verdict = iota // by somebody else, or not free for long enough
	free
	ours
)

// sight is a slot as this agent has seen it change.
type sight struct {
	version string
	since   time.Time // when this version was first seen here
}

// judge decides whether a slot may be taken. now is when the answer had arrived;
// ttl is our own setting, patience how long a slot must have been free before we
// take it.
//
// Whether a holder is gone is told by our own clock alone: its last sign of life
// was sent before we first saw what came of it, and a later one changes the
// version. So once we have seen one version for as long as the slot is its
// holder's, its holder knows that it is over (see hold). That holds for clocks
// that differ by any offset, and for those that run by a fifth too fast or slow.
// An answer that is out of date, or a sign of life that comes just now, does no
// harm: the update names the version that was judged, and is refused.
func (s *sight) judge(l Lease, me string, now time.Time, ttl, patience time.Duration) verdict {
	if s.since.IsZero() || l.Version != s.version {
		*s = sight{version: l.Version, since: now}
	}
	unchanged := now.Sub(s.since)
	switch {
	case l.Holder == me:
		return ours // a request that was lost on its way back
	case l.Holder == "" && unchanged >= patience:
		return free
	case l.Holder != "" && unchanged >= max(ttl, min(l.TTL, longestTTL))+patience:
		return free
	}
	return held
}

// claim is the lease with us as its holder, or with a sign of life if we are.
func claim(l Lease, me string, now time.Time, ttl time.Duration) Lease {
	if l.Holder != me {
		l.Holder, l.Acquired = me, now
		l.Transitions++
	}
	l.TTL, l.Renewed = ttl, now
	return l
}

// unclaim is the lease with no holder.
func unclaim(l Lease, now time.Time) Lease {
	l.Holder, l.Renewed = "", now
	return l
}

// sureFor is how much of its time to live a holder relies on, counted from before
// it sent its sign of life. The rest is for clocks of different speed.
func sureFor(ttl time.Duration) time.Duration { return ttl * 4 / 5 }
