package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// compareConntrack compares listeners to conntrack's events.
func compareConntrack(ctx context.Context, t *traffic) (comparison, error) {
	agent, err := buildAgent(ctx, t.lab)
	if err != nil {
		return comparison{}, err
	}
	listens := func(pid int) error {
		n, _, err := sockets(pid)
		if err == nil && n == 0 {
			err = errors.New("it does not listen")
		}
		return err
	}
	lost := func(pid int, _ string) (float64, error) {
		_, drops, err := sockets(pid)
		return float64(drops), err
	}
	return comparison{
		about: "Watching conntrack; lost are messages.",
		observers: []observer{
			{"`conntrack -E -p udp`", []string{"conntrack", "-E", "-p", "udp"}, listens, lost, false},
			{"the same, 8 MiB buffer", []string{"conntrack", "-E", "-p", "udp", "-b", strconv.Itoa(8 << 20)}, listens, lost, false},
			{"nodestead", []string{agent, "watch", "--http.watch", metricsAddress}, listens, lost, false},
		},
		loads: []load{
			{"2,000 lookups/s", "lookup", t.lookups(2000)},
			{"15,000 lookups/s", "lookup", t.lookups(15000)},
			{"a storm: 2,000 collisions/s", "collision", t.storm(2000)},
			{"50,000 foreign flows/s", "flow", func(ctx context.Context, d time.Duration) (int, error) { return t.load.Foreign(ctx, 50000, d) }},
		},
	}, nil
}

// sockets counts the sockets that listen to netfilter's multicast in the
// process's network namespace, and the messages that they lost.
func sockets(pid int) (n, drops int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		f := strings.Fields(line)
		if len(f) < 9 || f[1] != strconv.Itoa(unix.NETLINK_NETFILTER) || strings.Trim(f[3], "0") == "" {
			continue
		}
		d, err := strconv.Atoi(f[8])
		if err != nil {
			return 0, 0, err
		}
		n, drops = n+1, drops+d
	}
	return n, drops, nil
}
