//go:build e2e

package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// timeLapse is how much faster time goes by for the rules in the lab: ten minutes
// are six seconds there.
const timeLapse = 100

// lapsed are the durations in rules: how long an alert is pending, ranges and
// offsets.
var lapsed = regexp.MustCompile(`(for: |\[|offset )(\d+)(m|h)\b`)

// hasten makes all durations of rules shorter, and changes nothing else.
func hasten(rules string) string {
	return lapsed.ReplaceAllStringFunc(rules, func(text string) string {
		m := lapsed.FindStringSubmatch(text)
		n, _ := strconv.Atoi(m[2])
		d := time.Duration(n) * map[string]time.Duration{"m": time.Minute, "h": time.Hour}[m[3]]
		return m[1] + strconv.FormatInt((d/timeLapse).Milliseconds(), 10) + "ms"
	})
}

// TestHasten: it changes durations only.
func TestHasten(t *testing.T) {
	for in, want := range map[string]string{
		"for: 10m":                          "for: 6000ms",
		"increase(x_total[1h]) > 3":         "increase(x_total[36000ms]) > 3",
		"unless x offset 10m":               "unless x offset 6000ms",
		"nodestead:x:increase10m < 7*86400": "nodestead:x:increase10m < 7*86400",
		"in 10m, for 5m":                    "in 10m, for 5m",
	} {
		if got := hasten(in); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}

// alert is one that is pending or fires, as Prometheus tells it.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"`
	last        time.Duration     // when it was last seen
}

// seenAlert is what became of an alert: all that fired of that name, each when it
// was last seen, and when the first of them began and the last ended.
type seenAlert struct {
	fired        []alert
	since, until time.Duration
	firing       bool
}

// prometheus is a real Prometheus that scrapes the agents of a node and evaluates
// the rules, and somebody who looks at its alerts all the time.
type prometheus struct {
	t     *testing.T
	http  *http.Client
	begin time.Time
	part  time.Duration // when this part of the story began

	mu   sync.Mutex
	seen map[string]*seenAlert
	now  []alert
	err  error
}

// startPrometheus runs it in the node's network until the test ends.
func startPrometheus(t *testing.T, l *lab.Lab, targets ...string) *prometheus {
	t.Helper()
	rules, err := os.ReadFile(rulesPath)
	if err != nil {
		t.Fatal(err)
	}
	// As docs/operate.md has it, but for the targets.
	config := fmt.Sprintf(`global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: nodestead
    honor_labels: true
    static_configs: [{targets: [%s], labels: {node: n1}}]
`, strings.Join(targets, ", "))
	kill, err := l.StartPrometheus(t.TempDir(), map[string]string{"rules.yaml": hasten(string(rules)), "prometheus.yml": config},
		"--query.lookback-delta="+(5*time.Minute/timeLapse).String())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: l.Node().DialContext}
	p := &prometheus{t: t, http: &http.Client{Transport: transport, Timeout: 10 * time.Second}, begin: time.Now(), seen: make(map[string]*seenAlert)}
	stop := make(chan struct{})
	var look sync.WaitGroup
	look.Go(func() { p.look(stop) })
	t.Cleanup(func() {
		close(stop)
		look.Wait()
		transport.CloseIdleConnections()
		switch log, err := kill(); {
		case err != nil:
			t.Error(err)
		case t.Failed():
			t.Log("Prometheus' log: " + log)
		}
	})
	return p
}

