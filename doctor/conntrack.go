package doctor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/conntrack"
)

// fill is how full the table may be, in percent.
const fill = 90

// reading is what the kernel said about connection tracking.
type reading struct {
	release     string
	settings    conntrack.Settings
	settingsErr error

	before, now   conntrack.Statistics // with the time between
	elapsed       time.Duration
	clashResolve  bool // the statistics have it
	statisticsErr error

	exemption    conntrack.Exemption
	exemptionErr error
}

// conntrack reads and judges connection tracking.
func (d *doctor) conntrack(ctx context.Context) []Verdict {
	var r reading
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		r.release = unix.ByteSliceToString(name.Release[:])
	}
	statistics := func() (s conntrack.Statistics) {
		err := d.within(func() (err error) {
			s, r.clashResolve, err = conntrack.ReadStatistics()
			return err
		})
		r.statisticsErr = errors.Join(r.statisticsErr, err)
		return s
	}
	start := time.Now()
	r.before = statistics()
	r.settingsErr = d.within(func() (err error) {
		r.settings, err = conntrack.ReadSettings()
		return err
	})
	r.exemptionErr = d.within(func() (err error) {
		r.exemption, err = conntrack.FindExemption(d.Ports)
		return err
	})
	if r.statisticsErr == nil {
		rest(ctx, d.window-time.Since(start))
		r.now = statistics()
		r.elapsed = time.Since(start)
	}
	return r.verdicts()
}

// verdicts judges a reading. Without connection tracking there is nothing to
// judge but that.
func (r reading) verdicts() []Verdict {
	out := []Verdict{r.kernel()}
	if r.settingsErr == nil && !r.settings.Loaded {
		for _, check := range []string{"conntrack_events", "conntrack_accounting", "conntrack_timestamps", "conntrack_table", "conntrack_drops", "conntrack_exempt"} {
			out = append(out, Verdict{Check: check, State: OK, Evidence: "the kernel does no connection tracking here: nothing can collide"})
		}
		return out
	}
	return append(out, r.events(),
		r.advice("conntrack_accounting", r.settings.Accounting, "nf_conntrack_acct", "nodestead then sees by a flow's own counters that questions were not answered"),
		r.advice("conntrack_timestamps", r.settings.Timestamps, "nf_conntrack_timestamp", "nodestead then knows exactly how late an answer was"),
		r.table(), r.drops(), r.exempt())
}

// kernel trusts what the statistics have over the release: vendors backport.
func (r reading) kernel() Verdict {
	v := Verdict{Check: "kernel", State: OK, Evidence: "Linux " + r.release}
	recent, known := since510(r.release)
	switch {
	case r.clashResolve:
		v.Evidence += ": collisions are resolved, and counted apart from drops (clash_resolve)"
	case r.statisticsErr == nil || known && !recent:
		v.State = Finding
		v.Evidence += ": its conntrack statistics have no clash_resolve"
		v.Remedy = "use Linux 5.10 or later: before 5.6 the kernel drops one question of each pair that is translated to two servers, and before 5.10 it does not count that apart"
	case !known:
		v.State = Unknown
		v.Evidence += ": neither its release nor its statistics tell what it does with collisions"
		v.Remedy = unknown("", r.statisticsErr).Remedy
	}
	return v
}

// since510 reads a release as uname gives it.
func since510(release string) (recent, known bool) {
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	minor, _, _ = strings.Cut(minor, "-")
	a, err := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if err != nil || err2 != nil {
		return false, false
	}
	return a > 5 || a == 5 && b >= 10, true
}

func (r reading) events() Verdict {
	const check = "conntrack_events"
	switch {
	case r.settingsErr != nil:
		return unknown(check, r.settingsErr)
	case r.settings.Events == "":
		return Verdict{check, Finding, "the kernel has no net.netfilter.nf_conntrack_events: nodestead sees no collision", "use a kernel with CONFIG_NF_CONNTRACK_EVENTS"}
	case r.settings.Events == "0":
		return Verdict{check, Finding, "net.netfilter.nf_conntrack_events is 0: the kernel reports no collision", "sysctl -w net.netfilter.nf_conntrack_events=1"}
	default:
		return Verdict{Check: check, State: OK, Evidence: "net.netfilter.nf_conntrack_events is " + r.settings.Events}
	}
}

