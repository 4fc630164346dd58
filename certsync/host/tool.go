package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	// toolTime is how long a tool may run.
	toolTime = 2 * time.Minute
	// toolPoll is how often is looked whether another agent's run has ended.
	toolPoll = 100 * time.Millisecond
	// toolTail is how much of a failed tool's output is told, in bytes.
	toolTail = 2048
)

// toolEnv is all the environment that tools get: one language, for messages that
// can be looked up.
func toolEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
}

// Tool runs a program of the node in the node's own root, and waits for it: as a
// systemd transient unit with the name unit ("….service") where systemd runs,
// else by chroot. A run of that unit by another agent is waited for first. The
// error of a failed run has what is known of its output. The program is given by
// its absolute path and may take two minutes. When ctx ends it goes on to its end:
// what it has half done would stay half done.
func (h *Host) Tool(ctx context.Context, unit string, argv []string) error {
	if len(argv) == 0 || !path.IsAbs(argv[0]) {
		return fmt.Errorf("run %q: not an absolute path", argv)
	}
	out, err := output()
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer out.Close()
	sd, err := h.Systemd(ctx)
	switch {
	case err == nil:
		err = sd.transient(ctx, unit, argv, out)
		sd.Close()
	case errors.Is(err, ErrNoSystemd):
		err = h.chroot(ctx, unit, argv, out)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	return nil
}

// output makes a file in memory for what a tool prints. It needs no reader while
// the tool runs, and none that lives until its end: a pipe would kill a tool that
// outlives us, in the middle of its work.
func output() (*os.File, error) {
	const name = "nodestead-tool"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// failed is the error of a tool that ended in a way, with the end of its output.
func failed(how string, out *os.File) error {
	fi, err := out.Stat()
	if err != nil {
		return errors.Join(errors.New(how), err)
	}
	from := max(0, fi.Size()-toolTail)
	tail, err := io.ReadAll(io.NewSectionReader(out, from, toolTail))
	if err != nil {
		return errors.Join(errors.New(how), err)
	}
	text := strings.TrimSpace(strings.ToValidUTF8(string(tail), "?"))
	if text == "" {
		text = "it printed nothing"
	} else if from > 0 {
		text = "… " + text
	}
	return fmt.Errorf("%s: %s", how, text)
}

// transient runs a program as a unit of the node's systemd.
func (s *Systemd) transient(ctx context.Context, unit string, argv []string, out *os.File) error {
	// systemd puts variables into arguments; sh -c must see what was given to it.
	literal := make([]string, len(argv))
	for i, arg := range argv {
		literal[i] = strings.ReplaceAll(arg, "$", "$$")
	}
	// Whatever its parameter is called, true has systemd ignore a failure (252).
	start := dbus.PropExecStart(literal, false)
	// The fd's number is what the bus' library sends; it is out's until that is closed.
	fd := godbus.UnixFD(out.Fd())
	property := func(name string, value any) dbus.Property {
		return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
	}
	properties := []dbus.Property{
		property("Description", "nodestead: "+strings.Join(argv, " ")),
		dbus.PropType("oneshot"),
		start,
		property("Environment", toolEnv()),
		property("TimeoutStartUSec", uint64(toolTime.Microseconds())),
		property("StandardOutputFileDescriptor", fd),
		property("StandardErrorFileDescriptor", fd),
		// When it ends nothing is left of it, but only after we have seen its
		// result: it is kept for this connection.
		property("CollectMode", "inactive-or-failed"),
		property("AddRef", true),
	}
	ticker := time.NewTicker(toolPoll)
	defer ticker.Stop()
	for {
		result, err := s.job(ctx, "tool", func(done chan<- string) (int, error) {
			return s.conn.StartTransientUnitContext(ctx, unit, "fail", properties, done)
		})
		var said godbus.Error
		switch {
		case errors.As(err, &said) && said.Name == errUnitExists:
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for the end of %s: %w", unit, ctx.Err())
			case <-ticker.C:
			}
		case err != nil:
			return fmt.Errorf("as %s: %w", unit, err)
		case result == "done":
			return nil
		default:
			return s.toolFailed(ctx, unit, result, out)
		}
	}
}

// toolFailed says how a tool failed.
func (s *Systemd) toolFailed(ctx context.Context, unit, job string, out *os.File) error {
	how := unit + ": job " + job
	result, err := property[string](ctx, s, unit, "Service", "Result")
	if err != nil {
		return errors.Join(failed(how, out), err)
	}
	status, err := property[int32](ctx, s, unit, "Service", "ExecMainStatus") // exit status or signal
	if err != nil {
		return errors.Join(failed(how, out), err)
	}
	return failed(fmt.Sprintf("%s, result %s, status %d", how, result, status), out)
}
