package incident

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// ms is a time of a lookup that began at when.
func ms(n float64) time.Time { return when.Add(time.Duration(n * float64(time.Millisecond))) }

// sights are the same packet at several times.
func sights(link string, from, to netip.AddrPort, at ...float64) []lookup.Sight {
	var all []lookup.Sight
	for _, t := range at {
		all = append(all, lookup.Sight{At: ms(t), LinkName: link, From: from, To: to})
	}
	return all
}

func asked(at ...float64) []lookup.Sight            { return sights("cali1", client, nameserver, at...) }
func left(at ...float64) []lookup.Sight             { return sights("eth0", client, loser, at...) }
func entered(at ...float64) []lookup.Sight          { return sights("eth0", loser, client, at...) }
func backends(b ...lookup.Backend) []lookup.Backend { return b }

func answers(from netip.AddrPort, at ...float64) []lookup.Answer {
	var all []lookup.Answer
	for _, s := range sights("cali1", from, client, at...) {
		all = append(all, lookup.Answer{Sight: s, Outcome: lookup.NoError, Acceptable: from == nameserver})
	}
	return all
}

// musl is a lookup of musl that asked again after 2.5 seconds.
func musl(change func(*lookup.Lookup)) lookup.Lookup {
	l := lookup.Lookup{
		Client:     lookup.Client{Addr: client, Link: 7, LinkName: "cali1"},
		Nameserver: nameserver, Name: "git.example.de.", Type: lookup.AAAA, Resolver: lookup.Musl,
		Start: when, End: ms(10_000), Outcome: lookup.Timeout, TimedOut: true,
		Asked: asked(0, 2500), Attempts: 2,
	}
	change(&l)
	return l
}

// saved makes it one that the retry saved, at a time.
func saved(l *lookup.Lookup, at float64) {
	l.Outcome, l.End = lookup.NoError, ms(at)
	l.Answers = append(l.Answers, answers(nameserver, at)...)
}

