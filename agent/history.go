package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nodestead/nodestead/incident"
)

// historyLength is how many incidents /api/v1/incidents knows.
const historyLength = 1000

// history keeps the last incidents.
type history struct {
	mu   sync.Mutex
	ring []incident.Incident
	next int // where the next one goes, once the ring is full
}

func (h *history) add(in incident.Incident) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) < historyLength {
		h.ring = append(h.ring, in)
		return
	}
	h.ring[h.next] = in
	h.next = (h.next + 1) % historyLength
}

// last gives the newest incidents, at most n, the newest first.
func (h *history) last(n int) []incident.Incident {
	h.mu.Lock()
	defer h.mu.Unlock()
	n = min(n, len(h.ring))
	all := make([]incident.Incident, 0, n)
	for i := range n {
		all = append(all, h.ring[(h.next+len(h.ring)-1-i)%len(h.ring)])
	}
	return all
}

// newestFirst gives the incidents that want says yes to.
func (h *history) newestFirst(want func(incident.Incident) bool) []incidentJSON {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]incidentJSON, 0, len(h.ring))
	for i := range h.ring {
		in := h.ring[(h.next+len(h.ring)-1-i)%len(h.ring)]
		if want(in) {
			all = append(all, toJSON(in))
		}
	}
	return all
}

// incidentJSON is an incident as the API serves it. What is not known is left
// out.
type incidentJSON struct {
	Time       time.Time `json:"time"`
	Cause      string    `json:"cause"`
	Namespace  string    `json:"namespace,omitempty"`
	Pod        string    `json:"pod,omitempty"`
	Container  string    `json:"container,omitempty"`
	Process    string    `json:"process,omitempty"`
	Host       bool      `json:"host,omitempty"`
	Resolver   string    `json:"resolver,omitempty"`
	Name       string    `json:"name,omitempty"`
	QType      string    `json:"qtype,omitempty"`
	Client     string    `json:"client,omitempty"`
	Nameserver string    `json:"nameserver,omitempty"`
	Backend    string    `json:"backend,omitempty"`
	Attempts   int       `json:"attempts,omitempty"`
	Waited     float64   `json:"waited_seconds,omitempty"`
	Evidence   string    `json:"evidence"`
	Remedy     string    `json:"remedy"`
}

func toJSON(in incident.Incident) incidentJSON {
	text := func(a netip.AddrPort) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	w := in.Workload
	answer := incidentJSON{
		Time: in.Time, Cause: string(in.Cause), Namespace: w.Namespace, Pod: w.Pod, Container: w.Container, Process: w.Process, Host: w.Host,
		Resolver: string(in.Resolver), Name: in.Name, QType: in.Type,
		Client: text(in.Client), Nameserver: text(in.Nameserver), Backend: text(in.Backend),
		Attempts: in.Attempts, Evidence: in.Evidence, Remedy: in.Remedy,
	}
	if in.WaitedExact {
		answer.Waited = in.Waited.Seconds()
	}
	return answer
}

// ServeHTTP answers GET /api/v1/incidents with {"incidents": […]}, newest first.
// Filters: pod (name, or namespace/name), namespace, cause, since and until
// (RFC 3339, or a duration such as 10m before now).
func (h *history) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	want, err := filter(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(struct { // the client has gone
		Incidents []incidentJSON `json:"incidents"`
	}{h.newestFirst(want)})
}

// filter makes a filter of the query's parameters.
func filter(query url.Values, now time.Time) (func(incident.Incident) bool, error) {
	var since, until time.Time
	for key, values := range query {
		var err error
		switch key {
		case "pod", "namespace":
		case "cause":
			if c := incident.Cause(values[0]); !c.Timeout() && !slices.Contains(incident.FailureCauses(), c) {
				return nil, fmt.Errorf("%q is no cause: the causes are %v and %v", c, incident.TimeoutCauses(), incident.FailureCauses())
			}
		case "since":
			since, err = moment(values[0], now)
		case "until":
			until, err = moment(values[0], now)
		default:
			err = fmt.Errorf("unknown parameter %q: there are pod, namespace, cause, since and until", key)
		}
		if err != nil {
			return nil, err
		}
	}
	namespace, pod := query.Get("namespace"), query.Get("pod")
	if before, after, ok := strings.Cut(pod, "/"); ok {
		namespace, pod = before, after
	}
	cause := incident.Cause(query.Get("cause"))
	return func(in incident.Incident) bool {
		return (pod == "" || pod == in.Workload.Pod) &&
			(namespace == "" || namespace == in.Workload.Namespace) &&
			(cause == "" || cause == in.Cause) &&
			(since.IsZero() || !in.Time.Before(since)) &&
			(until.IsZero() || !in.Time.After(until))
	}, nil
}

// moment reads a time, or how long ago it was.
func moment(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time: want one such as 2026-01-31T23:59:00Z, or 10m for ten minutes ago", text)
	}
	return t, nil
}
