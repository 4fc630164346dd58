package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nodestead/nodestead/agent"
	"github.com/nodestead/nodestead/doctor"
)

// newDoctor makes the command that examines the node.
func newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "examine this node for what breaks DNS lookups and trust",
		Long: `doctor asks this node everything that is known to break DNS lookups, and gives a
verdict for each with evidence and remedy. With a registry, or where a source of
CA certificates exists (trust.sources), it also says what is installed, what each
daemon that pulls images has loaded, what it says of the registry, and what would
help. It changes nothing and takes at most six seconds, or a minute when it asks
about registries. Exit codes: 0 healthy, 1 a finding, 2 something could not be
told.

` + settings,
	}
	name := cmd.Flags().String("name", "", "name to look up as a pod would, with the search list unless it ends with a dot")
	registries := cmd.Flags().StringSlice("registry", nil, "private registry, host:port, to ask the daemons about; may be given more than once (default trust.registries)")
	output := cmd.Flags().StringP("output", "o", "table", "table or json")
	load := addSettings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		write := doctor.Table
		switch *output {
		case "table":
		case "json":
			write = doctor.JSON
		default:
			return fmt.Errorf("--output %q: want table or json", *output)
		}
		for i, r := range *registries {
			var checked agent.Registry
			if err := checked.UnmarshalText([]byte(r)); err != nil {
				return fmt.Errorf("--registry: %w", err)
			}
			(*registries)[i] = string(checked)
		}
		trust := cfg.Sync(slog.New(slog.DiscardHandler))
		if len(*registries) == 0 {
			*registries = trust.Registries
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		examined := doctor.Config{HostRoot: cfg.Root(), Name: *name, Trust: &trust, Registries: *registries}
		for _, p := range cfg.Names.Ports {
			examined.Ports = append(examined.Ports, uint16(p))
		}
		examined.Nameservers = make([]netip.AddrPort, 0, len(cfg.Names.Probe.Nameservers))
		for _, n := range cfg.Names.Probe.Nameservers {
			examined.Nameservers = append(examined.Nameservers, n.AddrPort)
		}
		verdicts := doctor.Run(ctx, examined)
		if err := write(cmd.OutOrStdout(), verdicts); err != nil {
			return failure{err}
		}
		if code := doctor.Exit(verdicts); code != exitOK {
			return verdict(code)
		}
		return nil
	}
	return cmd
}

// verdict is the exit code of an examination that found something. All was said.
type verdict int

// Error implements error.
func (v verdict) Error() string { return fmt.Sprintf("exit code %d", int(v)) }
