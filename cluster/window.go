package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // an image from scratch has no time zones
)

// Window is a time of the week in which a restart may begin. One that has begun
// is not cut off by its end.
type Window struct {
	days     []time.Weekday // that it begins on
	from, to time.Duration  // since midnight, by the clock on the wall
	location *time.Location
}

// NewWindow makes a window of days (mon to sun; none: all of them), the times of
// its begin and end (15:04; an end of 24:00 is midnight, and one that is not after the begin is on the
// next day) and a time zone (as in Europe/Berlin; empty: UTC). The error has all
// that is wrong with them.
func NewWindow(days []string, from, to, zone string) (Window, error) {
	var w Window
	var errs []error
	for _, name := range days {
		day := slices.Index(weekdays(), strings.ToLower(name))
		if day < 0 {
			errs = append(errs, fmt.Errorf("day %q: want one of %s", name, strings.Join(weekdays(), ", ")))
			continue
		}
		w.days = append(w.days, time.Weekday(day))
	}
	var err error
	if w.from, err = clock(from); err != nil {
		errs = append(errs, fmt.Errorf("from: %w", err))
	}
	if w.to, err = clock(to); err != nil {
		errs = append(errs, fmt.Errorf("to: %w", err))
	}
	if w.from == 24*time.Hour {
		errs = append(errs, errors.New("from: 24:00 is an end and no begin"))
	}
	if strings.EqualFold(zone, "local") { // the container's, which is nobody's
		errs = append(errs, errors.New("time zone: want a name as in Europe/Berlin"))
	} else if w.location, err = time.LoadLocation(zone); err != nil {
		errs = append(errs, fmt.Errorf("time zone: %w", err))
	}
	return w, errors.Join(errs...)
}

// weekdays are the names of the days, in the order of time.Weekday.
func weekdays() []string { return []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} }

func clock(text string) (time.Duration, error) {
	if text == "24:00" {
		return 24 * time.Hour, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of the day as in 22:30", text)
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// untilOpen is the time until one of the windows opens: 0 while one is open, or
// where there is none.
func untilOpen(windows []Window, now time.Time) time.Duration {
	if len(windows) == 0 {
		return 0
	}
	first := time.Duration(-1)
	for _, w := range windows {
		if d := w.UntilOpen(now); first < 0 || d < first {
			first = d
		}
	}
	return first
}

// UntilOpen is the time until it opens, 0 while it is open.
func (w Window) UntilOpen(now time.Time) time.Duration {
	local := now.In(w.location)
	// From yesterday, whose window may go on. Two weeks, because an island may
	// leave a day out to change sides of the date line, as Samoa did in 2011.
	for day := -1; day <= 15; day++ {
		date := time.Date(local.Year(), local.Month(), local.Day()+day, 12, 0, 0, 0, w.location)
		if len(w.days) > 0 && !slices.Contains(w.days, date.Weekday()) {
			continue
		}
		begin, end := at(date, w.from), at(date, w.to)
		if w.to <= w.from {
			end = at(date.AddDate(0, 0, 1), w.to)
		}
		switch {
		case !begin.Before(end): // the clock leaves all of it out
		case now.Before(begin):
			return begin.Sub(now)
		case now.Before(end):
			return 0
		}
	}
	return 7 * 24 * time.Hour // not reached
}

// at is a time of a day by the clock on the wall. For one that the clock leaves
// out when it is set forward it is the moment of that.
func at(date time.Time, since time.Duration) time.Time {
	hour, minute := int(since.Hours()), int(since.Minutes())%60
	t := time.Date(date.Year(), date.Month(), date.Day(), hour, minute, 0, 0, date.Location())
	if t.Hour() == hour%24 && t.Minute() == minute {
		return t
	}
	before, after := t.ZoneBounds()
	if t.Sub(before) < after.Sub(t) {
		return before
	}
	return after
}
