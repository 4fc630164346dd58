package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// reported is a reporter in a synctest bubble, with its log.
type reported struct {
	*reporter
	t    *testing.T
	logs *logs
}

// expect compares what was logged since the last call.
func (r reported) expect(want ...string) {
	r.t.Helper()
	synctest.Wait()
	expect(r.t, r.logs.take(), want...)
}

// report runs a reporter in a bubble.
func report(t *testing.T, level slog.Level, test func(reported)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := reported{t: t, logs: &logs{}}
		r.reporter = newReporter(NewLogger(r.logs, LogConfig{Level: Level(level), Format: Text}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run()
		}()
		test(r)
		r.close()
		<-done
	})
}

const orphanLine = `level=WARN msg="dns lookup lost" cause=orphaned_answer client=%s nameserver=10.96.0.10:53 backend=10.244.3.2:53 %scount=%d ` +
	`evidence="answer arrived from 10.244.3.2:53 %s after the question; its conntrack entry had lived 1s" ` +
	`remedy="set sessionAffinity: ClientIP on the DNS Service, so that both questions of a pair go to one backend; or run NodeLocal DNSCache, which takes DNS out of conntrack"`

func TestReportIncident(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		line := func(count int) string {
			return fmt.Sprintf(orphanLine, "10.244.1.2:41000", "waited=1.5s ", count, "1.5s")
		}
		r.take(incident.FromOrphan(orphan()))
		r.expect(line(1))
		for range 3 {
			pass(time.Second)
			r.take(incident.FromOrphan(orphan()))
		}
		pass(7*time.Second - 1)
		r.expect()
		pass(1)
		r.expect(line(3))
	})
}

// TestReportLookup has the line of the design.
func TestReportLookup(t *testing.T) {
	in := incident.Incident{
		Cause: incident.OrphanedAnswer, Client: original.Source, Nameserver: original.Destination, Backend: loser,
		Workload: workload.Workload{Namespace: "ci", Pod: "runner-x7-project-42", Container: "helper"}, Resolver: lookup.Musl,
		Name: "git.example.de.", Type: "AAAA", Attempts: 2, Waited: 2500 * time.Millisecond, WaitedExact: true, Count: 1,
		Evidence: "seen", Remedy: "do",
	}
	report(t, slog.LevelInfo, func(r reported) {
		r.take(in)
		r.expect(`level=WARN msg="dns lookup lost" cause=orphaned_answer namespace=ci pod=runner-x7-project-42 container=helper resolver=musl ` +
			`name=git.example.de. qtype=AAAA client=10.244.1.2:41000 nameserver=10.96.0.10:53 backend=10.244.3.2:53 attempts=2 waited=2.5s count=1 evidence=seen remedy=do`)
		in.Cause, in.WaitedExact, in.Workload.Host = incident.ServerFailure, false, true
		r.take(in)
		r.expect(`level=WARN msg="dns lookup failed" cause=server_failure namespace=ci pod=runner-x7-project-42 container=helper host=true resolver=musl ` +
			`name=git.example.de. qtype=AAAA client=10.244.1.2:41000 nameserver=10.96.0.10:53 backend=10.244.3.2:53 attempts=2 count=1 evidence=seen remedy=do`)
	})
}

// TestReportAdvice: once in ten minutes.
func TestReportAdvice(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		a, _ := incident.FromTotals(lookup.Totals{Wasted: 8, Name: "git.example.de.", NameWasted: 8}, workload.Workload{Namespace: "ci", Pod: "runner"})
		line := func(count int) string {
			return fmt.Sprintf(`level=INFO msg="dns works, and could work better" advice=search_amplification namespace=ci pod=runner name=git.example.de. count=%d `+
				`evidence="git.example.de. cost 8 useless questions, because it has fewer dots than ndots and the search list comes first" `+
				`remedy="end the name with a dot, or set dnsConfig.options ndots: 1 in the pod"`, count)
		}
		r.take(a)
		r.expect(line(8))
		r.take(a)
		r.take(a)
		pass(adviceWindow - 1)
		r.expect()
		pass(1)
		r.expect(line(16))
	})
}

