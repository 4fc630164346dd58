package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// Metrics that the scenes are about.
const (
	messages = `nodestead_sensor_messages_total{sensor="conntrack"}`
	kept     = `nodestead_conntrack_collisions_total{result="kept"}`
	orphaned = `nodestead_conntrack_collisions_total{result="orphaned"}`
	timeouts = `nodestead_dns_lookup_timeouts_total{cause="orphaned_answer"}`
	resolved = `nodestead_conntrack_clash_resolved_total`
	dropped  = `nodestead_conntrack_drop_total`
	failed   = `nodestead_conntrack_insert_failed_total`
)

// quietFor is longer than any of the agent's beats.
const quietFor = 1200 * time.Millisecond

// scene is one thing that happens to a pod's lookups, and what must be seen.
type scene struct {
	title, story string
	hold         int // packets that are held until so many are there, so that they collide; 0: none
	double       bool
	name         string
	lookups      int
	// The slowest lookup must take as long as this.
	atLeast, below time.Duration
	// line is what the agent must log; "" means that it must log nothing.
	line []string
	// then is what it must log as well.
	then []string
	// moved are metrics that must rise by at least 1, still those that must not.
	moved, still []string
}

var scenes = []scene{
	{
		title:   "Healthy lookups",
		story:   "Nothing collides. The kernel's filter keeps them from the agent: not one message.",
		name:    "git." + zone,
		lookups: 20,
		below:   time.Second,
		still:   []string{messages, kept, orphaned, timeouts},
	},
	{
		title: "The idle cluster, without a collision",
		story: "No cache has the name, so the answer takes 1.5 s. That is slow, and nothing is lost.",
		name:  "first.idle." + zone, lookups: 1,
		atLeast: upstreamTakes, below: 2400 * time.Millisecond,
		still: []string{kept, orphaned, timeouts},
	},
	{
		title: "Collisions, and fast answers",
		story: "A and AAAA leave one socket together and are sent to different backends. The kernel keeps the loser\n" +
			"for a second, the answers come in time, and the user notices nothing. The agent does.",
		hold: 2, name: "git." + zone, lookups: 5,
		below: time.Second,
		line:  []string{`level=DEBUG msg="dns queries collided"`, "answered=true"},
		moved: []string{kept, resolved}, still: []string{orphaned, timeouts},
	},
	{
		title: "The idle cluster, with a collision",
		story: "The same 1.5 s; but after one second the loser's entry is gone. Its answer reaches the pod from an\n" +
			"address that musl never asked, musl ignores it, waits, and asks again.",
		hold: 2, name: "second.idle." + zone, lookups: 1,
		atLeast: 3900 * time.Millisecond,
		line:    []string{`level=WARN msg="dns lookup lost" cause=orphaned_answer`, "remedy="},
		moved:   []string{orphaned, timeouts, resolved}, still: []string{kept},
	},
	{
		title: "Two nameservers that are translated to the same backends",
		story: "musl asks both at once from one socket. Two answers would have the same way back, and the kernel\n" +
			"drops what would cause it. When both copies of a question are gone, musl asks again after 2.5 s, and\n" +
			"gives away whose packets they were.",
		hold: 4, double: true, name: "git." + zone, lookups: 1,
		atLeast: 2400 * time.Millisecond,
		line:    []string{`level=WARN msg="conntrack dropped packets"`, "remedy="},
		then:    []string{`level=INFO msg="dns client asked again"`, "witness=after_drop"},
		moved:   []string{dropped, failed}, still: []string{orphaned, timeouts},
	},
}

