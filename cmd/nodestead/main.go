// Command nodestead is the agent that runs on every node. Here are its flags,
// signals and exit codes, and nothing else.
package main

import (
	"errors"
	"fmt"
	"io"
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
	return execute(args, stdout, stderr, agent.Run)
}

// failure is an error at run time; any other is one of usage.
type failure struct{ error }

// Unwrap gives the error itself.
func (f failure) Unwrap() error { return f.error }

// execute is run with the agent given, for tests.
func execute(args []string, stdout, stderr io.Writer, start startFunc) int {
	root := newRoot(stderr, start)
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

func newRoot(stderr io.Writer, start startFunc) *cobra.Command {
	root := &cobra.Command{
		Use:   "nodestead",
		Short: "nodestead finds out why DNS lookups of pods on this node are lost",
		Long: `nodestead runs on every Kubernetes node. It sees the DNS lookups of pods, and says
in its log and in metrics which of them were lost, whose they were, why, and
what to do.`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // an error is one line
		CompletionOptions:  cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(
		newAgent(stderr, start, &cobra.Command{
			Use:   "run",
			Short: "run the agent",
			Long:  "run runs the agent until SIGTERM or SIGINT. It watches DNS lookups: today\nthat is all it does, and watch is the same.\n\n" + settings,
		}),
		newAgent(stderr, start, &cobra.Command{
			Use:   "watch",
			Short: "watch DNS lookups",
			Long:  "watch watches DNS lookups until SIGTERM or SIGINT. Today run\ndoes the same.\n\n" + settings,
		}),
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
