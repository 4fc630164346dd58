package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nodestead/nodestead/agent"
)

// newAgent makes of cmd a command that runs the agent until a signal.
func newAgent(stderr io.Writer, start func(context.Context, agent.Config, *slog.Logger, agent.Version) error, cmd *cobra.Command) *cobra.Command {
	load := addSettings(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return untilSignal(func(ctx context.Context) error {
			return start(ctx, cfg, agent.NewLogger(stderr, cfg.Log), builtFrom())
		})
	}
	return cmd
}

// untilSignal runs what stops when a signal ends its context. Its error is one at
// run time.
func untilSignal(fn func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The first signal ends ctx; once it is no longer caught, a second one kills.
	defer context.AfterFunc(ctx, stop)()
	if err := fn(ctx); err != nil {
		if _, ok := errors.AsType[agent.Problems](err); ok {
			return err // a setting that shows to be wrong only when it is used
		}
		return failure{err}
	}
	return nil
}

// addSettings gives cmd a flag for each key of the agent's configuration, and
// the function that loads it.
func addSettings(cmd *cobra.Command) (load func() (agent.Config, error)) {
	file := cmd.Flags().String("config", "", "YAML file with settings")
	given := make(map[string]string)
	for _, key := range agent.Keys() {
		cmd.Flags().Var(&setting{key: key, text: key.Default, given: given}, key.Path, key.Help)
	}
	cmd.Args = noArguments
	return func() (agent.Config, error) { return agent.Load(*file, os.Environ(), given) }
}

// setting is the flag of a key. It keeps the text as it was given: agent.Load
// checks it, together with all other sources.
type setting struct {
	key   agent.Key
	text  string
	given map[string]string
}

// String implements pflag.Value.
func (s *setting) String() string { return s.text }

// Type implements pflag.Value: it names the value in the help.
func (s *setting) Type() string { return s.key.Syntax }

// Set implements pflag.Value.
func (s *setting) Set(text string) error {
	s.text = text
	s.given[s.key.Path] = text
	return nil
}
