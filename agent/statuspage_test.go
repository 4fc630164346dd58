package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/html"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/internal/lab"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
	"github.com/nodestead/nodestead/workload"
)

// namesHalf is names with both sensors, as it is once it works.
func namesHalf() (*names, *fakeSensor) {
	fake := newFakeSensor()
	fake.counters = conntrack.Counters{Messages: 1234}
	n := newNames(Default(), slog.New(slog.DiscardHandler), rim{})
	n.conntrack, n.lookup = fake, &quietLookups{}
	return n, fake
}

// quietLookups is a lookup sensor that missed nothing.
type quietLookups struct{ fakeLookups }

func (*quietLookups) Counters() lookup.Counters { return lookup.Counters{Packets: 5678} }

// took is an incident a minute ago.
func took(cause incident.Cause, count uint64) incident.Incident {
	return incident.Incident{
		Time: time.Now().Add(-time.Minute), Cause: cause, Count: count, Client: original.Source,
		Workload: workload.Workload{Namespace: "ci", Pod: "runner", Container: "helper", Process: "git"},
		Resolver: lookup.Musl, Name: "git.example.de.", Type: "AAAA", Nameserver: original.Destination, Backend: loser,
		Attempts: 2, Waited: 2500 * time.Millisecond, Evidence: "it was seen", Remedy: "do this",
	}
}

// happen puts an incident where a desk would.
func (n *names) happen(in incident.Incident) {
	n.history.add(in)
	n.board.incident(in)
}

