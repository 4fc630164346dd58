package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockDir is where tools that run without systemd have their lock files. Unlike
// /run/lock it is root's alone everywhere.
const lockDir = "/run/"

// chroot runs a program in the node's root. It holds a lock that the kernel
// releases when both we and the program have ended, so that there is one run at a
// time even if the agent that started it has died.
func (h *Host) chroot(ctx context.Context, unit string, argv []string, out *os.File) error {
	lock, err := h.lock(ctx, lockDir+unit+".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	// Empty, so that neither root needs to have a /dev/null.
	in, err := output()
	if err != nil {
		return err
	}
	defer in.Close()

	h.step("tool")
	process, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir:   "/",
		Env:   toolEnv(),
		Files: []*os.File{in, out, out, lock},
		Sys:   &syscall.SysProcAttr{Chroot: h.path, Setpgid: true},
	})
	if err != nil {
		return err
	}
	h.step("tool called")
	type end struct {
		state *os.ProcessState
		err   error
	}
	ended := make(chan end, 1)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), toolTime)
	go func() { // until the program ends, whatever becomes of us
		defer cancel()
		state, err := waitGroup(limited, process)
		ended <- end{state, err}
	}()
	var e end
	select {
	case e = <-ended:
	case <-ctx.Done():
		// What it has half done would stay half done.
		return fmt.Errorf("it goes on, as process %d: %w", process.Pid, ctx.Err())
	}
	h.step("tool done")
	switch {
	case e.err != nil:
		return e.err
	case e.state.Success():
		return nil
	case limited.Err() != nil:
		return errors.Join(context.DeadlineExceeded, failed(e.state.String(), out))
	}
	return failed(e.state.String(), out)
}

// waitGroup waits for a process that leads a process group, kills what is left of
// the group, as systemd does, or all of it when ctx ends.
func waitGroup(ctx context.Context, process *os.Process) (*os.ProcessState, error) {
	kill := func() { _ = unix.Kill(-process.Pid, unix.SIGKILL) } // nobody left is no error
	killed := make(chan struct{})
	undo := context.AfterFunc(ctx, func() {
		kill()
		close(killed)
	})
	// Until it is reaped, nobody else can have the group's number.
	var err error
	for {
		err = unix.Waitid(unix.P_PID, process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if !undo() {
		<-killed
	}
	kill()
	state, werr := process.Wait()
	return state, errors.Join(os.NewSyscallError("waitid", err), werr)
}
