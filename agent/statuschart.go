package agent

import (
	"fmt"
	"time"
)

// hourView is the last hour of lookups.
type hourView struct {
	Lookups, Lost, Failed uint64
	All, Bad              chart
	From, To              time.Time
}

// chart is a bar for each minute, in a drawing of 600 by chartHeight that
// the page stretches.
type chart struct {
	Most uint64 // what a bar of full height stands for
	Bars []bar
}

type bar struct {
	X, Y, Height int
	Class, Title string
}

// A minute is minuteWidth wide, of which its bar leaves one for the gap.
const (
	minuteWidth = 10
	chartHeight = 100
)

func newHourView(hour [60]minute) hourView {
	v := hourView{From: time.Unix(hour[0].at*60, 0), To: time.Unix(hour[59].at*60, 0)}
	for _, m := range hour {
		v.Lookups += m.lookups
		v.Lost += m.lost
		v.Failed += m.failed
		v.All.Most = max(v.All.Most, m.lookups)
		v.Bad.Most = max(v.Bad.Most, m.lost+m.failed)
	}
	for i, m := range hour {
		at := time.Unix(m.at*60, 0).UTC().Format("15:04")
		x := i * minuteWidth
		v.All.stack(x, 0, m.lookups, "lookups", at+": "+plural(m.lookups, "lookup"))
		title := fmt.Sprintf("%s: %s lost, %s failed", at, number(m.lost), number(m.failed))
		top := v.Bad.stack(x, 0, m.lost, "lost", title)
		v.Bad.stack(x, top, m.failed, "failed", title)
	}
	return v
}

// stack adds a bar on what stands there up to bottom, and gives its top. What is
// not nothing is seen.
func (c *chart) stack(x, bottom int, n uint64, class, title string) (top int) {
	if n == 0 {
		return bottom
	}
	height := max(4, int(float64(n)/float64(c.Most)*chartHeight))
	height = min(height, chartHeight-bottom)
	c.Bars = append(c.Bars, bar{x, chartHeight - bottom - height, height, class, title})
	return bottom + height
}