// advice is for settings that make nodestead see more, and break nothing.
func (r reading) advice(check, value, sysctl, gain string) Verdict {
	v := Verdict{Check: check, State: OK, Evidence: "net.netfilter." + sysctl + " is " + value}
	switch {
	case r.settingsErr != nil:
		return unknown(check, r.settingsErr)
	case value == "":
		v.Evidence = "the kernel has no net.netfilter." + sysctl + "; nothing breaks without it"
	case value == "0":
		v.Remedy = "advice: sysctl -w net.netfilter." + sysctl + "=1; " + gain
	}
	return v
}

// table judges how full the table is. Kernels before 4.18 tell the limit by
// sysctl only.
func (r reading) table() Verdict {
	const check = "conntrack_table"
	if r.statisticsErr != nil {
		return unknown(check, r.statisticsErr)
	}
	entries, most, buckets := r.now.Entries, max(r.now.Limit, r.settings.Max), r.settings.Buckets
	v := Verdict{Check: check, State: OK, Evidence: fmt.Sprintf("%d of at most %d entries in %d buckets", entries, most, buckets)}
	switch {
	case most == 0:
		v.State, v.Remedy = Unknown, "make /proc/sys/net/netfilter readable: the limit is in nf_conntrack_max"
	case entries*100 >= most*fill:
		v.State = Finding
		v.Remedy = "raise net.netfilter.nf_conntrack_max (kube-proxy sets it from conntrack.maxPerCore), or find out what fills the table: conntrack -L"
	case buckets > 0 && entries > 4*buckets:
		v.State = Finding
		v.Evidence += ": its chains are long"
		v.Remedy = "raise net.netfilter.nf_conntrack_buckets to a quarter of nf_conntrack_max or more"
	}
	return v
}

// drops judges what rises now; what the counters have since the node's start is
// evidence only.
func (r reading) drops() Verdict {
	const check = "conntrack_drops"
	if r.statisticsErr != nil {
		return unknown(check, r.statisticsErr)
	}
	v := Verdict{Check: check, State: OK}
	var boot, rising, remedies []string
	for _, c := range []struct {
		name        string
		before, now uint64
		remedy      string // "": it is harmless
	}{
		{"drop", r.before.Drop, r.now.Drop, "the table is full, or packets collide whose answers would come back the same way: in DNS, two nameservers that are translated to the same servers; keep one of them"},
		{"insert_failed", r.before.InsertFailed, r.now.InsertFailed, "the same as for drop, or hash chains that are too long"},
		{"early_drop", r.before.EarlyDrop, r.now.EarlyDrop, "the table is full and gives up flows that nobody answered yet: raise net.netfilter.nf_conntrack_max"},
		{"chaintoolong", r.before.ChainTooLong, r.now.ChainTooLong, "hash chains are too long: raise net.netfilter.nf_conntrack_buckets"},
		{"clash_resolve", r.before.ClashResolved, r.now.ClashResolved, ""},
	} {
		boot = append(boot, fmt.Sprintf("%s %d", c.name, c.now))
		// Before 5.10 the kernel counts merges in insert_failed as well.
		if c.remedy != "" && c.now > c.before && (r.clashResolve || c.name != "insert_failed") {
			rising = append(rising, fmt.Sprintf("%s by %d", c.name, c.now-c.before))
			remedies = append(remedies, c.name+": "+c.remedy)
		}
	}
	v.Evidence = "since the start of the node: " + strings.Join(boot, ", ") + "; none of those that lose packets rises now"
	if len(rising) > 0 {
		v.State = Finding
		v.Evidence = fmt.Sprintf("in %v rose %s (since the start of the node: %s)", r.elapsed.Round(time.Millisecond), strings.Join(rising, ", "), strings.Join(boot, ", "))
		v.Remedy = strings.Join(remedies, "; ")
	}
	return v
}

// exempt tells what keeps DNS out of connection tracking: meant by NodeLocal
// DNSCache, a blindness of nodestead by anything else.
func (r reading) exempt() Verdict {
	const check = "conntrack_exempt"
	switch {
	case r.exemption.NodeLocal:
		return Verdict{Check: check, State: OK, Evidence: "NodeLocal DNSCache takes its lookups out of connection tracking, where they can't collide"}
	case r.exemptionErr != nil:
		return unknown(check, r.exemptionErr)
	case r.exemption.Rule != "":
		return Verdict{check, Finding, r.exemption.Rule + ", and there is no NodeLocal DNSCache", "remove the rule unless you know why it is there: lookups that are not tracked are not translated, so a Service's address does not work for them, and nodestead does not see them in conntrack"}
	default:
		return Verdict{Check: check, State: OK, Evidence: "no rule in nftables exempts DNS (those of iptables-legacy can't be read)"}
	}
}

// rest waits for d, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
