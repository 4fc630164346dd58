package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/workload"
)

// attrs are the keys and values of a log line.
type attrs []any

func (a *attrs) add(key string, value any) { *a = append(*a, key, value) }

// text adds what is known.
func (a *attrs) text(key, value string) {
	if value != "" {
		a.add(key, value)
	}
}

// addr adds what is known.
func (a *attrs) addr(key string, value netip.AddrPort) {
	if value.IsValid() {
		a.add(key, value)
	}
}

// tuple adds a flow's original direction.
func (a *attrs) tuple(t conntrack.Tuple) {
	a.add("client", t.Source)
	a.add("nameserver", t.Destination)
	if t.Zone != 0 {
		a.add("zone", t.Zone)
	}
}

// workload adds whose a client is.
func (a *attrs) workload(w workload.Workload) {
	a.text("namespace", w.Namespace)
	a.text("pod", w.Pod)
	a.text("container", w.Container)
	a.text("process", w.Process)
	if w.Host {
		a.add("host", true)
	}
}

func (r *reporter) logIncident(in incident.Incident) {
	var a attrs
	a.add("cause", in.Cause)
	a.workload(in.Workload)
	a.text("resolver", string(in.Resolver))
	a.text("name", in.Name)
	a.text("qtype", in.Type)
	a.addr("client", in.Client)
	a.addr("nameserver", in.Nameserver)
	a.addr("backend", in.Backend)
	if in.Attempts > 0 {
		a.add("attempts", in.Attempts)
	}
	// A lower bound is no time that the client waited.
	if in.WaitedExact {
		a.add("waited", in.Waited.Round(time.Millisecond))
	}
	a.add("count", in.Count)
	a.add("evidence", in.Evidence)
	a.add("remedy", in.Remedy)
	if in.Cause.Timeout() {
		r.log.Warn("dns lookup lost", a...)
	} else {
		r.log.Warn("dns lookup failed", a...)
	}
}

func (r *reporter) logAdvice(v incident.Advice) {
	var a attrs
	a.add("advice", v.Topic)
	a.workload(v.Workload)
	if v.Topic == incident.SearchAmplification && v.Workload.Pod == "" {
		a.text("client", v.Client.Addr().String())
	}
	a.addr("nameserver", v.Nameserver)
	a.text("name", v.Name)
	a.add("count", v.Count)
	a.add("evidence", v.Evidence)
	a.add("remedy", v.Remedy)
	r.log.Info("dns works, and could work better", a...)
}

func (r *reporter) logSlow(l lookup.Lookup) {
	var a attrs
	a.text("resolver", string(l.Resolver))
	a.add("name", l.Name)
	a.add("qtype", l.Type)
	a.add("client", l.Client.Addr)
	a.add("nameserver", l.Nameserver)
	a.add("outcome", l.Outcome)
	a.add("waited", l.End.Sub(l.Start).Round(time.Millisecond))
	r.log.Debug("dns lookup was slow", a...)
}

func (r *reporter) logUnseen(l lookup.Loss) {
	r.log.Warn("dns packets lost",
		"packets", l.Packets, "from", l.From, "to", l.To,
		"evidence", "the ring had no room for them: what happened in this time is uncertain",
		"remedy", "give the agent more CPU when this goes on")
}

// sayInexact says once why the lines about orphaned answers lack a time.
func (r *reporter) sayInexact() {
	if !r.inexactSaid {
		r.inexactSaid = true
		r.log.Info("waiting times are not known exactly",
			"evidence", "the kernel does not note when an entry began",
			"remedy", "set net.netfilter.nf_conntrack_timestamp=1")
	}
}

func (r *reporter) logCollision(c conntrack.Collision) {
	var a attrs
	a.tuple(c.Original)
	a.add("loser", c.Loser)
	a.addr("winner", c.Winner)
	a.add("answered", c.Answered)
	r.log.Debug("dns queries collided", a...)
}

func (r *reporter) logSlowFlow(s conntrack.SlowFlow) {
	var a attrs
	a.tuple(s.Original)
	a.addr("backend", s.Backend)
	a.add("witness", s.Witness.String())
	r.log.Debug("dns flow was slow", a...)
}

// logRetry names a client that asked again. It is what a drop, which the kernel
// lays to nobody, can be laid to.
func (r *reporter) logRetry(v retry) {
	var a attrs
	a.tuple(v.Original)
	a.addr("backend", v.Backend)
	a.add("witness", v.Witness.String())
	a.add("count", v.count)
	evidence := "a question in this flow has no answer"
	if v.Witness == conntrack.AfterDrop {
		evidence = "it asked again after more than two seconds, shortly after conntrack dropped packets: most likely its own"
	}
	a.add("evidence", evidence)
	r.log.Info("dns client asked again", a...)
}

func (r *reporter) logDrop(d conntrack.Drop) {
	evidence := []string{"the kernel does not tell whose packets they were, nor that they were DNS"}
	var remedies []string
	if d.Clash > 0 {
		evidence = append(evidence, fmt.Sprintf("%d collided with another entry and could not be kept (insert_failed)", d.Clash))
		remedies = append(remedies, "the usual DNS case is musl, which asks all nameservers at once from one socket: "+
			"keep only one nameserver in resolv.conf that is translated to the same backends")
	}
	if d.TableFull > 0 {
		evidence = append(evidence, fmt.Sprintf("%d found no room for an entry (drop without insert_failed)", d.TableFull))
		remedies = append(remedies, "raise net.netfilter.nf_conntrack_max, or find what fills the table with conntrack -L")
	}
	if d.ChainTooLong > 0 {
		evidence = append(evidence, fmt.Sprintf("%d met a hash chain that was too long (chaintoolong)", d.ChainTooLong))
		remedies = append(remedies, "raise net.netfilter.nf_conntrack_buckets")
	}
	if d.Evicted > 0 {
		evidence = append(evidence, fmt.Sprintf("%d entries were removed to make room (early_drop)", d.Evicted))
	}
	r.log.Warn("conntrack dropped packets",
		"clash", d.Clash, "table_full", d.TableFull, "chain_too_long", d.ChainTooLong, "evicted", d.Evicted,
		"entries", d.Entries, "limit", d.Limit,
		"evidence", strings.Join(evidence, "; "), "remedy", strings.Join(remedies, "; "))
}

func (r *reporter) logEviction(d conntrack.Drop) {
	r.log.Info("conntrack table is full, entries were removed to make room",
		"evicted", d.Evicted, "entries", d.Entries, "limit", d.Limit,
		"evidence", "early_drop rose; no packet was dropped",
		"remedy", "raise net.netfilter.nf_conntrack_max before packets are dropped")
}

func (r *reporter) logLoss(l conntrack.Loss) {
	r.log.Warn("conntrack messages lost",
		"messages", l.Messages, "from", l.From, "to", l.To,
		"evidence", "the kernel could not queue them for the agent: what happened in this time is uncertain",
		"remedy", "give the agent more CPU when this goes on")
}

func (r *reporter) logUnlogged(findings uint64) {
	r.log.Warn("findings were not logged",
		"findings", findings,
		"evidence", "the log was slower than the findings came; the metrics count them")
}

func (r *reporter) logBlindness(sensor, reason string, blind bool, evidence, remedy string) {
	var a attrs
	a.add("sensor", sensor)
	a.add("reason", reason)
	a.text("evidence", evidence)
	if !blind {
		r.log.Info("sensor sees again", a...)
		return
	}
	a.text("remedy", remedy)
	r.log.Warn("sensor is blind", a...)
}
