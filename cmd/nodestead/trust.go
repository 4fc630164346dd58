package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/nodestead/nodestead/agent"
)

// newTrust makes the command that makes the node trust the private CA.
func newTrust(stderr io.Writer, work work) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "make this node trust a private CA",
		Long: `trust takes the private CA from trust.sources, puts it where this node's daemons
look, asks them whether they trust the registries (trust.registries), and
restarts one only when that is needed and safe. It does so until SIGTERM or
SIGINT, and serves HTTP on http.trust; or, with a flag of these three, once:

  --once       one pass. Exit codes: 0 all is in sync and nothing is pending,
               1 something is not, and standard error says what. In a pod it
               restarts nothing unless trust.restarts.concurrency is 0: it does
               not wait for the turn of this node.
  --dry-run    print what a pass would change, and whether it would restart
               anything and why. Nothing is written, and no daemon is asked
               anything that makes it load certificates.
  --uninstall  take back everything that was ever installed.

` + settings,
	}
	once := cmd.Flags().Bool("once", false, "make one pass and exit")
	plan := cmd.Flags().Bool("dry-run", false, "print what a pass would change and exit")
	uninstall := cmd.Flags().Bool("uninstall", false, "take back everything and exit")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *once && *plan || *once && *uninstall || *plan && *uninstall {
			return errors.New("--once, --dry-run and --uninstall exclude each other")
		}
		return nil
	}
	return newAgent(stderr, func(ctx context.Context, cfg agent.Config, log *slog.Logger, version agent.Version) error {
		switch {
		case *once:
			return work.once(ctx, cfg, log)
		case *plan:
			return work.plan(ctx, cfg, log, cmd.OutOrStdout())
		case *uninstall:
			return work.uninstall(ctx, cfg, log)
		default:
			return work.trust(ctx, cfg, log, version)
		}
	}, cmd)
}