// inBubble runs a test of what the page says of times where no time passes between
// what happens and the page.
func inBubble(t *testing.T, name string, test func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestStatusOfNames(t *testing.T) {
	accepted := probe.Result{Name: "a.example.", Type: 1, Nameserver: loser, Outcome: "noerror", Accepted: true, Took: time.Millisecond}
	silent := accepted
	silent.Nameserver, silent.Outcome, silent.Accepted = winner, probe.Timeout, false
	refused := silent
	refused.Type, refused.Err = 28, errors.New("network is unreachable")
	now := func(r probe.Result) probe.Result {
		r.Time = time.Now()
		return r
	}

	for _, tt := range []struct {
		name      string
		make      func(*names, *fakeSensor)
		verdicts  []string
		sensors   []string
		causes    []string
		incidents []string
		probes    []string
	}{
		{
			name:     "empty",
			make:     func(*names, *fakeSensor) {},
			verdicts: []string{"good: no lookup was lost in the last hour, of 0"},
		},
		{
			name: "healthy",
			make: func(n *names, _ *fakeSensor) {
				n.board.minutes.add(time.Now(), 1234, 0, 0)
				n.board.minutes.add(time.Now().Add(-2*time.Hour), 0, 7, 0)
			},
			verdicts: []string{"good: no lookup was lost in the last hour, of 1,234"},
		},
		{
			name: "incidents",
			make: func(n *names, _ *fakeSensor) {
				n.board.minutes.add(time.Now(), 100, 0, 0)
				n.happen(took(incident.FamilyMismatch, 1))
				n.happen(took(incident.OrphanedAnswer, 3))
				host := incident.Incident{Time: time.Now(), Cause: incident.ServerSilent, Count: 1, Workload: workload.Workload{Host: true}}
				n.happen(host)
			},
			verdicts: []string{"bad: 4 lost and 1 failed in the last hour, of 100 lookups; most often: orphaned_answer"},
			causes: []string{
				"3 lost orphaned_answer " + causeText(incident.OrphanedAnswer),
				"1 failed family_mismatch " + causeText(incident.FamilyMismatch),
				"1 lost server_silent " + causeText(incident.ServerSilent),
			},
			incidents: []string{
				"server_silent the node itself",
				"orphaned_answer ci/runner asked for git.example.de. AAAA 3 times · container helper · process git · musl · nameserver 10.96.0.10:53 · backend 10.244.3.2:53 · asked 2 times · waited at least 2.5s it was seen What to do do this",
				"family_mismatch ci/runner asked for git.example.de. AAAA",
			},
		},
		{
			name: "one pod again and again",
			make: func(n *names, _ *fakeSensor) {
				other := took(incident.OrphanedAnswer, 1)
				other.Workload.Pod = "quiet"
				n.happen(other)
				n.happen(took(incident.SlowAnswer, 1))
				for i := range 3 * shownIncidents {
					in := took(incident.OrphanedAnswer, 2)
					in.Evidence = fmt.Sprintf("seen %d", i)
					n.happen(in)
				}
			},
			verdicts:  []string{"bad: 182 lost and 0 failed in the last hour, of 0 lookups; most often: orphaned_answer"},
			causes:    []string{"181 lost orphaned_answer " + causeText(incident.OrphanedAnswer), "1 lost slow_answer " + causeText(incident.SlowAnswer)},
			incidents: []string{"orphaned_answer 180 times ci/runner seen 89", "slow_answer ci/runner", "orphaned_answer ci/quiet"},
		},
		{
			name:     "failures alone",
			make:     func(n *names, _ *fakeSensor) { n.happen(took(incident.SearchStopped, 1)) },
			verdicts: []string{"warn: 0 lost and 1 failed in the last hour, of 0 lookups; most often: search_stopped"},
			causes:   []string{"1 failed search_stopped " + causeText(incident.SearchStopped)},
			incidents: []string{
				"search_stopped ci/runner",
			},
		},
		{
			name: "an incident of long ago",
			make: func(n *names, _ *fakeSensor) {
				in := took(incident.SlowAnswer, 1)
				in.Time = time.Now().Add(-5 * time.Hour)
				n.happen(in)
			},
			verdicts:  []string{"good: no lookup was lost in the last hour, of 0"},
			incidents: []string{"slow_answer 5 hours ago"},
		},
		{
			name: "blind and seeing again",
			make: func(n *names, fake *fakeSensor) {
				_, m := newTestMetrics(fake)
				d := &desk{metrics: m, board: n.board}
				d.blindness(true, blindness{blindKey{conntrackSensor, "notrack"}, time.Now().Add(-3 * time.Minute), "rules", "nothing"})
				d.blindness(true, blindness{blindKey{conntrackSensor, "notrack"}, time.Now(), "rules still", "nothing to do"})
				d.blindness(true, blindness{blindKey{lookupSensor, "bpf"}, time.Now(), "was", "gone"})
				d.blindness(false, blindness{blindKey{lookupSensor, "bpf"}, time.Now(), "", ""})
			},
			verdicts: []string{"bad: sensor conntrack is blind: notrack", "good: no lookup was lost in the last hour, of 0"},
			sensors: []string{
				"blind conntrack the node's address translation (ctnetlink) 1,234 messages read, 0 missed notrack for 3 minutes: rules still What to do: nothing to do",
				"sees lookup DNS packets on the node's links 5,678 packets read, 0 missed",
			},
		},
		{
			name: "no packets, and messages lost",
			make: func(n *names, s *fakeSensor) {
				s.counters.Lost = 3
				n.lookup = nil
				n.board.blindness(true, blindness{blindKey{lookupSensor, "no_permission"}, time.Now(), "CAP_NET_RAW is missing", "give it"})
			},
			verdicts: []string{
				"warn: sensor conntrack missed 3 messages since the start, and is uncertain about those",
				"bad: sensor lookup is blind: no_permission",
				"good: no lookup was lost in the last hour, of 0",
			},
			sensors: []string{
				"missed some conntrack the node's address translation (ctnetlink) 1,234 messages read, 3 missed",
				"off lookup DNS packets on the node's links no_permission for 0 seconds: CAP_NET_RAW is missing What to do: give it",
			},
		},
		{
			name: "one nameserver is silent",
			make: func(n *names, _ *fakeSensor) {
				n.board.probe(now(accepted))
				n.board.probe(now(silent))
			},
			verdicts: []string{"good: no lookup was lost in the last hour, of 0"},
			probes:   []string{"warn timeout a.example. A from 10.244.3.3:53 in 1ms, now", "good noerror a.example. A from 10.244.3.2:53 in 1ms, now"},
		},
		{
			name: "all nameservers are silent",
			make: func(n *names, _ *fakeSensor) {
				n.board.probe(now(accepted))
				n.board.probe(now(refused))
			},
			verdicts: []string{"good: no lookup was lost in the last hour, of 0", "bad: the probe had no answer that helps for a.example. AAAA"},
			probes:   []string{"bad timeout a.example. AAAA from 10.244.3.3:53 in 1ms, now network is unreachable", "good noerror a.example. A from 10.244.3.2:53 in 1ms, now"},
		},
	} {
		inBubble(t, tt.name, func(t *testing.T) {
			n, fake := namesHalf()
			tt.make(n, fake)
			doc, _ := pageOf(t, n)
			if diff := cmp.Diff(tt.verdicts, verdictsOf(doc)); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
			if tt.sensors != nil {
				if diff := cmp.Diff(tt.sensors, texts(doc, "div.sensor")); diff != "" {
					t.Errorf("sensors (-want +got):\n%s", diff)
				}
			}
			if diff := cmp.Diff(tt.causes, texts(doc, "li.cause")); diff != "" {
				t.Errorf("causes (-want +got):\n%s", diff)
			}
			incidents := texts(doc, "article")
			if len(incidents) != len(tt.incidents) {
				t.Fatalf("%d incidents, want %d: %q", len(incidents), len(tt.incidents), incidents)
			}
			for i, want := range tt.incidents {
				for word := range strings.FieldsSeq(want) {
					if !strings.Contains(incidents[i], word) {
						t.Errorf("incident %q lacks %q", incidents[i], word)
					}
				}
			}
			var probes []string
			for _, li := range all(doc, "li.probe") {
				is := strings.TrimPrefix(attribute(all(li, "span.pill")[0], "class"), "right pill ")
				probes = append(probes, is+" "+text(li))
			}
			if diff := cmp.Diff(tt.probes, probes); diff != "" {
				t.Errorf("probes (-want +got):\n%s", diff)
			}
			if off := texts(doc, "p.off"); len(off) != 1 || !strings.HasPrefix(off[0], "This half does not run here: nodestead trust ") {
				t.Errorf("of trust the page says %q", off)
			}
		})
	}
}

// TestStatusOfTrust is about the status of a pass. What is expected stands in the
// page's text, each in a line of its own in want.
func TestStatusOfTrust(t *testing.T) {
	for i, tt := range trustStates(t) {
		inBubble(t, tt.name, func(t *testing.T) {
			tt := trustStates(t)[i] // as of the bubble's time
			doc, _ := pageOf(t, trustHalf(tt.status))
			if diff := cmp.Diff(tt.verdicts, verdictsOf(doc)); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
			states := make(map[string][]string)
			for _, selector := range []string{"li.anchor", "li.target", "div.runtime"} {
				for _, n := range all(doc, selector) {
					states[selector] = append(states[selector], strings.TrimPrefix(attribute(all(n, "span.right")[0], "class"), "right pill "))
				}
			}
			if diff := cmp.Diff(tt.states, states, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("states (-want +got):\n%s", diff)
			}
			for selector, want := range map[string][]string{
				"li.anchor": tt.anchors, "p.source": tt.sources, "li.target": tt.targets, "div.runtime": tt.runtimes,
			} {
				if diff := cmp.Diff(want, texts(doc, selector)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", selector, diff)
				}
			}
			if off := texts(doc, "p.off"); len(off) != 1 || !strings.HasPrefix(off[0], "This half does not run here: nodestead watch ") {
				t.Errorf("of names the page says %q", off)
			}
		})
	}
}

// fakeProber is a probe that has one result.
type fakeProber struct{ result probe.Result }

func (f fakeProber) Run(ctx context.Context, emit func(probe.Result)) error {
	emit(f.result)
	<-ctx.Done()
	return nil
}

// TestProbeOnTheStatus: what the probe finds comes to the page.
func TestProbeOnTheStatus(t *testing.T) {
	fake := newFakeSensor()
	at := fake.rim()
	result := probe.Result{Time: time.Now(), Name: "git.example.de.", Type: 1, Nameserver: loser, Outcome: "servfail"}
	at.probe = func(Config, *slog.Logger) (prober, error) { return fakeProber{result}, nil }
	ctx, cancel := context.WithCancel(t.Context())
	var address string
	ended := make(chan error, 1)
	cfg := Default()
	cfg.HTTP.Watch = "127.0.0.1:0"
	go func() {
		ended <- watch(ctx, cfg, slog.New(slog.DiscardHandler), Version{}, bound(&address), at)
	}()
	<-fake.running
	err := lab.Until(ctx, 10*time.Second, func() error {
		if _, body := fetch(t, address, "/"); !strings.Contains(body, "the probe had no answer that helps for git.example.de. A") {
			return errors.New("the page does not have the result:\n" + body)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watch gives %v", err)
	}
}

// TestHeadOfTheStatus: what is there in any state, and what no state may bring.
func TestHeadOfTheStatus(t *testing.T) { synctest.Test(t, headOfTheStatus) }

func headOfTheStatus(t *testing.T) {
	mux := http.NewServeMux()
	healths := []*health{{why: "it has not started yet"}, {why: "it has not started yet"}}
	n, _ := namesHalf()
	addStatus(serving{server: &http.Server{}, mux: mux}, []half{n, trustHalf(certsync.Status{})}, healths, "worker-7", Version{Version: "v1.2"})
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w
	}
	if w := get("/index.html"); w.Code != http.StatusNotFound {
		t.Errorf("/index.html gives %d", w.Code)
	}
	w := get("/")
	for key, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
	} {
		if got := w.Header().Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	doc, err := html.Parse(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"nodestead on worker-7"}, texts(doc, "h1")); diff != "" {
		t.Errorf("heading (-want +got):\n%s", diff)
	}
	if head := text(all(doc, "header")[0]); !strings.Contains(head, "v1.2 · up for 0 seconds · as of ") {
		t.Errorf("head %q", head)
	}
	want := []string{
		"bad: not ready: it has not started yet",
		"good: no lookup was lost in the last hour, of 0",
		"warn: trust: the first pass has not ended yet",
	}
	if diff := cmp.Diff(want, verdictsOf(doc)); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
	if off := texts(doc, "p.off"); len(off) > 0 {
		t.Errorf("of halves that run the page says %q", off)
	}

	// The policy's hash is that of the one style, so that a browser takes it.
	style := all(doc, "style")
	if len(style) != 1 {
		t.Fatalf("%d styles", len(style))
	}
	if policy := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; style-src '"+hashOf(style[0].FirstChild.Data)+"'; ") {
		t.Errorf("the policy %q does not allow the style", policy)
	}
	mustBeInert(t, doc)
}

// TestCauseTexts: each cause has a text of its own, which is not that of unknown.
func TestCauseTexts(t *testing.T) {
	seen := make(map[string]incident.Cause)
	for _, c := range append(incident.TimeoutCauses(), incident.FailureCauses()...) {
		if other, ok := seen[causeText(c)]; ok {
			t.Errorf("%s and %s have one text", c, other)
		}
		seen[causeText(c)] = c
	}
}
