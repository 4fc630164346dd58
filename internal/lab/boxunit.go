package lab

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Unit is what the box's systemd says of a unit. One that is no service has
// neither MainPID nor NRestarts.
type Unit struct {
	ActiveState string // active, inactive, failed, …
	Result      string // success, start-limit-hit, …
	// InvocationID is another one after each start.
	InvocationID string
	MainPID      int // as the box sees it
	NRestarts    int // automatic restarts
	// Started is when it became active last, zero if it never did.
	Started time.Time
}

// Unit asks systemd for a unit ("docker.service"). One that does not exist is
// inactive.
func (b *Box) Unit(ctx context.Context, name string) (Unit, error) {
	out, err := b.Run(ctx, "systemctl", "show", "--timestamp=us+utc",
		"--property=ActiveState,Result,InvocationID,MainPID,NRestarts,ActiveEnterTimestamp", name)
	if err != nil {
		return Unit{}, err
	}
	u, err := parseUnit(out)
	if err != nil {
		return Unit{}, fmt.Errorf("unit %s: %w", name, err)
	}
	return u, nil
}

// parseUnit reads what systemctl prints: NAME=VALUE lines, in any order.
func parseUnit(text string) (Unit, error) {
	values := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[name] = value
	}
	u := Unit{ActiveState: values["ActiveState"], Result: values["Result"], InvocationID: values["InvocationID"]}
	if u.ActiveState == "" {
		return Unit{}, fmt.Errorf("no state in %q", text)
	}
	var errs [3]error
	if pid, ok := values["MainPID"]; ok {
		u.MainPID, errs[0] = strconv.Atoi(pid)
	}
	if restarts, ok := values["NRestarts"]; ok {
		u.NRestarts, errs[1] = strconv.Atoi(restarts)
	}
	if at := values["ActiveEnterTimestamp"]; at != "" {
		u.Started, errs[2] = time.Parse("Mon 2006-01-02 15:04:05.999999 MST", at)
	}
	return u, errors.Join(errs[:]...)
}