func TestJudgeTimeout(t *testing.T) {
	full := conntrack.Drop{From: ms(-400), To: ms(600), TableFull: 3, Entries: 100, Limit: 100}
	clash := conntrack.Drop{From: ms(-400), To: ms(600), Clash: 3}
	tests := []struct {
		name     string
		lookup   lookup.Lookup
		around   Surroundings
		want     Cause
		backend  netip.AddrPort
		remedy   string // "" for any
		evidence string
	}{
		{
			name: "stranger at the client's link",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1, 2500.1), entered(1500)
				l.Answers = answers(loser, 1500.2)
				saved(l, 4000)
			}),
			want: OrphanedAnswer, backend: loser,
			evidence: "answer arrived from 10.244.3.2:53 1.5s after the question; its conntrack entry had lived 1s",
		},
		{
			name: "stranger, and conntrack knows the winner",
			lookup: musl(func(l *lookup.Lookup) {
				l.Answers = answers(loser, 1500)
			}),
			around: Surroundings{Orphans: []conntrack.Orphan{{Time: ms(1500), Original: tuple, Backend: loser, Winner: winner}}},
			want:   OrphanedAnswer, backend: loser,
			evidence: "answer arrived from 10.244.3.2:53 1.5s after the question; its conntrack entry had lived 1s; the question that it collided with went to 10.244.3.3:53",
		},
		{
			name: "a policy dropped the late answer",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1), entered(1500)
			}),
			around: Surroundings{Unanswered: []conntrack.Collision{{Time: ms(1000), Original: tuple, Loser: loser}}},
			want:   OrphanedAnswer, backend: loser,
			evidence: "answer came in from 10.244.3.2:53 by eth0 1.5s after the question; its conntrack entry had lived 1s, and without it the node dropped the answer",
		},
		{
			name: "an unknown stranger proves nothing",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Answers = answers(netip.MustParseAddrPort("192.0.2.66:53"), 3)
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s and gave up",
		},
		{
			name: "conntrack dropped it", lookup: musl(func(l *lookup.Lookup) { saved(l, 2501) }),
			around: Surroundings{Drops: []conntrack.Drop{{From: ms(-2000), To: ms(-1000), TableFull: 9}, clash}}, want: CollisionDropped,
			evidence: "the question came in by cali1 and was not seen leaving the node; at that time conntrack dropped 3 packets, 3 of them because their entries collided (insert_failed); the client asked again after 2.5s",
		},
		{
			name:   "the table is full",
			lookup: musl(func(l *lookup.Lookup) { l.Left = left(2500.1); saved(l, 2501); l.Entered = entered(2500.9) }),
			around: Surroundings{Drops: []conntrack.Drop{full}}, want: TableFull,
			evidence: "the question came in by cali1 and was not seen leaving the node; at that time conntrack dropped 3 packets, 3 of them because the table was full (100 entries of 100); the client asked again after 2.5s",
		},
		{
			name: "dropped on its way out", lookup: musl(func(*lookup.Lookup) {}), want: DroppedOnNode,
			evidence: "the question came in by cali1 and was not seen leaving the node; conntrack dropped nothing at that time; the client asked again after 2.5s and gave up",
		},
		{
			name: "dropped, and conntrack is blind", lookup: musl(func(*lookup.Lookup) {}), around: Surroundings{Blind: "no_statistics"}, want: DroppedOnNode,
			evidence: "the question came in by cali1 and was not seen leaving the node; conntrack cannot tell: no_statistics; the client asked again after 2.5s and gave up",
		},
		{
			name:   "the answer was dropped on its way in",
			lookup: musl(func(l *lookup.Lookup) { l.Left, l.Entered = left(0.1, 2500.1), entered(3, 2503) }),
			want:   DroppedOnNode, backend: loser,
			evidence: "the answer from 10.244.3.2:53 came in by eth0 3ms after the question and never went out on the client's link cali1; the client asked again after 2.5s and gave up",
		},
		{
			name: "one backend answers nothing",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Backends = backends(lookup.Backend{Addr: loser, Answered: ms(-60000), Unanswered: 2}, lookup.Backend{Addr: winner, Answered: ms(1)})
			}),
			want: StaleBackend, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; 10.244.3.2:53 has answered nothing for 10s or more (2 questions since), while 10.244.3.3:53 answered; the client asked again after 2.5s and gave up",
		},
		{
			name: "it never answered, another one did shortly before",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Backends = backends(lookup.Backend{Addr: loser, Unanswered: 2}, lookup.Backend{Addr: winner, Answered: ms(-5000)})
			}),
			want: StaleBackend, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; 10.244.3.2:53 has answered nothing for 10s or more (2 questions since), while 10.244.3.3:53 answered; the client asked again after 2.5s and gave up",
		},
		{
			name: "both answered shortly before",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Backends = backends(lookup.Backend{Addr: loser, Answered: ms(-5000), Unanswered: 2}, lookup.Backend{Addr: winner, Answered: ms(-4000)})
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s and gave up",
		},
		{
			name: "another one did shortly before, and is silent as well",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Backends = backends(lookup.Backend{Addr: loser, Unanswered: 2}, lookup.Backend{Addr: winner, Answered: ms(-5000), Unanswered: 1})
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s and gave up",
		},
		{
			name: "it answers others",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Backends = backends(lookup.Backend{Addr: loser, Answered: ms(100), Unanswered: 2}, lookup.Backend{Addr: winner, Answered: ms(1)})
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s and gave up",
		},
		{
			name: "ICMP says so",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Unreachable = sights("eth0", netip.AddrPortFrom(loser.Addr(), 0), loser, 1)
			}),
			want: StaleBackend, backend: loser,
			evidence: "10.244.3.2 answered that 10.244.3.2:53 is unreachable (ICMP); the client asked again after 2.5s and gave up",
		},
		{
			name: "nothing is behind the service, and a rule rejects it",
			lookup: musl(func(l *lookup.Lookup) {
				l.Unreachable = sights("cali1", netip.AddrPortFrom(nameserver.Addr(), 0), nameserver, 1)
			}),
			want: StaleBackend, backend: netip.AddrPort{}, remedy: noEndpointsRemedy,
			evidence: "10.96.0.10 answered that 10.96.0.10:53 is unreachable (ICMP); the client asked again after 2.5s and gave up",
		},
		{
			name: "a chain too long", lookup: musl(func(*lookup.Lookup) {}),
			around: Surroundings{Drops: []conntrack.Drop{{From: ms(-400), To: ms(600), ChainTooLong: 2}}}, want: DroppedOnNode, remedy: chainRemedy,
			evidence: "the question came in by cali1 and was not seen leaving the node; at that time conntrack dropped 2 packets, because a chain of its hash table was too long (chaintoolong); the client asked again after 2.5s and gave up",
		},
		{
			name: "the orphan is the other half's: this one went to the winner, which is slow",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = sights("eth0", client, winner, 0.1, 2500.1), sights("eth0", winner, client, 3000, 5500)
				saved(l, 3000.1)
			}),
			around: Surroundings{Orphans: []conntrack.Orphan{{Time: ms(1500), Original: tuple, Backend: loser, Winner: winner}}},
			want:   SlowAnswer, backend: winner,
			evidence: "the answer of 10.96.0.10:53 came 3s after the question, and another for the second question; the client had asked again after 2.5s",
		},
		{
			name: "a policy drops answers, this one in time: the collision is not to blame",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1), entered(3)
			}),
			around: Surroundings{Unanswered: []conntrack.Collision{{Time: ms(1000), Original: tuple, Loser: loser}}},
			want:   DroppedOnNode, backend: loser,
			evidence: "the answer from 10.244.3.2:53 came in by eth0 3ms after the question and never went out on the client's link cali1; the client asked again after 2.5s and gave up",
		},
		{
			name: "one question, seen on a VLAN and on what it is on",
			lookup: musl(func(l *lookup.Lookup) {
				l.Asked, l.Attempts = asked(0), 2
				l.Left = append(left(0.1), sights("eth0.100", client, loser, 0.1)...)
				l.Backends = backends(lookup.Backend{Addr: loser, Unanswered: 2}, lookup.Backend{Addr: winner, Answered: ms(1)})
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client gave up",
		},
		{
			name: "one answer to the retry, seen on both",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Entered = append(entered(2501), sights("eth0.100", loser, client, 2501)...)
				saved(l, 2501.1)
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s",
		},
		{
			name: "asked three times: the first attempt counts",
			lookup: musl(func(l *lookup.Lookup) {
				l.Asked = asked(0, 2500, 5000)
				l.Left, l.Entered = left(2500.1, 5000.1), entered(2501, 5001)
				saved(l, 5001.2)
			}),
			want:     DroppedOnNode,
			evidence: "the question came in by cali1 and was not seen leaving the node; conntrack dropped nothing at that time; the client asked again after 2.5s",
		},
		{
			name: "the first question was lost at the server, the second answered at once",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1, 2500.1), entered(2501)
				saved(l, 2501.1)
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s",
		},
		{
			name: "the same with two nameservers that both answered the second",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left = left(0.1, 2500.1)
				l.Entered = append(entered(2501), sights("eth0", winner, client, 2501)...)
				saved(l, 2501.1)
			}),
			want: ServerSilent, backend: loser,
			evidence: "the question left by eth0 for 10.244.3.2:53, and nothing came back; the client asked again after 2.5s",
		},
		{
			name: "slow, both were answered",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1, 2500.1), entered(2550, 5050)
				saved(l, 2550.1)
			}),
			want: SlowAnswer, backend: loser,
			evidence: "the answer of 10.96.0.10:53 came 2.55s after the question, and another for the second question; the client had asked again after 2.5s",
		},
		{
			name: "slow, and one answer",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1, 2500.1), entered(3000)
				saved(l, 3000.1)
			}),
			want: SlowAnswer, backend: loser,
			evidence: "the answer of 10.96.0.10:53 came 3s after the question, and no other; the client had asked again after 2.5s",
		},
		{
			name: "too late",
			lookup: musl(func(l *lookup.Lookup) {
				l.Left, l.Entered = left(0.1, 2500.1), entered(6000, 8500)
				l.Answers = answers(nameserver, 6000.1, 8500.1)
			}),
			want: SlowAnswer, backend: loser,
			evidence: "the answer of 10.96.0.10:53 came 6s after the question, and another for the second question; the client had asked again after 2.5s",
		},
		{
			name: "NodeLocal failed, late",
			lookup: musl(func(l *lookup.Lookup) {
				l.LocalNameserver, l.Answers = true, answers(nameserver, 6000)
				l.Answers[0].Outcome = lookup.ServFail
			}),
			want:     SlowAnswer,
			evidence: "the answer SERVFAIL of 10.96.0.10:53 came 6s after the question, and no other; the client had asked again after 2.5s",
		},
		{
			name:   "NodeLocal is silent",
			lookup: musl(func(l *lookup.Lookup) { l.LocalNameserver = true }), want: ServerSilent,
			evidence: "10.96.0.10:53 gave no answer; questions to it are not seen leaving the node, so its server is on the node itself, or listens on a port that is not in names.ports; the client asked again after 2.5s and gave up",
		},
		{
			name:   "NodeLocal is slow",
			lookup: musl(func(l *lookup.Lookup) { l.LocalNameserver = true; saved(l, 3000) }), want: SlowAnswer,
			evidence: "the answer of 10.96.0.10:53 came 3s after the question, and no other; the client had asked again after 2.5s",
		},
		{
			name:   "nobody knows",
			lookup: musl(func(l *lookup.Lookup) { l.Uncertain = true }), around: Surroundings{Drops: []conntrack.Drop{full}}, want: Unknown,
			evidence: "packets were not seen, or forgotten already, in the time of this lookup; the client asked again after 2.5s and gave up",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Judge(tt.lookup, workload.Workload{Pod: "p"}, tt.around)
			if len(got) != 1 {
				t.Fatalf("%d incidents, want one", len(got))
			}
			in := got[0]
			if in.Cause != tt.want || in.Backend != tt.backend {
				t.Errorf("cause %s, backend %v; want %s, %v", in.Cause, in.Backend, tt.want, tt.backend)
			}
			if diff := cmp.Diff(tt.evidence, in.Evidence); diff != "" {
				t.Errorf("evidence (-want +got):\n%s", diff)
			}
			if tt.remedy != "" && in.Remedy != tt.remedy {
				t.Errorf("remedy %q, want %q", in.Remedy, tt.remedy)
			}
			if in.Remedy == "" || in.Name != "git.example.de." || in.Type != "AAAA" || in.Attempts != 2 || in.Workload.Pod != "p" || in.Count != 1 {
				t.Errorf("incident %+v lacks something", in)
			}
		})
	}
}

