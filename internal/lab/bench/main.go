// Bench compares what it costs to watch: nodestead against conntrack -E and
// against tcpdump, on the same traffic in one run. It prints tables in Markdown.
//
// The figures are of one machine and one hour; the ratios are what counts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

func main() {
	runs := flag.Int("runs", 3, "how often each load is run; the median counts")
	window := flag.Duration("window", 5*time.Second, "how long each run is")
	only := flag.String("only", "", "one comparison only: conntrack or dns")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	run := func() error { return bench(ctx, *runs, *window, *only) }
	if flag.Arg(0) == tapCommand {
		run = func() error { return tap(ctx, os.Stderr) }
	}
	err := run()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// comparison is a table: observers of one kind on loads that matter to them. The
// last observer is compared with the first.
type comparison struct {
	about     string
	observers []observer
	loads     []load
}

// load is one kind of traffic.
type load struct {
	name string
	unit string
	run  func(context.Context, time.Duration) (int, error)
}

func bench(ctx context.Context, runs int, window time.Duration, only string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run it as root")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := lab.Install(ctx, log, "conntrack", "tcpdump"); err != nil {
		return err
	}
	l, err := lab.New(ctx, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	t, err := newTraffic(l)
	if err != nil {
		return err
	}
	known := false
	for _, c := range []struct {
		name string
		make func(context.Context, *traffic) (comparison, error)
	}{{"conntrack", compareConntrack}, {"dns", compareDNS}} {
		if only != "" && only != c.name {
			continue
		}
		known = true
		compared, err := c.make(ctx, t)
		if err != nil {
			return err
		}
		if err := compared.run(ctx, l, runs, window); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("no comparison %q", only)
	}
	return nil
}

// buildAgent builds nodestead and returns the binary's path.
func buildAgent(ctx context.Context, l *lab.Lab) (string, error) {
	agent := filepath.Join(l.Dir(), "nodestead")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", agent, "./cmd/nodestead").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nodestead: %w: %s", err, out)
	}
	return agent, nil
}

func (c comparison) run(ctx context.Context, l *lab.Lab, runs int, window time.Duration) error {
	fmt.Printf("%s CPU above idle; median of %d runs of %v, %s.\n\n", c.about, runs, window, kernel())
	fmt.Println("| observer | load | µs of CPU for each | idle, µs a second | lost | resident MiB |")
	fmt.Println("|---|---|---|---|---|---|")
	first, last := c.observers[0].name, c.observers[len(c.observers)-1].name
	var ratios []string
	for _, load := range c.loads {
		medians := map[string]float64{}
		for _, o := range c.observers {
			var cpu, idle, lost, resident []float64
			for range runs {
				r, err := measure(ctx, l, o, load, window)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", o.name, load.name, err)
				}
				cpu, idle = append(cpu, r.perUnit), append(idle, r.idle)
				lost, resident = append(lost, r.lost), append(resident, r.resident)
			}
			medians[o.name] = median(cpu)
			fmt.Printf("| %s | %s | %.3f a %s | %.0f | %.0f | %.1f |\n",
				o.name, load.name, median(cpu), load.unit, median(idle), median(lost), median(resident))
		}
		ratio := fmt.Sprintf("%.2f %% of", 100*medians[last]/medians[first])
		if medians[last] <= 0 {
			ratio = "nothing measurable of"
		}
		ratios = append(ratios, fmt.Sprintf("%s: %s spends %s what %s does.", load.name, last, ratio, first))
	}
	fmt.Printf("\n%s\n\n", strings.Join(ratios, "\n"))
	return nil
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
