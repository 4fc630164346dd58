// Command nodestead is the agent that runs on every node. Here are its flags,
// signals and exit codes, and nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodestead/nodestead/agent"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // at run time
	exitUsage   = 2 // the command line or the configuration
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	return execute(args, stdout, stderr, work{
		run: agent.Run, watch: agent.Watch, trust: agent.Trust,
		once: agent.TrustOnce, uninstall: agent.TrustUninstall, plan: agent.TrustPlan,
	})
}

// work is what the commands do; all of it is package agent's.
type work struct {
	run, watch, trust func(context.Context, agent.Config, *slog.Logger, agent.Version) error
	once, uninstall   func(context.Context, agent.Config, *slog.Logger) error
	plan              func(context.Context, agent.Config, *slog.Logger, io.Writer) error
}

// failure is an error at run time; any other is one of usage.
type failure struct{ error }

// Unwrap gives the error itself.
func (f failure) Unwrap() error { return f.error }

// execute is run with the work given, for tests.
func execute(args []string, stdout, stderr io.Writer, work work) int {
	root := newRoot(stderr, work)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.InitDefaultHelpCmd() // Find must know it
	_, _, err := root.Find(args)
	switch {
	case len(args) == 0:
		err = errors.New("no command given; nodestead --help lists the commands")
	case err != nil:
		err = fmt.Errorf("%w; nodestead --help lists the commands", err)
	default:
		err = root.Execute()
	}
	if err == nil {
		return exitOK
	}
	if v, ok := errors.AsType[verdict](err); ok {
		return int(v)
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "nodestead: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if _, ok := errors.AsType[failure](err); ok {
		return exitFailure
	}
	return exitUsage
}

func newRoot(stderr io.Writer, work work) *cobra.Command {
	root := &cobra.Command{
		Use:   "nodestead",
		Short: "nodestead settles names and trust on this node",
		Long: `nodestead runs on every Kubernetes node. It sees the DNS lookups of pods, and says
in its log and in metrics which of them were lost, whose they were, why, and
what to do. And it makes the node, and the daemons that pull images, trust a
private CA.`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // an error is one line
		CompletionOptions:  cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(
		newAgent(stderr, work.run, &cobra.Command{
			Use:   "run",
			Short: "run the agent: names and trust",
			Long: `run runs both halves of the agent until SIGTERM or SIGINT: it watches DNS lookups
as watch does, and installs the private CA as trust does. It serves HTTP on
http.watch.

` + settings,
		}),
		newAgent(stderr, work.watch, &cobra.Command{
			Use:   "watch",
			Short: "watch DNS lookups",
			Long:  "watch watches DNS lookups until SIGTERM or SIGINT. It changes nothing on the node.\n\n" + settings,
		}),
		newTrust(stderr, work),
		newDoctor(),
		newVersion(),
	)
	return root
}

const settings = `The environment overrides the file, and a flag overrides both. The variable of
a setting is its name in capitals after NODESTEAD_, with _ for each dot:
NODESTEAD_LOG_LEVEL for log.level.`

// noArguments refuses arguments.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, but %q was given", cmd.CommandPath(), args[0])
	}
	return nil
}