// look asks for the alerts until it is told to stop.
func (p *prometheus) look(stop <-chan struct{}) {
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for {
		var page struct{ Data struct{ Alerts []alert } }
		err := p.get("/api/v1/alerts", &page)
		p.note(page.Data.Alerts, err)
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}

func (p *prometheus) get(path string, page any) error {
	resp, err := p.http.Get("http://" + lab.PrometheusAddress + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(page)
}

// note remembers what is there now.
func (p *prometheus) note(now []alert, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err = err; err != nil {
		return
	}
	p.now = now
	at := time.Since(p.begin)
	for _, s := range p.seen {
		s.firing = false
	}
	for _, a := range now {
		if a.State != "firing" {
			continue
		}
		name := a.Labels["alertname"]
		s := p.seen[name]
		if s == nil {
			s = &seenAlert{since: at}
			p.seen[name] = s
		}
		s.firing, s.until, a.last = true, at, at
		same := func(old alert) bool { return fmt.Sprint(old.Labels) == fmt.Sprint(a.Labels) }
		if i := slices.IndexFunc(s.fired, same); i >= 0 {
			s.fired[i] = a
		} else {
			s.fired = append(s.fired, a)
		}
	}
}

// quiet waits until no alert is pending, as one is for a moment when a scrape was
// too late, and fails the test when any has fired.
func (p *prometheus) quiet() {
	p.t.Helper()
	err := lab.Until(p.t.Context(), time.Minute, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.err != nil || len(p.now) > 0 {
			return errors.Join(fmt.Errorf("pending or firing: %+v", p.now), p.err)
		}
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || len(p.seen) > 0 {
		p.t.Errorf("alerts at a node where all is well: %v, %v", err, p.seen)
	}
}

// fired tells whether an alert has fired in a part of the story that began then.
func (p *prometheus) fired(part time.Duration, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[name]
	return s != nil && s.until >= part
}

// scraped waits until Prometheus has seen an agent after now.
func (p *prometheus) scraped(instance string) error {
	expr := fmt.Sprintf(`(timestamp(up{instance=%q}) > bool %.3f) * up{instance=%[1]q} == 1`, instance, float64(time.Now().UnixMilli())/1000)
	return lab.Until(p.t.Context(), time.Minute, func() error {
		got, err := p.query(expr)
		if err == nil && len(got) == 0 {
			err = fmt.Errorf("Prometheus does not see %s", instance)
		}
		return err
	})
}

// wait waits until ok gives no error, for an alert that never was as well.
func (p *prometheus) wait(name string, ok func(seenAlert) error) {
	p.t.Helper()
	err := lab.Until(p.t.Context(), time.Minute, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if s := p.seen[name]; s != nil {
			return ok(*s)
		}
		return errors.Join(ok(seenAlert{}), p.err)
	})
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.t.Errorf("%s: %v; now there are %+v", name, err, p.now)
	}
}

// next begins another part of the story: what fired before is not what it is about.
func (p *prometheus) next(story string) {
	p.t.Helper()
	p.t.Log(story)
	p.part = time.Since(p.begin)
}

// fires waits until an alert has fired in this part of the story, with each of the
// labels and texts.
func (p *prometheus) fires(name string, want ...string) {
	p.t.Helper()
	p.firesAfter(p.part, name, want...)
}

func (p *prometheus) firesAfter(part time.Duration, name string, want ...string) {
	p.t.Helper()
	p.wait(name, func(s seenAlert) error {
		var misses []string
		for _, a := range s.fired {
			said := fmt.Sprint(a.Labels, a.Annotations)
			i := slices.IndexFunc(want, func(w string) bool { return !strings.Contains(said, w) })
			if i < 0 && a.last >= part {
				return nil
			}
			if i >= 0 {
				misses = append(misses, fmt.Sprintf("%s lacks %q", said, want[i]))
			}
		}
		return fmt.Errorf("it does not fire: %q", misses)
	})
}

// resolves waits until none of these alerts fires any more.
func (p *prometheus) resolves(names ...string) {
	p.t.Helper()
	for _, name := range names {
		p.wait(name, func(s seenAlert) error {
			if s.firing {
				return fmt.Errorf("it still fires: %+v", s.fired)
			}
			return nil
		})
	}
}

// value is one of the series that an expression gives.
type value struct {
	Labels map[string]string `json:"metric"`
	Value  [2]any            `json:"value"` // the time, and the number as text
}

func (p *prometheus) query(expr string) ([]value, error) {
	var page struct{ Data struct{ Result []value } }
	err := p.get("/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &page)
	return page.Data.Result, err
}

// until waits until an expression has this one value.
func (p *prometheus) until(expr string, want float64) {
	p.t.Helper()
	err := lab.Until(p.t.Context(), time.Minute, func() error {
		got, err := p.query(expr)
		if err == nil && (len(got) != 1 || got[0].Value[1] != fmt.Sprint(want)) {
			err = fmt.Errorf("%s is %v, want %g", expr, got, want)
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// show asks what the dashboards ask, and removes from the list what shows
// something.
func (p *prometheus) show(empty map[string]bool) {
	p.t.Helper()
	for where, e := range shown(p.t) {
		got, err := p.query(e)
		if err != nil {
			p.t.Errorf("%s: %v: %s", where, err, e)
		}
		if len(got) > 0 {
			delete(empty, where)
		}
	}
}

// shown are the expressions of all dashboards as Grafana asks them about this node
// and all namespaces.
func shown(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, d := range readDashboards(t) {
		for i, e := range d.expressions() {
			all[fmt.Sprintf("%s: %s (query %d)", d.Title, e.where, i)] = plain(strings.NewReplacer("$node", "n1", "$namespace", ".*").Replace(e.expr))
		}
	}
	return all
}
