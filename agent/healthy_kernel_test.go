package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nodestead/nodestead/internal/lab"
	"github.com/nodestead/nodestead/lookup"
)

// families is what a scrape of /metrics sees.
type families map[string]*dto.MetricFamily

func (a *kernelAgent) scrape() (families, error) {
	body, err := a.get("/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(strings.NewReader(body))
}

// by sums a metric, without its prefix, by some of its labels, whose values
// are joined by blanks. A histogram's value is its count. What is 0 is left out.
func (f families) by(name string, labels ...string) map[string]int {
	sums := make(map[string]int)
	for _, m := range f["nodestead_"+name].GetMetric() {
		var key []string
		for _, label := range labels {
			for _, pair := range m.GetLabel() {
				if pair.GetName() == label {
					key = append(key, pair.GetValue())
				}
			}
		}
		n := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		if n != 0 {
			sums[strings.Join(key, " ")] += int(n)
		}
	}
	return sums
}

// sum is a metric over all its labels.
func (f families) sum(name string) int { return f.by(name)[""] }

// counted waits until so many lookups were counted, and gives what else was.
func (a *boxAgent) counted(lookups int) families {
	a.t.Helper()
	var f families
	err := lab.Until(a.t.Context(), 20*time.Second, func() (err error) {
		if f, err = a.scrape(); err != nil {
			return err
		}
		if n := f.sum("dns_lookups_total"); n != lookups {
			return fmt.Errorf("%d lookups were counted, %d were made", n, lookups)
		}
		return nil
	})
	if err != nil {
		a.t.Errorf("%v: %v", err, f.by("dns_lookups_total", "namespace", "resolver", "qtype", "outcome"))
	}
	// One scrape does not read all metrics at one time.
	if f, err = a.scrape(); err != nil {
		a.t.Fatal(err)
	}
	return f
}

// load has a program look all the names up, n times, and wants so many calls to
// find an address.
func (a *boxAgent) load(p *lab.CRIPod, container string, r lab.Resolver, n, found int, names ...string) {
	out, err := p.Exec(a.t.Context(), container, append([]string{lab.ClientPath(r), "-n", fmt.Sprint(n)}, names...)...)
	if err != nil {
		a.t.Errorf("%s in %s: %v", r, p.Name, err)
		return
	}
	if want := fmt.Sprintf("# lookups=%d ok=%d ", n*len(names), n*found); !strings.HasPrefix(out, want) {
		a.t.Errorf("%s in %s: %q, want %q", r, p.Name, out, want)
	}
}

// zone is what servers know: a name that is not in it does not exist.
type zone map[string][]netip.Addr

func (z zone) rules() (rules []lab.Rule) {
	for name, addrs := range z {
		rules = append(rules, lab.Rule{Name: name, Addrs: addrs})
	}
	return rules
}

// outcome is what comes of a question.
func (z zone) outcome(name string, qtype uint16) string {
	addrs, ok := z[strings.ToLower(name)]
	if !ok {
		return "nxdomain"
	}
	for _, addr := range addrs {
		if addr.Is4() == (qtype == dns.TypeA) {
			return "noerror"
		}
	}
	return "nodata"
}

var (
	onlyFour = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	both     = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
)

// TestHealthy has all resolvers ask as pods of Kubernetes do. There is nothing
// to complain of then, and each question is counted, once, for who asked it.
func TestHealthy(t *testing.T) {
	// On a bridge a packet passes more links.
	for cni, rounds := range map[lab.CNI]int{lab.PTP: 210, lab.Bridge: 40} {
		t.Run(string(cni), func(t *testing.T) { healthy(t, cni, rounds) })
	}
}

func healthy(t *testing.T, cni lab.CNI, rounds int) {
	const (
		replicas = 2
		// What the names below cost: the whole search list, a part of it, nothing.
		questions = 8 + 4 + 4 + 2 + 2 + 2 + 8
		wasted    = 6 + 2 + 2 // only names that exist waste something
		found     = 6
	)
	names := []string{"git.example.de", "db.data", "four.data", "web", "api.example.de.", "four.example.de.", "nowhere.example.de"}
	known := zone{
		"git.example.de.": both, "db.data.svc.cluster.local.": both, "four.data.svc.cluster.local.": onlyFour,
		"api.example.de.": both, "four.example.de.": onlyFour,
	}
	a := newBoxAgent(t, lab.BoxConfig{CNI: cni})
	service, servers := a.service("10.96.0.10", lab.Random, 2)

	type asker struct {
		*lab.CRIPod
		lab.Resolver
	}
	var askers []asker
	namespaces := make(map[netip.Addr]string)
	resolvers := make(map[string]string) // of a namespace
	for _, r := range lab.Resolvers() {
		for i := range replicas {
			namespace := fmt.Sprintf("%s-%d", r, i)
			known["web."+namespace+".svc.cluster.local."] = both
			p := a.runPod(lab.CRIPodConfig{
				Namespace: namespace, Name: "app", Nameservers: []netip.Addr{service}, Options: []string{"ndots:5"},
				Search: []string{namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"},
			})
			askers = append(askers, asker{p, r})
			namespaces[p.Addr4] = namespace
			resolvers[namespace] = labelOf(r)
		}
	}
	for _, s := range servers {
		s.SetRules(known.rules()...)
		s.Record(true)
	}
	// The askers keep all processors busy, and may keep the sensor from reading
	// for long: what is counted exactly must have been seen.
	a.run = func(ctx context.Context, cfg Config, log *slog.Logger, version Version) error {
		rim := realRim()
		rim.lookup = func(cfg lookup.Config) (lookupSource, error) {
			cfg.RingBytes = 64 << 20
			return openLookup(cfg)
		}
		return watch(ctx, cfg, log, version, listen, rim)
	}
	a.start()

	began := time.Now()
	var wg sync.WaitGroup
	for _, p := range askers {
		wg.Go(func() { a.load(p.CRIPod, "app", p.Resolver, rounds, found, names...) })
	}
	wg.Wait()
	took := time.Since(began)

	asked := make(map[string]int) // by namespace, type and outcome
	all := 0
	for _, s := range servers {
		for _, q := range s.Recorded() {
			qtype := dns.TypeToString[q.Type]
			asked[namespaces[q.Client.Addr()]+" "+qtype+" "+known.outcome(q.Name, q.Type)]++
		}
		all += int(s.Questions())
	}
	if want := rounds * questions * len(askers); all != want {
		t.Errorf("the servers got %d questions, want %d", all, want)
	}
	t.Logf("%d questions in %v", all, took.Round(time.Millisecond))

	f := a.counted(all)
	if diff := cmp.Diff(asked, f.by("dns_lookups_total", "namespace", "qtype", "outcome")); diff != "" {
		t.Errorf("lookups (-asked +counted):\n%s", diff)
	}
	wantWasted, wantAnswered := make(map[string]int), make(map[string]int)
	for _, namespace := range namespaces {
		wantWasted[namespace] = rounds * wasted
		wantAnswered[namespace] = rounds * questions
	}
	// Of a report the lookups are counted first, then how long they took and what was wasted.
	if err := lab.Until(t.Context(), 10*time.Second, func() (err error) {
		if f, err = a.scrape(); err != nil {
			return err
		}
		if diff := cmp.Diff(wantWasted, f.by("dns_search_wasted_total", "namespace")); diff != "" {
			return fmt.Errorf("wasted (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(wantAnswered, f.by("dns_lookup_duration_seconds", "namespace")); diff != "" {
			return fmt.Errorf("durations (-want +got):\n%s", diff)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	a.checkResolvers(f.by("dns_lookups_total", "namespace", "resolver"), resolvers, wellTold)

	for _, name := range []string{
		"dns_lookup_timeouts_total", "dns_lookup_failures_total", "dns_retransmissions_total", "dns_lookups_pending",
		"dns_lookups_discarded_total", "dns_malformed_total", "sensor_lost_total", "sensor_blind",
	} {
		if n := f.sum(name); n != 0 {
			t.Errorf("nodestead_%s is %d", name, n)
		}
	}
	if all, err := a.incidents(url.Values{}); err != nil || len(all) > 0 {
		t.Errorf("%d incidents, the first of them %+v, %v", len(all), all[:min(len(all), 1)], err)
	}
	if log := a.log.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log has warnings:\n%s", log)
	}
}