func TestReportInexactIncident(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		o := orphan()
		o.Exact, o.Lateness = false, time.Second
		r.take(incident.FromOrphan(o))
		o.Original.Source = netip.MustParseAddrPort("10.244.1.3:41001")
		r.take(incident.FromOrphan(o))
		r.expect(
			`level=INFO msg="waiting times are not known exactly" evidence="the kernel does not note when an entry began" remedy="set net.netfilter.nf_conntrack_timestamp=1"`,
			fmt.Sprintf(orphanLine, "10.244.1.2:41000", "", 1, "more than 1s"),
			fmt.Sprintf(orphanLine, "10.244.1.3:41001", "", 1, "more than 1s"))
	})
}

func TestReportDrop(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		r.take(conntrack.Drop{Clash: 2, Entries: 5, Limit: 10})
		r.take(conntrack.Drop{Evicted: 4, Entries: 10, Limit: 10})
		const unknown = "the kernel does not tell whose packets they were, nor that they were DNS; "
		const oneNameserver = "the usual DNS case is musl, which asks all nameservers at once from one socket: keep only one nameserver in resolv.conf that is translated to the same backends"
		r.expect(
			`level=WARN msg="conntrack dropped packets" clash=2 table_full=0 chain_too_long=0 evicted=0 entries=5 limit=10 evidence="`+unknown+
				`2 collided with another entry and could not be kept (insert_failed)" remedy="`+oneNameserver+`"`,
			`level=INFO msg="conntrack table is full, entries were removed to make room" evicted=4 entries=10 limit=10 `+
				`evidence="early_drop rose; no packet was dropped" remedy="raise net.netfilter.nf_conntrack_max before packets are dropped"`)

		r.take(conntrack.Drop{Clash: 1, Evicted: 2, Entries: 6, Limit: 10})
		r.take(conntrack.Drop{Clash: 2, TableFull: 3, ChainTooLong: 4, Evicted: 5, Entries: 7, Limit: 10})
		pass(logWindow)
		r.expect(
			`level=WARN msg="conntrack dropped packets" clash=3 table_full=3 chain_too_long=4 evicted=7 entries=7 limit=10 evidence="` + unknown +
				`3 collided with another entry and could not be kept (insert_failed); ` +
				`3 found no room for an entry (drop without insert_failed); 4 met a hash chain that was too long (chaintoolong); ` +
				`7 entries were removed to make room (early_drop)" remedy="` + oneNameserver +
				`; raise net.netfilter.nf_conntrack_max, or find what fills the table with conntrack -L; raise net.netfilter.nf_conntrack_buckets"`)
	})
}

func TestReportLoss(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		at := func(second int) time.Time { return time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC) }
		line := func(messages int, from, to string) string {
			return fmt.Sprintf(`level=WARN msg="conntrack messages lost" messages=%d from=2026-01-02T03:04:%s.000Z to=2026-01-02T03:04:%s.000Z `+
				`evidence="the kernel could not queue them for the agent: what happened in this time is uncertain" `+
				`remedy="give the agent more CPU when this goes on"`, messages, from, to)
		}
		r.take(conntrack.Loss{From: at(1), To: at(2), Messages: 5})
		r.take(conntrack.Loss{From: at(3), To: at(4), Messages: 6})
		r.take(conntrack.Loss{From: at(5), To: at(6), Messages: 7})
		pass(logWindow)
		r.expect(line(5, "01", "02"), line(13, "03", "06"))
	})
}

func TestReportBlindness(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		r.take(conntrack.Blindness{Reason: conntrack.EventsOff, Blind: true, Evidence: "it is 0", Remedy: "set it to 2"})
		r.take(conntrack.Blindness{Reason: conntrack.EventsOff, Evidence: "it is 2", Remedy: "none is needed"})
		r.expect(
			`level=WARN msg="sensor is blind" sensor=conntrack reason=events_off evidence="it is 0" remedy="set it to 2"`,
			`level=INFO msg="sensor sees again" sensor=conntrack reason=events_off evidence="it is 2"`)
	})
}

