package lookup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// waiter lets the reader rest: on a beat by a timer of the runtime, and while
// nothing happens in poll(2), so that nobody wakes for nothing. A goroutine that
// comes back from poll keeps the runtime's monitor awake for some 10 ms, which
// in time costs more than reading what came in a beat. One that comes back from
// a timer does not.
type waiter struct {
	stop int // an eventfd that is readable when Run is to end
	fds  []unix.PollFd
}

func newWaiter(watched ...int) (waiter, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return waiter{}, fmt.Errorf("open eventfd: %w", err)
	}
	w := waiter{stop: fd}
	for _, fd := range append([]int{fd}, watched...) {
		w.fds = append(w.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return w, nil
}

// until makes happens return at once when ctx has ended. The function that it
// returns undoes that.
func (w *waiter) until(ctx context.Context) (undo func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_, _ = unix.Write(w.stop, []byte{7: 1}) // fails only when it is readable already
		close(done)
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// beat waits for the time, or until ctx ends.
func (w *waiter) beat(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// happens waits until a block or a change of links is there, and tells whether
// one is, at most for the time.
func (w *waiter) happens(d time.Duration) (bool, error) {
	n, err := unix.Poll(w.fds, int(d.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait for packets: %w", err)
	}
	return n > 0, nil
}

func (w *waiter) close() error {
	if err := unix.Close(w.stop); err != nil {
		return fmt.Errorf("close eventfd: %w", err)
	}
	return nil
}
