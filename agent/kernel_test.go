package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// kernelAgent is the agent on the node of a lab: the kernel's own conntrack,
// real clients, and what an operator sees of it.
type kernelAgent struct {
	*lab.Lab
	t     *testing.T
	log   logs
	stop  context.CancelFunc
	ended chan error
	pod   *lab.Pod
}

const (
	kernelAddress = "127.0.0.1:9853"
	// lateAnswer is when a server answers whose answers are to be orphaned: after the second that
	// conntrack keeps an entry, and so long before musl asks again, and gives up, that neither
	// changes where all stand still for most of a second.
	lateAnswer = 1300 * time.Millisecond
)

func newKernelAgent(t *testing.T) *kernelAgent {
	t.Helper()
	a := &kernelAgent{Lab: lab.ForTest(t), t: t, ended: make(chan error, 1)}
	service := netip.MustParseAddr("10.96.0.10")
	address := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	var backends []netip.Addr
	for range 2 {
		s, err := a.AddServer(lab.Rule{Name: "slow.test.", Addrs: address, Delay: lateAnswer}, lab.Rule{Name: "*", Addrs: address})
		if err != nil {
			t.Fatal(err)
		}
		backends = append(backends, s.Addr4)
	}
	if err := a.AddService(service, lab.Alternate, backends...); err != nil {
		t.Fatal(err)
	}
	var err error
	if a.pod, err = a.AddPod(lab.PodConfig{Name: "musl", Nameservers: []netip.Addr{service}}); err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.HTTP.Watch = kernelAddress
	a.launch(cfg, Watch)
	t.Cleanup(a.stop)
	return a
}

// launch runs the agent in the node's network and waits until it is ready.
func (a *kernelAgent) launch(cfg Config, run func(context.Context, Config, *slog.Logger, Version) error) {
	a.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	log := slog.New(slog.NewTextHandler(&a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the node's namespace
		if err := unix.Setns(a.Node().FD(), unix.CLONE_NEWNET); err != nil {
			a.ended <- err
			return
		}
		a.ended <- run(ctx, cfg, log, Version{Version: "test"})
	}()
	a.until("/readyz answers ok", func() error {
		body, err := a.get("/readyz")
		if err == nil && body != "ok\n" {
			err = errors.New(body)
		}
		return err
	})
}

func (a *kernelAgent) get(path string) (string, error) {
	resp, err := a.Node().HTTPClient().Get("http://" + kernelAddress + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// until asks again until ok gives no error, for at most twenty seconds.
func (a *kernelAgent) until(what string, ok func() error) {
	a.t.Helper()
	if err := lab.Until(a.t.Context(), 20*time.Second, ok); err != nil {
		a.t.Fatalf("%s: %v\n%s", what, err, a.log.String())
	}
}

// metric waits until a sample of /metrics has a value.
func (a *kernelAgent) metric(sample, value string) {
	a.t.Helper()
	a.until(sample+" "+value, func() error {
		body, err := a.get("/metrics")
		if err == nil && !strings.Contains(body, "\n"+sample+" "+value+"\n") {
			err = errors.New("it has not")
			for line := range strings.Lines(body) {
				if strings.HasPrefix(line, sample) {
					err = errors.New("it is " + line)
				}
			}
		}
		return err
	})
}

// logged waits until a line with all parts was logged.
func (a *kernelAgent) logged(parts ...string) {
	a.t.Helper()
	a.until(fmt.Sprintf("a log line with %q", parts), func() error {
		for line := range strings.Lines(a.log.String()) {
			found := true
			for _, p := range parts {
				found = found && strings.Contains(line, p)
			}
			if found {
				return nil
			}
		}
		return errors.New("there is none")
	})
}

// What an operator sees of an incident, from the kernel to the log line and the
// metrics; and the end: in order, with nothing left behind.
func TestAgentOnTheKernel(t *testing.T) {
	a := newKernelAgent(t)
	a.metric(`nodestead_conntrack_collisions_total{namespace="",pod="",resolver="",result="orphaned"}`, "0")
	a.metric(`nodestead_sensor_blind{reason="events_off",sensor="conntrack"}`, "0")
	h, err := a.Hold(2, 250*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for pairs, name := range []string{"fast.test.", "slow.test."} {
		// The questions of a client that stands still between them do not collide.
		for h.Full() == uint64(pairs) {
			if _, err := a.pod.Resolve(t.Context(), lab.MuslStatic, 1, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	client := "client=" + a.pod.Addr4.String() + ":"
	a.logged("level=DEBUG", `msg="dns queries collided"`, client, "nameserver=10.96.0.10:53", "answered=true")
	a.logged("level=WARN", `msg="dns lookup lost"`, "cause=orphaned_answer", "resolver=musl", "name=slow.test.", client, "nameserver=10.96.0.10:53",
		"attempts=2", "waited=4.", "evidence=", "after the question", "remedy=", "count=1")
	a.metric(`nodestead_conntrack_collisions_total{namespace="",pod="",resolver="musl",result="orphaned"}`, "1")
	a.metric(`nodestead_dns_lookup_timeouts_total{cause="orphaned_answer",namespace="",pod="",resolver="musl"}`, "1")
	a.metric("nodestead_conntrack_clash_resolved_total", "2")

	set := func(value string) {
		t.Helper()
		if err := a.Node().Sysctl("net/netfilter/nf_conntrack_events", value); err != nil {
			t.Fatal(err)
		}
	}
	set("0")
	a.metric(`nodestead_sensor_blind{reason="events_off",sensor="conntrack"}`, "1")
	a.logged("level=WARN", `msg="sensor is blind"`, "reason=events_off", "remedy=", "nf_conntrack_events=1")
	set("1")
	a.metric(`nodestead_sensor_blind{reason="events_off",sensor="conntrack"}`, "0")
	a.logged("level=INFO", `msg="sensor sees again"`, "reason=events_off")

	a.stop()
	if err := <-a.ended; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	a.logged("level=INFO", `msg="nodestead stopped"`)
}
