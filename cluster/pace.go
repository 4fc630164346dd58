package cluster

import (
	"math/rand/v2"
	"time"
)

// pace is when an agent that waits for a slot looks: at random moments, which
// spreads the agents over time and makes the order of their turns random. Those
// that have waited for long look less often, so that a big cluster costs the API
// server little: nodes divided by the longest mean, in looks a second.
type pace struct {
	// first is the time over which the first looks are spread, shortest and
	// longest are the mean times between later ones, retry is the first mean
	// after an error.
	first, shortest, longest, retry time.Duration
}

// defaultPace costs some 140 looks a second in the first minute when 5,000 nodes
// begin at once, and 42 when they have waited for some minutes: the kubelets of
// these nodes renew 500 Leases a second.
func defaultPace() pace {
	return pace{first: time.Minute, shortest: 30 * time.Second, longest: 2 * time.Minute, retry: 2 * time.Second}
}

// begin is the time until the first look.
func (p pace) begin() time.Duration { return rand.N(p.first) + 1 }

// next is the time until the next look after some that were answered, and after
// some that failed since the last answer.
func (p pace) next(answered, failed int) time.Duration {
	mean := p.shortest
	if failed > 0 {
		mean = p.retry
		answered = failed - 1
	}
	for range answered {
		if mean = mean * 3 / 2; mean >= p.longest {
			mean = p.longest
			break
		}
	}
	return spread(mean)
}

// patience is the time in which each worker that waits has looked at each of the
// slots, where all is well: what was free for longer, no worker wants.
func (p pace) patience(slots int) time.Duration {
	return time.Duration(slots)*(p.longest*3/2) + time.Minute
}

// spread is a random time of half to one and a half of the mean.
func spread(mean time.Duration) time.Duration { return mean/2 + rand.N(mean+1) + 1 }
