package agent

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/nodestead/nodestead/cluster"
)

// nodeName is what Kubernetes takes as the name of a node: a DNS subdomain
// (RFC 1123).
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// NodeName is the name of a node; empty for that of this one.
type NodeName string

// UnmarshalText takes a name that Kubernetes takes, and nothing.
func (n *NodeName) UnmarshalText(text []byte) error {
	if len(text) > 253 || len(text) > 0 && !nodeName.Match(text) {
		return fmt.Errorf("%q is no name of a node: want one such as worker-1.example.de", text)
	}
	*n = NodeName(text)
	return nil
}

// Nodes is a number of nodes.
type Nodes uint32

// UnmarshalText takes 0 to 20.
func (n *Nodes) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil || v > 20 {
		return fmt.Errorf("%q is no number from 0 to 20", text)
	}
	*n = Nodes(v)
	return nil
}

// Day is a day of the week: mon to sun.
type Day string

// UnmarshalText takes mon to sun.
func (d *Day) UnmarshalText(text []byte) error {
	day := Day(strings.ToLower(string(text)))
	if _, err := cluster.NewWindow([]string{string(day)}, "00:00", "24:00", ""); err != nil {
		return fmt.Errorf("%q is no day: want mon, tue, wed, thu, fri, sat or sun", text)
	}
	*d = day
	return nil
}

// Days is a set of days; an empty one is every day.
type Days []Day

// String gives the days as a flag takes them.
func (d Days) String() string { return join(d) }

// DayTime is a time of the day, by the clock on the wall; 24:00 is midnight.
type DayTime string

// UnmarshalText takes 00:00 to 24:00.
func (d *DayTime) UnmarshalText(text []byte) error {
	if _, err := cluster.NewWindow(nil, "00:00", string(text), ""); err != nil {
		return fmt.Errorf("%q is no time of the day: want one such as 22:30, at most 24:00", text)
	}
	*d = DayTime(text)
	return nil
}

// DayStart is a time of the day at which something begins.
type DayStart string

// UnmarshalText takes 00:00 to 23:59.
func (d *DayStart) UnmarshalText(text []byte) error {
	if _, err := cluster.NewWindow(nil, string(text), "24:00", ""); err != nil {
		return fmt.Errorf("%q is no time of the day to begin at: want one such as 22:30, at most 23:59", text)
	}
	*d = DayStart(text)
	return nil
}

// TimeZone is the name of a time zone.
type TimeZone string

// UnmarshalText takes UTC, and the names of the IANA time zone database.
func (z *TimeZone) UnmarshalText(text []byte) error {
	if _, err := cluster.NewWindow(nil, "00:00", "24:00", string(text)); err != nil || len(text) == 0 {
		return fmt.Errorf("%q is no time zone: want UTC, or a name such as Europe/Berlin", text)
	}
	*z = TimeZone(text)
	return nil
}
