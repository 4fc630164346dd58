package agent

import (
	"fmt"
	"html/template"
	"time"
)

// statusFuncs are what the page's template calls.
func statusFuncs() template.FuncMap {
	return template.FuncMap{
		"ago":    ago,
		"ends":   ends,
		"clock":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
		"day":    func(t time.Time) string { return t.UTC().Format("2006-01-02") },
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"uptime": func(now, since time.Time) string { return span(now.Sub(since)) },
		"number": number,
		"plural": plural,
		"short":  func(n int, text any) string { return short(fmt.Sprint(text), n) },
		"waited": func(d time.Duration) string { return d.Round(time.Millisecond).String() },
	}
}

// ago says how long ago it was.
func ago(now, t time.Time) string {
	switch d := now.Sub(t); {
	case t.IsZero():
		return "never"
	case d < time.Second:
		return "now"
	default:
		return span(d) + " ago"
	}
}

// ends says when a certificate ends, or ended.
func ends(now, t time.Time) string {
	if d := t.Sub(now); d > 0 {
		return "ends in " + span(d)
	}
	return "ended " + ago(now, t)
}

// span is a time as people say it: its largest unit, from two of them on.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{365 * day, "year"}, {day, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d >= 2*unit.length {
			return plural(uint64(d/unit.length), unit.name)
		}
	}
	return plural(uint64(max(d, 0)/time.Second), "second")
}

// plural is a number of things.
func plural(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return number(n) + " " + thing + "s"
}

// number has a comma at each thousand.
func number(n uint64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// short cuts a text that strangers chose to what people read, and the page can
// hold.
func short(text string, most int) string {
	if len(text) <= most {
		return text
	}
	n := 0
	for i := range text {
		if n == most {
			return text[:i] + "…"
		}
		n++
	}
	return text
}
