package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

// boxAgent is the agent on a booted node with containerd and real pods.
type boxAgent struct {
	*kernelAgent
	box *lab.Box
	run func(context.Context, Config, *slog.Logger, Version) error // Watch, if a test sets no other
}

// newBoxAgent boots a node. The agent is started by start, once the test has
// made its services.
func newBoxAgent(t *testing.T, cfg lab.BoxConfig) *boxAgent {
	t.Helper()
	a := &boxAgent{kernelAgent: &kernelAgent{Lab: lab.ForTest(t), t: t, ended: make(chan error, 1)}, run: Watch}
	var err error
	if a.box, err = a.Boot(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return a
}

// start runs the agent in the node's network until the test ends.
func (a *boxAgent) start() {
	a.t.Helper()
	cfg := Default()
	cfg.HTTP.Watch = kernelAddress
	cfg.HostRoot = Directory(a.box.Root())
	a.t.Cleanup(func() {
		a.stop()
		select {
		case err := <-a.ended:
			if err != nil {
				a.t.Errorf("the agent ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			a.t.Error("the agent does not stop")
		}
	})
	a.launch(cfg, a.run)
}

// service makes a DNS service of servers with these rules.
func (a *boxAgent) service(addr string, balance lab.Balance, servers int, rules ...lab.Rule) (netip.Addr, []*lab.Server) {
	a.t.Helper()
	var all []*lab.Server
	var backends []netip.Addr
	for range servers {
		s, err := a.AddServer(rules...)
		if err != nil {
			a.t.Fatal(err)
		}
		all, backends = append(all, s), append(backends, s.Addr4)
	}
	service := netip.MustParseAddr(addr)
	if err := a.AddService(service, balance, backends...); err != nil {
		a.t.Fatal(err)
	}
	return service, all
}

func (a *boxAgent) runPod(cfg lab.CRIPodConfig) *lab.CRIPod {
	a.t.Helper()
	p, err := a.box.RunPod(a.t.Context(), cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	return p
}

// told is what a resolver told a program about a name.
type told struct {
	err  string // "" when it had an answer
	took time.Duration
}

// ask has a program in a container look a name up, n times in each of so many
// threads.
func (a *boxAgent) ask(p *lab.CRIPod, container string, r lab.Resolver, n, threads int, name string, options ...string) []told {
	args := append([]string{lab.ClientPath(r), "-v", "-n", strconv.Itoa(n), "-t", strconv.Itoa(threads)}, options...)
	out, err := p.Exec(a.t.Context(), container, append(args, name)...)
	if err != nil {
		a.t.Errorf("look %s up in %s: %v", name, p.Name, err)
		return nil
	}
	var all []told
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] == "#" {
			continue
		}
		ms, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			a.t.Errorf("answer %q: %v", line, err)
			return nil
		}
		v := told{err: f[1], took: time.Duration(ms * float64(time.Millisecond))}
		if v.err == "ok" {
			v.err = ""
		}
		all = append(all, v)
	}
	return all
}

// incidents asks the agent's API.
func (a *boxAgent) incidents(query url.Values) ([]incidentJSON, error) {
	body, err := a.get("/api/v1/incidents?" + query.Encode())
	if err != nil {
		return nil, err
	}
	var page struct{ Incidents []incidentJSON }
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		return nil, fmt.Errorf("%w: %s", err, body)
	}
	return page.Incidents, nil
}

// ofPod gives the incidents of a pod once there are n.
func (a *boxAgent) ofPod(p *lab.CRIPod, n int) []incidentJSON {
	a.t.Helper()
	var all []incidentJSON
	err := lab.Until(a.t.Context(), 25*time.Second, func() (err error) {
		all, err = a.incidents(url.Values{"pod": {p.Namespace + "/" + p.Name}})
		if err == nil && len(all) < n {
			err = fmt.Errorf("%d incidents of %s, want %d", len(all), p.Name, n)
		}
		return err
	})
	if err != nil {
		a.t.Errorf("%v; the log's end:\n%s", err, tail(a.log.String()))
	}
	return all
}

// tail is the end of a log.
func tail(log string) string {
	const most = 6000
	return log[max(0, len(log)-most):]
}
