package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/nodestead/nodestead/internal/lab"
	"github.com/nodestead/nodestead/lookup"
)

// compareDNS compares taps of DNS packets on all links. The sensor alone is this
// program itself, with nobody who listens to it.
func compareDNS(ctx context.Context, t *traffic) (comparison, error) {
	self, err := os.Executable()
	if err != nil {
		return comparison{}, err
	}
	agent, err := buildAgent(ctx, t.lab)
	if err != nil {
		return comparison{}, err
	}
	return comparison{
		about: "Watching DNS; a lookup is a pair of A and AAAA, lost are packets.",
		observers: []observer{
			{"`tcpdump -i any -w /dev/null`", []string{"tcpdump", "-Z", "root", "-i", "any", "-w", "/dev/null", "udp", "port", "53"}, taps, droppedByKernel, true},
			{"nodestead's sensor alone", []string{self, tapCommand}, taps, droppedByKernel, true},
			{"nodestead", []string{agent, "watch", "--http.watch", metricsAddress}, taps, lostByMetric(t.lab.Node()), false},
		},
		loads: []load{
			{"2,000 lookups/s", "lookup", t.lookups(2000)},
			{"15,000 lookups/s", "lookup", t.lookups(15000)},
		},
	}, nil
}

// taps returns an error as long as no packet socket receives in the process's
// network namespace.
func taps(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/packet", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		// sk RefCnt Type Proto Iface R Rmem User Inode
		if f := strings.Fields(line); len(f) > 5 && f[3] == "0003" && f[5] == "1" {
			return nil
		}
	}
	return errors.New("it does not tap")
}

// droppedByKernel finds what tcpdump says at its end: how many packets the
// kernel had no room for.
func droppedByKernel(_ int, said string) (float64, error) {
	for line := range strings.Lines(said) {
		if n, ok := strings.CutSuffix(strings.TrimSpace(line), " packets dropped by kernel"); ok {
			return strconv.ParseFloat(n, 64)
		}
	}
	return 0, errors.New("it did not say how much was dropped")
}

// metricsAddress is where the agent serves its metrics, in the node's namespace.
const metricsAddress = "127.0.0.1:9853"

// lostByMetric asks the agent how many packets it lost.
func lostByMetric(node *lab.Namespace) func(int, string) (float64, error) {
	return func(int, string) (float64, error) {
		client := node.HTTPClient()
		defer client.CloseIdleConnections()
		r, err := client.Get("http://" + metricsAddress + "/metrics")
		if err != nil {
			return 0, err
		}
		defer r.Body.Close()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), `nodestead_sensor_lost_total{sensor="lookup"} `); ok {
				return strconv.ParseFloat(n, 64)
			}
		}
		return 0, errors.Join(errors.New("the agent has no metric of lost packets"), lines.Err())
	}
}

// tapCommand is this program's argument to be a tap.
const tapCommand = "tap"

// tap runs the sensor in the namespace that it is started in until ctx ends,
// with nobody who listens to it, and then says what tcpdump says.
func tap(ctx context.Context, w io.Writer) error {
	s, err := lookup.Open(lookup.Config{})
	if err != nil {
		return err
	}
	err = s.Run(ctx, func(lookup.Event) {})
	c := s.Counters()
	fmt.Fprintf(w, "%d packets captured\n%d packets dropped by kernel\n", c.Packets, c.Lost)
	return errors.Join(err, s.Close())
}