func TestWaited(t *testing.T) {
	for _, tt := range []struct {
		lookup lookup.Lookup
		want   time.Duration
	}{
		{musl(func(*lookup.Lookup) {}), 5 * time.Second}, // musl gave up then
		{musl(func(l *lookup.Lookup) { saved(l, 2501) }), 2501 * time.Millisecond},
		{musl(func(l *lookup.Lookup) { l.Resolver = lookup.Glibc }), 10 * time.Second},
	} {
		if got := Judge(tt.lookup, workload.Workload{}, Surroundings{})[0].Waited; got != tt.want {
			t.Errorf("waited %v, want %v", got, tt.want)
		}
	}
}

func TestJudgeFailure(t *testing.T) {
	answered := func(name string, outcome lookup.Outcome, change func(*lookup.Lookup)) lookup.Lookup {
		return musl(func(l *lookup.Lookup) {
			l.Name, l.Outcome, l.TimedOut, l.Attempts, l.Asked, l.End = name, outcome, false, 1, asked(0), ms(1)
			if change != nil {
				change(l)
			}
		})
	}
	pair := func(o lookup.Outcome) func(*lookup.Lookup) {
		return func(l *lookup.Lookup) { l.Pair = &lookup.Pair{Type: lookup.A, Outcome: o, Attempts: 1} }
	}
	step := func(name string) lookup.Step {
		return lookup.Step{Name: name, A: lookup.NXDomain, AAAA: lookup.NXDomain}
	}
	inPod := workload.Workload{Search: []string{"ci.svc.cluster.local", "example.net"}}
	tests := []struct {
		name     string
		lookup   lookup.Lookup
		workload workload.Workload
		want     Cause // "" for none
		evidence string
	}{
		{name: "NXDOMAIN", lookup: answered("x.", lookup.NXDomain, nil)},
		{name: "NODATA for one family", lookup: answered("x.", lookup.NoData, pair(lookup.NoError))},
		{name: "both say NXDOMAIN", lookup: answered("x.", lookup.NXDomain, pair(lookup.NXDomain))},
		{
			name: "one says NXDOMAIN", lookup: answered("x.", lookup.NXDomain, pair(lookup.NoError)), want: FamilyMismatch,
			evidence: "NXDOMAIN for AAAA, while A had an answer; musl then takes the whole name as not found",
		},
		{
			name: "one fails", want: FamilyMismatch,
			lookup:   answered("x.", lookup.ServFail, func(l *lookup.Lookup) { pair(lookup.NoError)(l); l.Attempts = 12 }),
			evidence: "SERVFAIL for AAAA (asked 12 times), while A had an answer; musl then fails for the whole name (EAI_AGAIN)",
		},
		{
			name:   "glibc does not mind NXDOMAIN",
			lookup: answered("x.", lookup.NXDomain, func(l *lookup.Lookup) { pair(lookup.NoError)(l); l.Resolver = lookup.Glibc }),
		},
		{
			name: "glibc, SERVFAIL", want: ServerFailure,
			lookup:   answered("x.", lookup.ServFail, func(l *lookup.Lookup) { pair(lookup.NoError)(l); l.Resolver = lookup.Glibc }),
			evidence: "10.96.0.10:53 answered SERVFAIL",
		},
		{
			name: "packets did not tell, /proc did", workload: workload.Workload{Libc: "musl"}, want: FamilyMismatch,
			lookup:   answered("x.", lookup.NXDomain, func(l *lookup.Lookup) { pair(lookup.NoError)(l); l.Resolver = lookup.Other }),
			evidence: "NXDOMAIN for AAAA, while A had an answer; musl then takes the whole name as not found",
		},
		{
			name: "both fail", lookup: answered("x.", lookup.ServFail, pair(lookup.ServFail)), want: ServerFailure,
			evidence: "10.96.0.10:53 answered SERVFAIL",
		},
		{name: "refused", lookup: answered("x.", lookup.Refused, nil), want: ServerFailure, evidence: "10.96.0.10:53 answered REFUSED"},
		{
			name: "truncated", lookup: answered("x.", lookup.NoData, func(l *lookup.Lookup) { l.Truncated = true }), want: Truncated,
			evidence: "the answer of 10.96.0.10:53 was truncated (TC), and the client did not ask by TCP within two seconds",
		},
		{name: "truncated, and then TCP", lookup: answered("x.", lookup.NoError, func(l *lookup.Lookup) { l.Truncated, l.TCP = true, true })},
		{
			name: "a search domain has no data", want: SearchStopped,
			lookup: answered("git.example.de.example.net.", lookup.NoData, func(l *lookup.Lookup) {
				l.Type = lookup.A
				l.Pair = &lookup.Pair{Type: lookup.AAAA, Outcome: lookup.NoData}
				l.Search = []lookup.Step{step("git.example.de.ci.svc.cluster.local.")}
			}),
			evidence: "10.96.0.10:53 answered NODATA for git.example.de.example.net. (after git.example.de.ci.svc.cluster.local., which does not exist); " +
				"musl goes on to the next search domain only after NXDOMAIN, so it stopped there",
		},
		{
			name: "its other half is the same search",
			lookup: answered("git.example.de.example.net.", lookup.NoData, func(l *lookup.Lookup) {
				pair(lookup.NoData)(l)
				l.Search = []lookup.Step{step("git.example.de.ci.svc.cluster.local.")}
			}),
		},
		{
			name:   "the search went on",
			lookup: answered("git.example.de.example.net.", lookup.NoData, func(l *lookup.Lookup) { l.Search, l.SearchWentOn = []lookup.Step{step("git.example.de.x.")}, true }),
		},
		{
			name:   "the last name is the one that was meant",
			lookup: answered("git.example.de.", lookup.NoData, func(l *lookup.Lookup) { l.Search = []lookup.Step{step("git.Example.de.example.net.")} }),
		},
		{
			name: "a slow answer for one family, of a name that has the other", workload: inPod,
			lookup: answered("git.example.de.CI.svc.cluster.local.", lookup.NoData, func(l *lookup.Lookup) {
				pair(lookup.NoError)(l)
				l.Slow, l.Search = true, []lookup.Step{step("git.example.de.x.")}
			}),
		},
		{
			name: "the very first search domain", workload: inPod, want: SearchStopped,
			lookup:   answered("git.example.de.CI.svc.cluster.local.", lookup.NoData, nil),
			evidence: "10.96.0.10:53 answered NODATA for git.example.de.CI.svc.cluster.local. (a domain of the pod's search list; unless that very name was meant); musl goes on to the next search domain only after NXDOMAIN, so it stopped there",
		},
		{name: "a service without endpoints", workload: inPod, lookup: answered("db.ci.svc.cluster.local.", lookup.NoData, nil)},
		{
			name: "a search domain fails", want: SearchStopped,
			lookup: answered("git.example.de.example.net.", lookup.ServFail, func(l *lookup.Lookup) {
				l.Type, l.Search = lookup.A, []lookup.Step{step("git.example.de.ci.svc.cluster.local.")}
			}),
			evidence: "10.96.0.10:53 answered SERVFAIL for git.example.de.example.net. (after git.example.de.ci.svc.cluster.local., which does not exist); " +
				"musl goes on to the next search domain only after NXDOMAIN, so it stopped there",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Judge(tt.lookup, tt.workload, Surroundings{})
			if tt.want == "" {
				if len(got) != 0 {
					t.Errorf("an incident: %+v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Cause != tt.want {
				t.Fatalf("incidents %+v, want %s", got, tt.want)
			}
			if diff := cmp.Diff(tt.evidence, got[0].Evidence); diff != "" {
				t.Errorf("evidence (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBoth: a lookup that was lost at first and failed in the end is both.
func TestBoth(t *testing.T) {
	l := musl(func(l *lookup.Lookup) { l.Outcome, l.End, l.Resolver = lookup.ServFail, ms(2501), lookup.Glibc })
	var causes []string
	for _, in := range Judge(l, workload.Workload{}, Surroundings{}) {
		causes = append(causes, string(in.Cause))
	}
	if got := strings.Join(causes, " "); got != "dropped_on_node server_failure" {
		t.Errorf("causes %q", got)
	}
}
