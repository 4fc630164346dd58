package main

import "time"

// scene is one thing that happens to the lookups of pods, and what must be seen.
type scene struct {
	title, story string
	// set makes what the scene needs and the stage lacks.
	set  func(*stage) error
	hold int   // packets of a pod that are held until so many are there, so that they collide; 0: none
	asks []ask // at the same time
	// check looks, once they have asked, whether it was really made.
	check func(*stage) error
	// logs are the lines that the agent must log; nothing else may be above
	// debug.
	logs []line
	// moved are metrics that must rise, still those that must not. Each is a part
	// of a series' name and stands for the sum of all that have it.
	moved, still []string
}

// ask is a pod that looks names up, one after the other.
type ask struct {
	pod     string
	names   []string
	count   int // how often; 0: once
	lookups int // that the agent must count for each; 0: A and AAAA
	// The slowest must take as long as this.
	atLeast, below time.Duration
	fails          bool
}

// askedAgain is when musl asks again. A lookup that took less has lost nothing.
const askedAgain = 2500 * time.Millisecond

// line is what a line of the log must have.
type line []string

// Metrics that the scenes are about.
const (
	messages = `sensor_messages_total{sensor="conntrack"}`
	kept     = `result="kept"`
	orphaned = `result="orphaned"`
	resolved = `conntrack_clash_resolved_total`
	dropped  = `conntrack_drop_total`
	refused  = `conntrack_insert_failed_total`
	timeouts = `dns_lookup_timeouts_total`
	failures = `dns_lookup_failures_total`
	again    = `dns_retransmissions_total`
	wasted   = `dns_search_wasted_total{namespace="ci"}`
	blind    = `sensor_blind{reason="notrack",sensor="conntrack"}`
)

// jobNames are what a job looks up where there is a search list: two, because
// the agent takes suffixes without a common end for those of one list when two
// names had them.
var jobNames = []string{"registry.example.de", "git.example.de"}

// always are metrics that no scene may move.
var always = []string{`sensor_lost_total`, `cause="unknown"`, `dns_lookups_discarded_total`, `dns_malformed_total`}

// of is the series of a pod and cause.
func of(metric, pod, cause string) string {
	return metric + `{cause="` + cause + `",namespace="ci",pod="` + pod + `",resolver="musl"}`
}

// lost and failed are the lines of an incident.
func lost(pod, cause string, more ...string) line {
	return explained(`level=WARN msg="dns lookup lost"`, pod, cause, more)
}

func failed(pod, cause string, more ...string) line {
	return explained(`level=WARN msg="dns lookup failed"`, pod, cause, more)
}

func explained(message, pod, cause string, more []string) line {
	return append(line{message, " cause=" + cause + " namespace=ci pod=" + pod + " container=app ", "resolver=musl ", "evidence=", "remedy="}, more...)
}

