package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodestead/nodestead/conntrack"
)

// noPackets is what is logged where the kernel refuses the lookup sensor.
const noPackets = `level=WARN msg="sensor is blind" sensor=lookup reason=no_permission evidence="open: CAP_NET_RAW is missing" ` +
	`remedy="give the agent securityContext.capabilities.add: [NET_ADMIN, NET_RAW], or run it as root; until then it knows no names, and most lost lookups are not seen"`

// running is an agent with a fake sensor.
type running struct {
	sensor *fakeSensor
	logs   *logs
	cancel context.CancelFunc
	result chan error
}

// start runs an agent until the sensor runs.
func start(t *testing.T, fake *fakeSensor, listen listenFunc, logs *logs) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{sensor: fake, logs: logs, cancel: cancel, result: make(chan error, 1)}
	cfg := Default()
	cfg.HTTP.Watch = "127.0.0.1:0"
	go func() {
		r.result <- watch(ctx, cfg, NewLogger(logs, cfg.Log), Version{"v1", "abc", "go1"}, listen, fake.rim())
	}()
	<-fake.running
	return r
}

// bound listens on an address of the kernel's choice, and tells it.
func bound(address *string) listenFunc {
	return func(ctx context.Context, key, want string) (net.Listener, error) {
		listener, err := listen(ctx, key, want)
		if err == nil {
			*address = listener.Addr().String()
		}
		return listener, err
	}
}

// fetch gives the status and the body of a page.
func fetch(t *testing.T, address, path string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// TestRun follows an agent from its start to its stop, and looks at what it
// serves while the log of what was left still hangs.
func TestRun(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	logs := &logs{gate: func(line string) {
		if strings.Contains(line, "count=2") {
			close(reached)
			<-release
		}
	}}
	var address string
	r := start(t, newFakeSensor(), bound(&address), logs)

	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := fetch(t, address, path); status != http.StatusOK || body != "ok\n" {
			t.Errorf("%s gives %d %q while the sensor reads", path, status, body)
		}
	}
	if status, _ := fetch(t, address, "/other"); status != http.StatusNotFound {
		t.Errorf("/other gives %d, want 404", status)
	}
	const timeouts = `nodestead_dns_lookup_timeouts_total{cause="orphaned_answer",namespace="",pod="",resolver=""} `
	for i := range 4 {
		if _, body := fetch(t, address, "/metrics"); !strings.Contains(body, fmt.Sprintf("%s%d\n", timeouts, i)) ||
			!strings.Contains(body, "\ngo_goroutines ") || !strings.Contains(body, "\nprocess_start_time_seconds ") {
			t.Errorf("/metrics lacks %s%d, or Go's or the process's:\n%s", timeouts, i, body)
		}
		if i < 3 {
			o := orphan()
			o.Time = time.Now()
			r.sensor.emit(o)
		}
	}

	// The page has what has happened, and nothing of trust.
	_, page := fetch(t, address, "/")
	for _, want := range []string{"3 lost and 0 failed in the last hour, of 0 lookups", "10.244.1.2</strong>", "sensor lookup is blind: no_permission", "<code>nodestead trust</code> or"} {
		if !strings.Contains(page, want) {
			t.Errorf("/ lacks %q:\n%s", want, page)
		}
	}

	r.cancel()
	<-reached
	if status, body := fetch(t, address, "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz gives %d %q at the stop", status, body)
	}
	if status, body := fetch(t, address, "/readyz"); status != http.StatusServiceUnavailable || body != "stopping\n" {
		t.Errorf("/readyz gives %d %q at the stop", status, body)
	}
	if _, body := fetch(t, address, "/metrics"); !strings.Contains(body, timeouts+"3\n") {
		t.Error("/metrics lacks the last counts at the stop")
	}
	close(release)
	if err := <-r.result; err != nil {
		t.Errorf("run gives %v after its context ended", err)
	}
	if !r.sensor.closed {
		t.Error("the sensor was not closed")
	}
	expect(t, logs.take(),
		`level=INFO msg="nodestead started" version=v1 commit=abc go=go1 ports=53 http=`+address,
		noPackets,
		fmt.Sprintf(orphanLine, "10.244.1.2:41000", "waited=1.5s ", 1, "1.5s"),
		fmt.Sprintf(orphanLine, "10.244.1.2:41000", "waited=1.5s ", 2, "1.5s"),
		`level=INFO msg="nodestead stopped"`)
}

func TestRunEndsWithItsSensor(t *testing.T) {
	for want, end := range map[string]error{
		"conntrack sensor: receive: broken":        errors.New("receive: broken"),
		"conntrack sensor: ended without a reason": nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			logs := &logs{}
			r := start(t, newFakeSensor(), newPipes().listen, logs)
			r.sensor.end <- end
			if err := <-r.result; err == nil || err.Error() != want {
				t.Errorf("run gives %v, want %s", err, want)
			}
			if !r.sensor.closed {
				t.Error("the sensor was not closed")
			}
		})
	}
}

func TestRunEndsWithItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, listener := &logs{}, newPipes()
		r := start(t, newFakeSensor(), listener.listen, logs)
		r.sensor.emit(orphan())
		r.sensor.emit(orphan())
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		err := <-r.result
		if want := "serve http.watch 127.0.0.1:9853: use of closed network connection"; err == nil || err.Error() != want {
			t.Errorf("run gives %v, want %s", err, want)
		}
		if lines := logs.take(); len(lines) != 4 {
			t.Errorf("log %q: want the blindness, the start and both incidents", lines)
		}
	})
}

// TestStopWhileScraped: a scrape that hangs does not hold up the stop.
func TestStopWhileScraped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, listener := newFakeSensor(), newPipes()
		scraped, release := make(chan struct{}), make(chan struct{})
		fake.statistics = func() (conntrack.Statistics, error) {
			close(scraped)
			<-release
			return conntrack.Statistics{}, nil
		}
		r := start(t, fake, listener.listen, &logs{})
		server, client := net.Pipe()
		defer client.Close()
		listener.conns <- server
		if _, err := io.WriteString(client, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-scraped

		began := time.Now()
		r.cancel()
		if err := <-r.result; err != nil {
			t.Errorf("run gives %v", err)
		}
		if took := time.Since(began); took > stopWithin {
			t.Errorf("the stop took %v", took)
		}
		close(release)
	})
}

// TestStopWhileStuck: a sensor that does not mind its context is an error, and
// does not hold up the stop for ever.
func TestStopWhileStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFakeSensor()
		fake.stuck = make(chan struct{})
		r := start(t, fake, newPipes().listen, &logs{})
		began := time.Now()
		r.cancel()
		if err := <-r.result; err == nil || !strings.Contains(err.Error(), "no clean stop within 4.5s") {
			t.Errorf("run gives %v", err)
		}
		if took := time.Since(began); took >= 5*time.Second {
			t.Errorf("the stop took %v", took)
		}
		close(fake.stuck)
	})
}

func TestPortInUse(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	cfg := Default()
	cfg.HTTP.Watch = Address(busy.Addr().String())
	err = watch(t.Context(), cfg, slog.New(slog.DiscardHandler), Version{}, listen, rim{
		conntrack: func(conntrack.Config) (sensor, error) {
			t.Error("the sensor was opened")
			return nil, errors.New("not here")
		},
	})
	want := fmt.Sprintf("http.watch %s: address already in use: stop what listens there, or set another address", busy.Addr())
	if err == nil || err.Error() != want {
		t.Errorf("run gives %v, want %s", err, want)
	}
}

func TestAddressOfAnotherNode(t *testing.T) {
	_, err := listen(t.Context(), "http.watch", "192.0.2.1:9853")
	const want = "http.watch 192.0.2.1:9853: cannot assign requested address: it is no address of this node"
	if err == nil || err.Error() != want {
		t.Errorf("listen gives %v, want %s", err, want)
	}
}

func TestSensorThatCannotBeOpened(t *testing.T) {
	for want, cause := range map[string]error{
		"open the conntrack sensor: listen: CAP_NET_ADMIN is missing: give it with securityContext.capabilities.add: [NET_ADMIN], or run as root": fmt.Errorf("listen: %w", conntrack.ErrPermission),
		"open the conntrack sensor: no such protocol": errors.New("no such protocol"),
	} {
		listener := newPipes()
		var got conntrack.Config
		cfg := Default()
		cfg.Names.Ports = Ports{53, 5353}
		err := watch(t.Context(), cfg, slog.New(slog.DiscardHandler), Version{}, listener.listen, rim{
			conntrack: func(cfg conntrack.Config) (sensor, error) {
				got = cfg
				return nil, cause
			},
		})
		if err == nil || err.Error() != want || !errors.Is(err, cause) {
			t.Errorf("run gives %v, want %s", err, want)
		}
		if fmt.Sprint(got.Ports) != "[53 5353]" {
			t.Errorf("the sensor was opened for %v", got.Ports)
		}
		select {
		case <-listener.closed:
		default:
			t.Error("the listener was not closed")
		}
	}
}

func TestHealth(t *testing.T) {
	h := &health{why: "not yet"}
	handler := http.NewServeMux()
	addPages(handler, prometheus.NewRegistry(), []*health{h}, slog.New(slog.DiscardHandler))
	check := func(path string, status int, body string) {
		t.Helper()
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != status || w.Body.String() != body {
			t.Errorf("%s gives %d %q, want %d %q", path, w.Code, w.Body, status, body)
		}
	}
	check("/healthz", 503, "not yet\n")
	check("/readyz", 503, "not yet\n")
	h.set(true, true, "")
	check("/healthz", 200, "ok\n")
	check("/readyz", 200, "ok\n")
	h.set(true, false, "stopping")
	check("/healthz", 200, "ok\n")
	check("/readyz", 503, "stopping\n")
	h.set(false, false, "conntrack sensor: broken")
	check("/healthz", 503, "conntrack sensor: broken\n")
	check("/readyz", 503, "conntrack sensor: broken\n")
}
