package lookup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// waiter lets the reader rest. It sleeps in poll(2), not on a timer of the
// runtime: of all wake-ups, that one costs Go the least.
type waiter struct {
	stop int // an eventfd that is readable when Run is to end
	fds  []unix.PollFd
}

func newWaiter(ring, links int) (waiter, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return waiter{}, fmt.Errorf("open eventfd: %w", err)
	}
	w := waiter{stop: fd}
	for _, fd := range []int{fd, ring, links} {
		w.fds = append(w.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return w, nil
}

// until makes wait return at once when ctx has ended. The function that it
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

// wait rests for the time or, when early is set, until a block or a change of
// links is there. It tells whether it was woken.
func (w *waiter) wait(d time.Duration, early bool) (woken bool, err error) {
	fds := w.fds
	if !early {
		fds = fds[:1]
	}
	n, err := unix.Poll(fds, int(d.Milliseconds()))
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
