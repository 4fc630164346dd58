// Command resolve looks names up by the resolver of Go's net package. Its usage
// and what it prints are those of ../resolve.c. It must be built without cgo.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

func main() {
	os.Exit(run())
}

func run() int {
	count := flag.Int("n", 1, "look up all names so many times")
	threads := flag.Int("t", 1, "in so many goroutines at once")
	family := flag.String("f", "unspec", "addresses to ask for: unspec, 4 or 6")
	verbose := flag.Bool("v", false, "print a line for each lookup")
	flag.Parse()
	network, ok := map[string]string{"unspec": "ip", "4": "ip4", "6": "ip6"}[*family]
	if !ok || flag.NArg() == 0 {
		flag.Usage()
		return 2
	}
	var (
		resolver = net.Resolver{PreferGo: true}
		out      = bufio.NewWriter(os.Stdout)
		mu       sync.Mutex // of the variables below and of out
		failed   int
		slowest  time.Duration
	)
	lookup := func(name string) {
		start := time.Now()
		addrs, err := resolver.LookupNetIP(context.Background(), network, name)
		took := time.Since(start)
		mu.Lock()
		defer mu.Unlock()
		slowest = max(slowest, took)
		if err != nil {
			failed++
		}
		if *verbose {
			fmt.Fprintf(out, "%s %s %.3f", name, word(err), ms(took))
			for _, a := range addrs {
				fmt.Fprintf(out, " %v", netip.Addr.Unmap(a))
			}
			fmt.Fprintln(out)
			_ = out.Flush() // the last Flush returns the error
		}
	}
	var wg sync.WaitGroup
	for range *threads {
		wg.Go(func() {
			for range *count {
				for _, name := range flag.Args() {
					lookup(name)
				}
			}
		})
	}
	wg.Wait()
	all := *threads * *count * flag.NArg()
	fmt.Fprintf(out, "# lookups=%d ok=%d failed=%d slowest_ms=%.3f\n", all, all-failed, failed, ms(slowest))
	if err := out.Flush(); err != nil {
		return 1
	}
	return 0
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// word is "ok", or the error in one word.
func word(err error) string {
	if err == nil {
		return "ok"
	}
	text := err.Error()
	if dnsErr, ok := errors.AsType[*net.DNSError](err); ok {
		text = dnsErr.Err
	}
	return strings.ReplaceAll(text, " ", "_")
}