// play plays a scene, shows it, and checks that it was seen.
func (s *stage) play(number int, c scene) (err error) {
	fmt.Fprintf(s.out, "\n── %d. %s\n%s\n", number, c.title, c.story)
	before, err := s.metrics()
	if err != nil {
		return err
	}
	from := len(s.logged(0))
	slowest, failure, err := s.resolve(c)
	// With two nameservers it depends on whose turn it is at each service
	// whether both copies of one question are lost, or one copy of each.
	for try := 1; err == nil && failure == "" && c.double && slowest < c.atLeast && try < 4; try++ {
		if err = s.shiftTurn(); err == nil {
			slowest, failure, err = s.resolve(c)
		}
	}
	if err != nil {
		return err
	}
	result := "ok"
	if failure != "" {
		result = failure
	}
	fmt.Fprintf(s.out, "  the pod    │ getaddrinfo(%q) × %d: %s, the slowest took %.3f s\n", c.name, c.lookups, result, slowest.Seconds())
	if slowest < c.atLeast || c.below > 0 && slowest >= c.below || failure != "" {
		return fmt.Errorf("scene %d was not played: the slowest lookup took %v (%s)", number, slowest, result)
	}

	var after map[string]float64
	err = s.until(fmt.Sprintf("scene %d was not seen", number), func() error {
		if after, err = s.metrics(); err != nil {
			return err
		}
		for _, parts := range [][]string{c.line, c.then} {
			if len(parts) == 0 {
				continue
			}
			if !slices.ContainsFunc(s.logged(from), func(l string) bool { return has(l, parts) }) {
				return fmt.Errorf("no line with %q in the log", parts)
			}
		}
		for _, m := range c.moved {
			if after[m] <= before[m] {
				return fmt.Errorf("%s has not risen", m)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(c.line) == 0 {
		// Nothing may come: give the agent time for what it must not do.
		quiet, cancel := context.WithTimeout(s.ctx, quietFor)
		<-quiet.Done()
		cancel()
		if after, err = s.metrics(); err != nil {
			return err
		}
	}
	s.show(c, from, before, after)
	if lines := s.logged(from); len(c.line) == 0 && len(lines) > 0 {
		return fmt.Errorf("scene %d: the agent logged %q, and should have logged nothing", number, lines)
	}
	for _, m := range c.still {
		if after[m] != before[m] {
			return fmt.Errorf("scene %d: %s moved from %v to %v", number, m, before[m], after[m])
		}
	}
	return nil
}

// has tells whether a line has all parts.
func has(line string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(line, part) {
			return false
		}
	}
	return len(parts) > 0
}

// resolve has the scene's pod look up the scene's name. failure is what the
// resolver said when a lookup failed.
func (s *stage) resolve(c scene) (slowest time.Duration, failure string, err error) {
	var h *lab.Holder
	if c.hold > 0 {
		if h, err = s.Hold(c.hold, 100*time.Millisecond); err != nil {
			return 0, "", err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
	}
	pod := s.pod
	if c.double {
		pod = s.double
	}
	answers, err := pod.Resolve(s.ctx, "", lab.MuslStatic, c.lookups, c.name)
	if err != nil {
		return 0, "", err
	}
	if h != nil && h.Full() == 0 {
		return 0, "", fmt.Errorf("no %d packets were there together", c.hold)
	}
	for _, a := range answers {
		slowest = max(slowest, a.Took)
		if a.Err != "" {
			failure = a.Err
		}
	}
	return slowest, failure, nil
}

// shiftTurn asks one of the two services a single question, so that the other
// backend is next.
func (s *stage) shiftTurn() error {
	_, err := s.other.Exec(s.ctx, "", lab.ClientPath(lab.MuslStatic), "-f", "4", "git."+zone)
	return err
}

// show prints what the agent said and which of its metrics moved.
func (s *stage) show(c scene, from int, before, after map[string]float64) {
	shown := 0
	for _, line := range s.logged(from) {
		if len(c.line) > 0 && !has(line, c.line) && !has(line, c.then) {
			continue // of another scene
		}
		if shown++; shown > 2 {
			continue // more of the same
		}
		_, line, _ = strings.Cut(line, " ") // the time
		fmt.Fprintf(s.out, "  the log    │ %s\n", line)
	}
	if shown == 0 {
		fmt.Fprintln(s.out, "  the log    │ (nothing)")
	}
	moved := false
	for _, m := range slices.Sorted(maps.Keys(after)) {
		if after[m] > before[m] && !strings.HasSuffix(m, "_entries") && !strings.Contains(m, "search_restart") {
			fmt.Fprintf(s.out, "  metrics    │ %s %g → %g\n", m, before[m], after[m])
			moved = true
		}
	}
	if !moved {
		fmt.Fprintln(s.out, "  metrics    │ (none moved)")
	}
}
