package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// ErrNoSystemd means that the node is not run by systemd, or its bus cannot be
// reached.
var ErrNoSystemd = errors.New("no systemd")

// ErrNoUnit means that systemd does not know the unit.
var ErrNoUnit = errors.New("no such unit")

// ErrLost means that the connection to systemd has ended. If a job was under way,
// what became of it is not known; systemd finishes it all the same.
var ErrLost = errors.New("connection to systemd lost")

// systemBus is where the node's system bus listens. Unlike systemd's own socket
// it can be used from another pid namespace.
const systemBus = "/run/dbus/system_bus_socket"

// Names of errors on the bus.
const (
	errNoSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"
	errUnitExists = "org.freedesktop.systemd1.UnitExists"
)

// Systemd is a connection to the node's systemd over the system bus. Its methods
// may be called from several goroutines.
type Systemd struct {
	host *Host
	conn *dbus.Conn
	lost context.Context // ends with the connection that hears of jobs' ends
	end  context.CancelFunc
}

// Systemd connects (ErrNoSystemd). The caller closes it. The end of ctx does not.
func (h *Host) Systemd(ctx context.Context) (*Systemd, error) {
	socket := h.Socket(systemBus)
	living, end := context.WithCancel(context.WithoutCancel(ctx))
	// A bus that does not answer must not hold us.
	undo := context.AfterFunc(ctx, end)
	s := &Systemd{host: h, end: end}
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) {
		conn, err := dialBus(ctx, living, socket)
		if err == nil {
			s.lost = conn.Context() // of the last one, on which go-systemd listens
		}
		return conn, err
	})
	s.conn = conn
	switch {
	case !undo(), err != nil && ctx.Err() != nil: // which says nothing of the bus
		err = ctx.Err()
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrNoSystemd, err)
	default:
		return s, nil
	}
	if conn != nil {
		conn.Close()
	}
	end()
	return nil, fmt.Errorf("connect to %s: %w", socket, err)
}

// dialBus makes a connection to the bus, on which systemd is. It ends with living.
func dialBus(ctx, living context.Context, socket string) (*godbus.Conn, error) {
	sock, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	conn, err := godbus.DialUnix(sock.(*net.UnixConn), godbus.WithContext(living))
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	err = conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Geteuid()))})
	if err == nil {
		err = conn.Hello()
	}
	if err == nil {
		// A node may have a bus and another init.
		var owner string
		err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, "org.freedesktop.systemd1").Store(&owner)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Close closes the connection.
func (s *Systemd) Close() {
	s.conn.Close()
	s.end()
}

// job starts a job and waits for its result, as long as ctx lasts.
func (s *Systemd) job(ctx context.Context, verb string, start func(done chan<- string) (int, error)) (string, error) {
	done := make(chan string, 1)
	s.host.step(verb)
	if _, err := start(done); err != nil {
		return "", s.explain(err)
	}
	s.host.step(verb + " called")
	select {
	case result := <-done:
		s.host.step(verb + " done")
		return result, nil
	case <-ctx.Done():
		return "", ctx.Err()
	case <-s.lost.Done():
		return "", ErrLost
	}
}

// explain gives the errors of calls that callers branch on their names.
func (s *Systemd) explain(err error) error {
	var said godbus.Error
	switch {
	case errors.As(err, &said) && said.Name == errNoSuchUnit:
		return fmt.Errorf("%w: %w", ErrNoUnit, err)
	case !s.conn.Connected():
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

// Restart restarts a unit (RestartUnit, mode replace, never ReloadOrRestart) and
// waits for the job as long as ctx lasts; an error names the job's result and the
// unit's. ErrLost, or ctx's error: the job may have been done, or will be.
func (s *Systemd) Restart(ctx context.Context, name string) error {
	return s.change(ctx, "restart", name, s.conn.RestartUnitContext)
}

// Start starts a unit and waits for the job, like Restart.
func (s *Systemd) Start(ctx context.Context, name string) error {
	return s.change(ctx, "start", name, s.conn.StartUnitContext)
}

func (s *Systemd) change(ctx context.Context, verb, name string, call func(ctx context.Context, name, mode string, done chan<- string) (int, error)) error {
	result, err := s.job(ctx, verb, func(done chan<- string) (int, error) { return call(ctx, name, "replace", done) })
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	if result == "done" {
		return nil
	}
	u, err := s.Unit(ctx, name)
	if err != nil {
		return fmt.Errorf("%s %s: job %s; %w", verb, name, result, err)
	}
	return fmt.Errorf("%s %s: job %s; it is %s, result %s", verb, name, result, u.ActiveState, u.Result)
}

// ResetFailed forgets failures and past starts of a unit (its start limit).
func (s *Systemd) ResetFailed(ctx context.Context, name string) error {
	err := s.conn.ResetFailedUnitContext(ctx, name)
	if err == nil {
		return nil
	}
	if err = s.explain(err); errors.Is(err, ErrNoUnit) {
		// So it says of a unit that is not loaded, too: it has nothing to forget.
		_, err = s.Unit(ctx, name)
		return err
	}
	return fmt.Errorf("reset-failed %s: %w", name, err)
}
