package incident

import (
	"net/netip"
	"strings"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

const (
	// remember is how long findings of conntrack wait for their lookup, and
	// drops for the lookups that were lost in them: longer than a lookup may
	// take from its first packet to its report, and than the kernel takes to
	// remove an entry (75 s).
	remember = 90 * time.Second
	// maxRemembered bounds each kind of what is remembered.
	maxRemembered = 4096
)

// Joiner puts the findings of the two sensors together. It is for one
// goroutine, and has no clock: the times given to it must not go back.
type Joiner struct {
	who  func(client lookup.Client, at time.Time) workload.Workload
	emit func(Incident)

	orphans    map[flow][]stamped[conntrack.Orphan]
	unanswered map[flow][]stamped[conntrack.Collision]
	judged     map[flow]time.Time // flows whose lookups were explained
	told       map[flow]time.Time // flows that were explained by conntrack alone
	drops      []conntrack.Drop
	blind      map[conntrack.Reason]string
	unseen     map[lookup.Reason]bool // why the lookup sensor cannot see
	watching   bool                   // there is a lookup sensor
	losses     []lookup.Loss
}

// flow is what a lookup and a finding have in common: all questions of one
// socket to one nameserver.
type flow struct{ client, nameserver netip.AddrPort }

type stamped[T any] struct {
	at    time.Time
	value T
}

// NewJoiner makes a Joiner. watching says whether there is a lookup sensor: if
// not, findings of conntrack are explained alone. who tells whose a client is.
func NewJoiner(watching bool, who func(lookup.Client, time.Time) workload.Workload, emit func(Incident)) *Joiner {
	return &Joiner{
		who: who, emit: emit, watching: watching,
		orphans:    map[flow][]stamped[conntrack.Orphan]{},
		unanswered: map[flow][]stamped[conntrack.Collision]{},
		judged:     map[flow]time.Time{},
		told:       map[flow]time.Time{},
		blind:      map[conntrack.Reason]string{},
		unseen:     map[lookup.Reason]bool{},
	}
}

// Finding takes a finding of conntrack.
func (j *Joiner) Finding(now time.Time, finding conntrack.Finding) {
	switch f := finding.(type) {
	case conntrack.Orphan:
		key := flow{f.Original.Source, f.Original.Destination}
		if who := j.who(lookup.Client{Addr: key.client}, f.Time); !j.sees(f.Time) || who.Host {
			// The node's own packets are seen behind the translation, where the
			// answer looks right.
			j.alone(FromOrphan(f), key, now)
		} else {
			keep(j.orphans, key, stamped[conntrack.Orphan]{now, f})
		}
	case conntrack.Collision:
		key := flow{f.Original.Source, f.Original.Destination}
		if f.Answered {
			return
		}
		if !j.sees(f.Time) {
			j.alone(FromUnanswered(f), key, now)
		} else {
			keep(j.unanswered, key, stamped[conntrack.Collision]{now, f})
		}
	case conntrack.Drop:
		if f.Clash+f.TableFull+f.ChainTooLong > 0 && len(j.drops) < maxRemembered {
			j.drops = append(j.drops, f)
		}
	case conntrack.Blindness:
		if f.Blind {
			j.blind[f.Reason] = f.Evidence
		} else {
			delete(j.blind, f.Reason)
		}
	case conntrack.SlowFlow, conntrack.Loss:
	}
}

// keep remembers a finding, as long as there is room.
func keep[T any](all map[flow][]stamped[T], key flow, s stamped[T]) {
	const perFlow = 16 // a long-lived socket may have many
	if have := all[key]; len(have) < perFlow && (have != nil || len(all) < maxRemembered) {
		all[key] = append(have, s)
	}
}

// Lookup takes a lookup that did not go well.
func (j *Joiner) Lookup(now time.Time, l lookup.Lookup) {
	s := Surroundings{Drops: j.drops, Blind: j.blindness()}
	told := false
	for _, key := range flows(l) {
		if at, ok := j.told[key]; ok {
			told = told || overlaps(l, at)
		}
		for _, o := range j.orphans[key] {
			if overlaps(l, o.value.Time) {
				s.Orphans = append(s.Orphans, o.value)
			}
		}
		for _, c := range j.unanswered[key] {
			if overlaps(l, c.value.Time.Add(-clashLifetime)) {
				s.Unanswered = append(s.Unanswered, c.value)
			}
		}
		if len(j.judged) < maxRemembered {
			j.judged[key] = now
		}
	}
	for _, in := range Judge(l, j.who(l.Client, l.Start), s) {
		if !told || !in.Cause.Timeout() {
			j.emit(in)
		}
	}
}

// overlaps tells whether something happened in the time of a lookup.
func overlaps(l lookup.Lookup, at time.Time) bool {
	const slack = time.Second // the sensor's beat, and a busy machine
	return at.After(l.Start.Add(-slack)) && at.Before(l.End.Add(slack))
}

// Seen takes what the lookup sensor says of itself.
func (j *Joiner) Seen(event lookup.Event) {
	switch e := event.(type) {
	case lookup.Blindness:
		if e.Blind {
			j.unseen[e.Reason] = true
		} else {
			delete(j.unseen, e.Reason)
		}
	case lookup.Loss:
		if len(j.losses) < maxRemembered {
			j.losses = append(j.losses, e)
		}
	}
}

// Tick explains what waited for its lookup in vain, and forgets what is old.
func (j *Joiner) Tick(now time.Time) {
	for key, all := range j.orphans {
		if now.Sub(all[len(all)-1].at) > remember {
			delete(j.orphans, key)
			for _, o := range all {
				if _, ok := j.judged[key]; !ok && j.lost(o.value.Time) {
					j.alone(FromOrphan(o.value), key, time.Time{})
				}
			}
		}
	}
	for key, all := range j.unanswered {
		if now.Sub(all[len(all)-1].at) > remember {
			delete(j.unanswered, key)
			for _, c := range all {
				if _, ok := j.judged[key]; !ok && j.lost(c.value.Time) {
					j.alone(FromUnanswered(c.value), key, time.Time{})
				}
			}
		}
	}
	for key, at := range j.judged {
		if now.Sub(at) > 2*remember {
			delete(j.judged, key)
		}
	}
	for key, at := range j.told {
		if now.Sub(at) > 2*remember {
			delete(j.told, key)
		}
	}
	for len(j.drops) > 0 && now.Sub(j.drops[0].To) > remember {
		j.drops = j.drops[1:]
	}
	for len(j.losses) > 0 && now.Sub(j.losses[0].To) > 2*remember {
		j.losses = j.losses[1:]
	}
}

// alone emits what only conntrack saw. A lookup of the same flow that is reported
// later is not reported again; now is zero when none can come.
func (j *Joiner) alone(in Incident, key flow, now time.Time) {
	if !now.IsZero() && len(j.told) < maxRemembered {
		j.told[key] = in.Time
	}
	in.Workload = j.who(lookup.Client{Addr: key.client}, in.Time)
	j.emit(in)
}

// sees tells whether the lookup sensor saw what happened at a time. While it
// does, it alone says what was lost: what conntrack found may have been
// answered by another nameserver.
func (j *Joiner) sees(at time.Time) bool {
	return j.watching && len(j.unseen) == 0 && !j.lost(at)
}

// lost tells whether packets were lost around a time.
func (j *Joiner) lost(at time.Time) bool {
	for _, l := range j.losses {
		if at.After(l.From.Add(-muslGivesUp)) && at.Before(l.To.Add(muslGivesUp)) {
			return true
		}
	}
	return false
}

// blindness says why conntrack cannot tell anything of drops and orphans.
func (j *Joiner) blindness() string {
	var why []string
	for _, r := range conntrack.Reasons() {
		if _, ok := j.blind[r]; ok {
			why = append(why, string(r))
		}
	}
	return strings.Join(why, ", ")
}

// flows are those of a lookup: one for each nameserver that was asked.
func flows(l lookup.Lookup) []flow {
	all := []flow{{l.Client.Addr, l.Nameserver}}
	for _, q := range l.Asked {
		f := flow{l.Client.Addr, q.To}
		seen := false
		for _, have := range all {
			seen = seen || have == f
		}
		if !seen {
			all = append(all, f)
		}
	}
	return all
}
