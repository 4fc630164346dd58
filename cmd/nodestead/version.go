package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/nodestead/nodestead/agent"
)

// Set for a release: go build -ldflags '-X main.version=… -X main.commit=…'.
// Where they are empty, what Go noted in the binary holds.
var version, commit string

func builtFrom() agent.Version {
	v := agent.Version{Version: version, Commit: commit, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		v = complete(v, info)
	}
	if v.Version == "" {
		v.Version = "unknown"
	}
	if v.Commit == "" {
		v.Commit = "unknown"
	}
	return v
}

// complete fills in what is empty from what Go noted.
func complete(v agent.Version, info *debug.BuildInfo) agent.Version {
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	if v.Commit != "" {
		return v
	}
	var modified bool
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if v.Commit != "" && modified {
		v.Commit += "-modified"
	}
	return v
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version, the commit and the Go release",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := builtFrom()
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "nodestead %s, commit %s, %s\n", v.Version, v.Commit, v.Go); err != nil {
				return failure{err}
			}
			return nil
		},
	}
}
