package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Log is what one of the pod's containers, "" being its only one, has written to
// standard output and standard error so far.
func (p *CRIPod) Log(container string) (string, error) {
	name, _, err := p.container(container)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(p.box.Root(), p.logDir(), logPath(name)))
	if err != nil {
		return "", fmt.Errorf("log of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return parseLog(string(b)), nil
}

// parseLog is what was written, of a log in CRI's format: TIME STREAM TAG TEXT on
// each line, where the tag P says that the line goes on.
func parseLog(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) < 4 {
			continue // being written
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		out.WriteString(fields[3])
	}
	return out.String()
}

// logDir is where kubelet would have the pod's logs, without the first slash.
func (p *CRIPod) logDir() string {
	return "var/log/pods/" + p.Namespace + "_" + p.Name + "_" + p.UID
}

func logPath(container string) string { return container + "/0.log" }