func TestReportDebug(t *testing.T) {
	zoned := original
	zoned.Zone = 3
	findings := []conntrack.Finding{
		conntrack.Collision{Original: original, Loser: loser, Winner: winner, Answered: true},
		conntrack.Collision{Original: zoned, Loser: loser, Answered: true},
		conntrack.SlowFlow{Original: original, Backend: winner, Witness: conntrack.AfterOrphan},
	}
	report(t, slog.LevelDebug, func(r reported) {
		for _, f := range findings {
			r.take(f)
		}
		const flow = `client=10.244.1.2:41000 nameserver=10.96.0.10:53 `
		r.expect(
			`level=DEBUG msg="dns queries collided" `+flow+`loser=10.244.3.2:53 winner=10.244.3.3:53 answered=true`,
			`level=DEBUG msg="dns queries collided" `+flow+`zone=3 loser=10.244.3.2:53 answered=true`,
			`level=DEBUG msg="dns flow was slow" `+flow+`backend=10.244.3.3:53 witness=after_orphan`)
	})
	report(t, slog.LevelInfo, func(r reported) {
		for _, f := range findings {
			r.take(f)
		}
		r.expect()
	})
}

// TestReportUnanswered: a kept collision without an answer is a lost lookup, and
// a crowd of answered ones does not push it out of the queue.
func TestReportUnanswered(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		for range 3 * queueLength {
			r.take(conntrack.Collision{Original: original, Loser: loser, Winner: winner, Answered: true})
		}
		r.take(incident.FromUnanswered(conntrack.Collision{Original: original, Loser: loser, Winner: winner}))
		r.expect(`level=WARN msg="dns lookup lost" cause=unknown client=10.244.1.2:41000 nameserver=10.96.0.10:53 backend=10.244.3.2:53 count=1 ` +
			`evidence="the question to 10.244.3.2:53 collided; in the one second that its conntrack entry lived no answer came, and none was seen after; the question that it collided with went to 10.244.3.3:53" ` +
			`remedy="look whether 10.244.3.2:53 answers, and whether a network policy drops answers that come late; the collision itself ends with sessionAffinity: ClientIP on the DNS Service"`)
	})
}

// TestReportRetries: one line for each client in ten seconds.
func TestReportRetries(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		const line = `level=INFO msg="dns client asked again" client=10.244.1.2:41000 nameserver=10.96.0.10:53 backend=10.244.3.3:53 `
		r.take(conntrack.SlowFlow{Original: original, Backend: winner, Witness: conntrack.AfterDrop})
		r.expect(line + `witness=after_drop count=1 evidence="it asked again after more than two seconds, shortly after conntrack dropped packets: most likely its own"`)
		for range 3 {
			r.take(conntrack.SlowFlow{Original: original, Backend: winner, Witness: conntrack.Unanswered})
		}
		r.expect()
		pass(logWindow)
		r.expect(line + `witness=unanswered count=3 evidence="a question in this flow has no answer"`)
	})
}

// TestReporterNeverBlocks: the log hangs, findings come, and what the queue
// cannot take is counted.
func TestReporterNeverBlocks(t *testing.T) {
	report(t, slog.LevelInfo, func(r reported) {
		line := func(count int) string {
			return fmt.Sprintf(orphanLine, "10.244.1.2:41000", "waited=1.5s ", count, "1.5s")
		}
		hang := make(chan struct{})
		r.logs.gate = func(string) { <-hang }
		r.take(incident.FromOrphan(orphan()))
		synctest.Wait() // run hangs in the log
		for range queueLength + 5 {
			r.take(incident.FromOrphan(orphan()))
		}
		close(hang)
		r.expect(line(1),
			`level=WARN msg="findings were not logged" findings=5 evidence="the log was slower than the findings came; the metrics count them"`)
		pass(logWindow)
		r.expect(line(queueLength))
	})
}

func TestJSONLog(t *testing.T) {
	var got logs
	log := NewLogger(&got, LogConfig{Level: Level(slog.LevelWarn), Format: JSON})
	log.Info("not this")
	log.Warn("this", "waited", 1500*time.Millisecond)
	lines := got.take()
	if len(lines) != 1 {
		t.Fatalf("lines %q, want one", lines)
	}
	const want = `"level":"WARN","msg":"this","waited":"1.5s"}`
	if line := lines[0]; line[len(line)-len(want):] != want {
		t.Errorf("line %s, want its end to be %s", line, want)
	}
}
