package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
	"github.com/nodestead/nodestead/workload"
)

// The functions of rim. Each makes of a nil pointer with an error a nil
// interface.

func openConntrack(cfg conntrack.Config) (sensor, error) {
	s, err := conntrack.Open(cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openLookup(cfg lookup.Config) (lookupSource, error) {
	s, err := lookup.Open(cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openFinder(cfg workload.Config) (finder, error) {
	f, err := workload.New(cfg)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// newProbe makes the probe, in the network namespace of the process; nil when
// no names are configured.
func newProbe(cfg Config, log *slog.Logger) (prober, error) {
	c := cfg.Names.Probe
	if len(c.Names) == 0 {
		return nil, nil
	}
	var names []string
	for _, n := range c.Names {
		names = append(names, string(n))
	}
	var servers []netip.AddrPort
	for _, n := range c.Nameservers {
		servers = append(servers, n.AddrPort)
	}
	source := "names.probe.nameservers"
	if len(servers) == 0 {
		var err error
		if servers, source, err = probe.Nameservers(cfg.Root()); err != nil || len(servers) == 0 {
			return nil, errors.Join(errors.New("names.probe: no nameservers of pods were found: set names.probe.nameservers"), err)
		}
	}
	log.Info("probe is on", "names", c.Names.String(), "nameservers", servers, "from", source)
	p, err := probe.New(probe.Config{Names: names, Nameservers: servers, Interval: time.Duration(c.Interval)})
	if err != nil {
		return nil, err
	}
	return p, nil
}
