package agent

import (
	"sync"
	"time"
)

// minutes counts lookups by the minute, for the last hour. Its size is fixed.
type minutes struct {
	mu   sync.Mutex
	ring [60]minute
}

// minute is what happened in one minute.
type minute struct {
	at int64 // minutes since 1970
	// lookups are all that ended. lost are those whose client had to ask again or
	// gave up, failed those whose answer did not help.
	lookups, lost, failed uint64
}

// add counts in the minute of at, if that is of the last hour. What the ring has
// there of another hour is over, or was counted before the clock was set back.
func (m *minutes) add(at time.Time, lookups, lost, failed uint64) {
	if time.Since(at) >= time.Hour {
		return
	}
	n := at.Unix() / 60
	m.mu.Lock()
	defer m.mu.Unlock()
	in := &m.ring[uint64(n)%uint64(len(m.ring))]
	if in.at != n {
		*in = minute{at: n}
	}
	in.lookups += lookups
	in.lost += lost
	in.failed += failed
}

// hour gives the last sixty minutes, the one that runs at the end.
func (m *minutes) hour(now time.Time) [60]minute {
	var hour [60]minute
	last := now.Unix() / 60
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range hour {
		n := last - int64(len(hour)) + 1 + int64(i)
		hour[i] = minute{at: n}
		if in := m.ring[uint64(n)%uint64(len(m.ring))]; in.at == n {
			hour[i] = in
		}
	}
	return hour
}
