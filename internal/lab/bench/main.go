// Bench compares what it costs to watch conntrack: nodestead against
// conntrack -E, on the same traffic in one run. It prints a table in Markdown.
//
// The figures are of one machine and one hour; the ratios are what counts.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

func main() {
	runs := flag.Int("runs", 3, "how often each load is run; the median counts")
	window := flag.Duration("window", 5*time.Second, "how long each run is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := bench(ctx, *runs, *window)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// observer is a program that watches conntrack.
type observer struct {
	name string
	args []string
}

// load is one kind of traffic.
type load struct {
	name string
	unit string
	run  func(context.Context, time.Duration) (int, error)
}

// result is what one observer spent on one load.
type result struct {
	perUnit  float64 // µs of CPU for each lookup or flow, above idle
	idle     float64 // µs of CPU a second without any traffic
	lost     float64 // messages that the kernel could not queue
	resident float64 // MiB
}

func bench(ctx context.Context, runs int, window time.Duration) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run it as root")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := lab.Install(ctx, log, "conntrack"); err != nil {
		return err
	}
	l, err := lab.New(ctx, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	agent := filepath.Join(l.Dir(), "nodestead")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", agent, "./cmd/nodestead").CombinedOutput(); err != nil {
		return fmt.Errorf("build nodestead: %w: %s", err, out)
	}
	loads, err := traffic(l)
	if err != nil {
		return err
	}
	observers := []observer{
		{"`conntrack -E -p udp`", []string{"conntrack", "-E", "-p", "udp"}},
		{"the same, 8 MiB buffer", []string{"conntrack", "-E", "-p", "udp", "-b", strconv.Itoa(8 << 20)}},
		{"nodestead", []string{agent, "watch", "--http.watch", "127.0.0.1:9853"}},
	}

	fmt.Printf("CPU above idle, messages lost and resident memory; median of %d runs of %v, %s.\n\n", runs, window, kernel())
	fmt.Println("| observer | load | µs of CPU for each | idle, µs a second | messages lost | resident MiB |")
	fmt.Println("|---|---|---|---|---|---|")
	medians := map[string]map[string]float64{}
	for _, load := range loads {
		medians[load.name] = map[string]float64{}
		for _, o := range observers {
			var cpu, idle, lost, resident []float64
			for range runs {
				r, err := measure(ctx, l, o, load, window)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", o.name, load.name, err)
				}
				cpu, idle = append(cpu, r.perUnit), append(idle, r.idle)
				lost, resident = append(lost, r.lost), append(resident, r.resident)
			}
			medians[load.name][o.name] = median(cpu)
			fmt.Printf("| %s | %s | %.3f a %s | %.0f | %.0f | %.1f |\n",
				o.name, load.name, median(cpu), load.unit, median(idle), median(lost), median(resident))
		}
	}
	fmt.Println()
	for _, load := range loads {
		m := medians[load.name]
		ratio := fmt.Sprintf("%.2f %% of", 100*m["nodestead"]/m[observers[0].name])
		if m["nodestead"] <= 0 {
			ratio = "nothing measurable of"
		}
		fmt.Printf("%s: nodestead spends %s what conntrack -E does.\n", load.name, ratio)
	}
	return nil
}

// traffic makes the loads in the lab.
func traffic(l *lab.Lab) ([]load, error) {
	service, turns := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.96.0.11")
	var backends []netip.Addr
	for range 2 {
		b, err := l.AddReflector()
		if err != nil {
			return nil, err
		}
		backends = append(backends, b.Addr4)
	}
	if err := errors.Join(l.AddService(service, lab.Random, backends...), l.AddService(turns, lab.Alternate, backends...)); err != nil {
		return nil, err
	}
	// The limit of the table is the machine's: keep entries short, so that the
	// flood stays below it.
	if err := l.Node().Sysctl("net/netfilter/nf_conntrack_udp_timeout", "1"); err != nil {
		return nil, err
	}
	g, err := l.AddLoad()
	if err != nil {
		return nil, err
	}
	lookups := func(rate int) func(context.Context, time.Duration) (int, error) {
		return func(ctx context.Context, d time.Duration) (int, error) {
			before, err := g.Answered()
			if err != nil {
				return 0, err
			}
			n, err := g.Lookups(ctx, service, rate, d)
			after, err2 := g.Answered()
			if err := errors.Join(err, err2); err != nil {
				return 0, err
			}
			// A few may still be under way; without answers it is no load.
			if after-before < uint64(n)*19/10 {
				return 0, fmt.Errorf("%d lookups got %d answers: the machine is too busy", n, after-before)
			}
			return n, nil
		}
	}
	return []load{
		{"2,000 lookups/s", "lookup", lookups(2000)},
		{"15,000 lookups/s", "lookup", lookups(15000)},
		{"a storm: 2,000 collisions/s", "collision", func(ctx context.Context, d time.Duration) (n int, err error) {
			h, err := l.Hold(2, 0)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, h.Close()) }()
			_, err = g.Lookups(ctx, turns, 2000, d)
			return int(h.Full()), err
		}},
		{"50,000 foreign flows/s", "flow", func(ctx context.Context, d time.Duration) (int, error) { return g.Foreign(ctx, 50000, d) }},
	}, nil
}

// measure runs an observer in the node's namespace: first idle, then under the
// load.
func measure(ctx context.Context, l *lab.Lab, o observer, load load, window time.Duration) (r result, err error) {
	// Entries of the run before would end, with a message each, in this one.
	if err := l.Node().Do(flush); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, o.args[0], o.args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr // standard output goes to /dev/null
	if err := l.Node().Start(cmd); err != nil {
		return r, err
	}
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait() // conntrack's exit code tells nothing
		if err != nil {
			err = fmt.Errorf("%w; it said: %s", err, stderr.String())
		}
	}()
	pid := cmd.Process.Pid
	err = lab.Until(ctx, 10*time.Second, func() error {
		n, _, err := sockets(pid)
		if err == nil && n == 0 {
			err = errors.New("it does not listen")
		}
		return err
	})
	if err != nil {
		return r, err
	}
	begin, err := cpu(pid)
	if err != nil {
		return r, err
	}
	rest, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	<-rest.Done()
	idle, err := cpu(pid)
	if err != nil {
		return r, err
	}
	n, err := load.run(ctx, window)
	if err != nil {
		return r, err
	}
	busy, err := cpu(pid)
	if err != nil {
		return r, err
	}
	_, drops, err := sockets(pid)
	if err != nil {
		return r, err
	}
	resident, err := resident(pid)
	spent := (busy - idle) - (idle - begin)
	return result{
		perUnit:  float64(spent.Microseconds()) / float64(n),
		idle:     float64((idle - begin).Microseconds()) / window.Seconds(),
		lost:     float64(drops),
		resident: resident,
	}, err
}

// flush empties the table of the namespace.
func flush() error {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return err
	}
	return errors.Join(conn.Flush(), conn.Close())
}

// cpu is the time that a process has run on a CPU so far (all threads).
func cpu(pid int) (total time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("process %d has ended: %w", pid, err)
	}
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
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

// resident is the process's resident memory in MiB.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "kernel unknown"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}
