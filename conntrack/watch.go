package conntrack

import (
	"errors"
	"strings"
	"time"
)

// watch is what Run keeps between its readings: the tracker, the last
// statistics, and what the sensor is blind to.
type watch struct {
	sensor  *Sensor
	emit    func(Finding)
	tracker *tracker

	whole   time.Time // up to here no message was lost
	drops   uint32    // the socket's drops then
	last    Statistics
	lastAt  time.Time // zero: not read yet
	blinded map[Reason]bool
	wanted  wanted // what the socket's filter lets through
}

func newWatch(s *Sensor, emit func(Finding)) *watch {
	return &watch{
		sensor: s, emit: emit, whole: time.Now(), blinded: map[Reason]bool{},
		tracker: newTracker(s.ports, s.table, emit),
		wanted:  wanted{asked: s.ports, answering: s.ports}, // as open has it
	}
}

// tick reads everything that sends no messages, and says when to come again.
func (w *watch) tick(now time.Time) (next time.Time) {
	w.loss(now)
	w.readable(now, errors.Join(w.settings(now), w.statistics(now), w.exemptions(now)))
	w.tracker.tick(now)
	return now.Add(tickInterval)
}

// refilter has the kernel filter for what the tracker wants from now on.
func (w *watch) refilter(now time.Time) error {
	wanted := w.tracker.wanted(now)
	if wanted.assured == w.wanted.assured && len(wanted.answering) == len(w.wanted.answering) {
		return nil
	}
	program, err := wanted.filter()
	if err != nil {
		return err
	}
	w.wanted = wanted
	return w.sensor.events.filter(program)
}

// loss reports messages that the kernel could not queue.
func (w *watch) loss(now time.Time) {
	drops, err := w.sensor.events.drops()
	if err != nil {
		return // Linux before 4.12: the count is not to be had
	}
	if n := drops - w.drops; n > 0 {
		w.sensor.lost.Add(uint64(n))
		w.emit(Loss{From: w.whole, To: now, Messages: uint64(n)})
	}
	w.drops, w.whole = drops, now
}

// settings reads the sysctls that the sensor depends on.
func (w *watch) settings(now time.Time) error {
	counters, err := w.sensor.accounting.read()
	w.tracker.counters = counters == "1"
	events, err2 := w.sensor.enabled.read()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if events == "" {
		w.blind(now, EventsOff, true, "the kernel has no net.netfilter.nf_conntrack_events",
			"use a kernel with CONFIG_NF_CONNTRACK_EVENTS")
		return nil
	}
	w.blind(now, EventsOff, events == "0", "net.netfilter.nf_conntrack_events is 0: the kernel reports no collision",
		"sysctl -w net.netfilter.nf_conntrack_events=1 (flows that begin after it are seen; no restart is needed)")
	return nil
}

func (w *watch) statistics(now time.Time) error {
	s, err := w.sensor.statistics.read()
	old := errors.Is(err, errNoClashResolve)
	w.blind(now, NoStatistics, old, text(err),
		"use Linux 5.10 or later; until then merged and kept collisions are not counted apart from drops")
	if err != nil && !old {
		return err
	}
	if !w.lastAt.IsZero() {
		// What was dropped since now, while the reader stood still, is in it as well.
		if d, ok := drops(w.last, s, w.lastAt, time.Now()); ok {
			if d.Clash > 0 {
				w.tracker.drop(now)
			}
			w.emit(d)
		}
	}
	w.last, w.lastAt = s, now
	return nil
}

// exemptions takes what was found of rules and links that exempt DNS.
func (w *watch) exemptions(now time.Time) error {
	e := w.sensor.exemption.Load()
	if e == nil {
		return nil // not looked yet
	}
	if e.err == nil {
		w.blind(now, NoTrack, e.evidence != "", e.evidence,
			"lookups that are not tracked cannot collide, and cannot be seen here; those that a node-local cache forwards are still seen")
	}
	return e.err
}

// readable reports whether the kernel told all that the sensor asked for.
func (w *watch) readable(now time.Time, err error) {
	denied := errors.Is(err, ErrPermission)
	w.blind(now, NoPermission, denied, text(err), "add the capability NET_ADMIN to the container")
	w.blind(now, Unreadable, err != nil && !denied, text(err), "please report it with the version of the kernel")
}

// blind reports a change.
func (w *watch) blind(now time.Time, r Reason, blind bool, evidence, remedy string) {
	if blind == w.blinded[r] {
		return
	}
	w.blinded[r] = blind
	b := Blindness{Time: now, Reason: r, Blind: blind}
	if blind {
		b.Evidence, b.Remedy = evidence, remedy
	}
	w.emit(b)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