var scenes = []scene{
	{
		title: "Healthy lookups",
		story: "The agent counts them, exactly, and has nothing to say. Conntrack sends it not one message.",
		asks:  []ask{{pod: plain, names: []string{"git." + zone}, count: 20, below: askedAgain}},
		moved: []string{`dns_lookups_total{namespace="ci",outcome="noerror",qtype="A",resolver="musl"}`},
		still: []string{messages, kept, orphaned, timeouts, failures, again},
	},
	{
		title: "The idle cluster, without a collision",
		story: "No cache has the name, so the answer takes 1.2 s. That is slow, and nothing is lost.",
		asks:  []ask{{pod: plain, names: []string{"first.idle." + zone}, atLeast: upstreamTakes, below: askedAgain}},
		logs:  []line{{`level=DEBUG msg="dns lookup was slow"`, "name=first.idle." + zone + " "}},
		still: []string{kept, orphaned, timeouts, failures, again},
	},
	{
		title: "Collisions, and fast answers",
		story: "A and AAAA leave one socket together and are sent to different backends. The kernel keeps the loser\n" +
			"for a second, the answers come in time, and the user notices nothing. The agent does.",
		hold: 2,
		asks: []ask{{pod: plain, names: []string{"git." + zone}, count: 5, below: askedAgain}},
		logs: []line{
			{`level=DEBUG msg="dns queries collided"`, "answered=true"},
			{`level=INFO msg="dns works, and could work better" advice=random_backends`, "nameserver=10.96.0.10:53", "evidence=", "remedy="},
		},
		moved: []string{kept, resolved},
		still: []string{orphaned, timeouts, failures, again},
	},
	{
		title: "The idle cluster, with a collision",
		story: "The same 1.2 s; but after one second the loser's entry is gone. Its answer reaches the pod from an\n" +
			"address that musl never asked, musl ignores it, waits, and asks again.",
		hold:  2,
		asks:  []ask{{pod: plain, names: []string{"second.idle." + zone}, atLeast: 3600 * time.Millisecond}},
		logs:  []line{lost(plain, "orphaned_answer", "name=second.idle."+zone+" ", "nameserver=10.96.0.10:53 ", "backend=10.244.3.")},
		moved: []string{of(timeouts, plain, "orphaned_answer"), orphaned, again, resolved},
		still: []string{kept, failures},
	},
	{
		title: "Two nameservers that are translated to the same backends",
		story: "musl asks both at once from one socket. Two answers would have the same way back, so the kernel drops\n" +
			"what would cause it. It says neither whose packets they were nor what they asked; the agent does.",
		hold: 4,
		asks: []ask{{pod: twoNameservers, names: []string{"git." + zone}, atLeast: 2400 * time.Millisecond}},
		logs: []line{
			lost(twoNameservers, "collision_dropped", "name=git."+zone+" "),
			{`level=WARN msg="conntrack dropped packets"`, "remedy="},
		},
		moved: []string{of(timeouts, twoNameservers, "collision_dropped"), again, dropped, refused},
		still: []string{orphaned, failures},
	},
	{
		title: "No IPv6 address, and a server that says it wrong",
		story: "Both names have an IPv4 address, and the pod gets it. For IPv6 one server answers \"no such name\" and\n" +
			"one fails. musl believes them about the whole name.",
		asks: []ask{
			{pod: plain, names: []string{"lb." + zone}, below: askedAgain, fails: true},
			{pod: second, names: []string{"old." + zone}, atLeast: 4900 * time.Millisecond, fails: true},
		},
		logs: []line{
			failed(plain, "family_mismatch", "name=lb."+zone+" qtype=AAAA", "NXDOMAIN"),
			failed(second, "family_mismatch", "name=old."+zone+" qtype=AAAA", "SERVFAIL"),
		},
		moved: []string{of(failures, plain, "family_mismatch"), of(failures, second, "family_mismatch"), again},
		still: []string{kept, orphaned, timeouts},
	},
	{
		title: "ndots:5 and a search list",
		story: "Names with two dots are first tried with each of four search domains: eight useless questions. (The agent\n" +
			"knows the whole list by the second name.) In the other pod one search domain has a wildcard without an\n" +
			"address, and musl goes no further.",
		asks: []ask{
			{pod: searching, names: jobNames, lookups: 10, below: askedAgain},
			{pod: stopping, names: jobNames[1:], lookups: 8, below: askedAgain, fails: true},
		},
		logs: []line{
			{
				`level=INFO msg="dns works, and could work better" advice=search_amplification namespace=ci pod=` + searching + " ",
				"." + zone + " count=", "evidence=", "remedy=",
			},
			failed(stopping, "search_stopped", "name=git.example.de.wildcard.test. qtype="),
		},
		moved: []string{wasted, of(failures, stopping, "search_stopped")},
		still: []string{kept, orphaned, timeouts, again},
	},
	{
		title: "NodeLocal DNSCache",
		story: "A cache on the node takes DNS out of conntrack: nothing collides any more, and who watches conntrack alone\n" +
			"sees nothing any more. The agent says so, and still sees the packets: now the cache's upstream is silent.",
		set: (*stage).addNodeLocal,
		asks: []ask{
			{pod: cached, names: []string{"git." + zone}, below: askedAgain},
			{pod: cached, names: []string{"silent." + zone}, atLeast: 4900 * time.Millisecond, fails: true},
		},
		check: (*stage).untracked,
		logs: []line{
			{`level=WARN msg="sensor is blind" sensor=conntrack reason=notrack`, "evidence=", "remedy="},
			lost(cached, "slow_answer", "name=silent."+zone+" ", "nameserver="+nodeLocal.String()+":53 "),
			{`level=WARN msg="dns lookup lost" cause=server_silent host=true resolver=`, "name=silent." + zone + " ", "client=172.18.0.2:", "evidence=", "remedy="}, // the cache's own
		},
		moved: []string{blind, of(timeouts, cached, "slow_answer"), timeouts + `{cause="server_silent",resolver=`, again},
		still: []string{kept, orphaned, failures, dropped},
	},
}
