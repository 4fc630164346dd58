package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Lab is one node in a box. Its methods may be called from several goroutines.
type Lab struct {
	ctx    context.Context // of New; ends installs and builds
	log    *slog.Logger
	dir    string
	node   *Namespace
	remote *Namespace

	mu         sync.Mutex
	closed     bool
	closing    sync.Once
	closeErr   error
	closers    []func() error // called in reverse order
	namespaces []*Namespace
	children   []*exec.Cmd
	record     *os.File // of children, see stale.go
	links      map[*Namespace]int
	hosts      map[netip.Prefix]uint16
	clients    map[Resolver]string
	queues     uint16 // NFQUEUEs made so far
	holding    bool   // a Holder is open
	booted     bool   // a Box is open
	names      []hostName

	// Not mu: it is held while the node's thread works, which takes mu itself
	// when it starts a child.
	servicesMu sync.Mutex
	services   []service
}

// New makes a node in a box: a node without pods, services or servers. First it
// clears what crashed earlier runs left. It needs root (CAP_SYS_ADMIN and
// CAP_NET_ADMIN). ctx bounds what the lab installs and builds; its end does not
// close the lab.
func New(ctx context.Context, log *slog.Logger) (*Lab, error) {
	if err := clearStale(log); err != nil {
		return nil, err
	}
	l := &Lab{
		ctx:     ctx,
		log:     log,
		links:   make(map[*Namespace]int),
		hosts:   make(map[netip.Prefix]uint16),
		clients: make(map[Resolver]string),
	}
	if err := l.makeDir(); err != nil {
		return nil, fmt.Errorf("make a directory for the lab: %w", err)
	}
	if err := l.setUp(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// makeDir makes the lab's directory, whose name says who owns it.
func (l *Lab) makeDir() error {
	self, _, err := processOf(os.Getpid())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	if l.dir, err = os.MkdirTemp(stateDir, self.String()+"-*"); err != nil {
		return err
	}
	l.record, err = os.OpenFile(filepath.Join(l.dir, childrenFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, os.RemoveAll(l.dir))
	}
	return nil
}

// setUp makes the node, the remote router and what is between them.
func (l *Lab) setUp() error {
	var err error
	if l.node, err = l.addNamespace("node"); err != nil {
		return err
	}
	if l.remote, err = l.addNamespace("remote"); err != nil {
		return err
	}
	if err := l.connect(); err != nil {
		return fmt.Errorf("connect node and remote: %w", err)
	}
	if err := l.addTables(); err != nil {
		return fmt.Errorf("make the node's NAT: %w", err)
	}
	return nil
}

// addNamespace makes a namespace that ends with the lab.
func (l *Lab) addNamespace(name string) (*Namespace, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("make namespace %s: lab: %w", name, os.ErrClosed)
	}
	n, err := newNamespace(l, name)
	if err != nil {
		return nil, err
	}
	l.namespaces = append(l.namespaces, n)
	return n, nil
}

// Node is the namespace of the node: that of kube-proxy's rules and of the
// conntrack table. Its uplink is Uplink, its pods' links are Pod.Link.
func (l *Lab) Node() *Namespace { return l.node }

// Remote is the namespace of the router behind the node's uplink. It stands for
// another node, has no conntrack, and routes to the backends.
func (l *Lab) Remote() *Namespace { return l.remote }

// Dir is a directory of this lab for what its users want to keep as long as the
// lab lives.
func (l *Lab) Dir() string { return l.dir }

// adopt records a child that has just been started.
func (l *Lab) adopt(cmd *exec.Cmd) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := func() error {
		if l.closed {
			return fmt.Errorf("lab: %w", os.ErrClosed)
		}
		child, _, err := processOf(cmd.Process.Pid)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(l.record, child); err != nil {
			return fmt.Errorf("record child: %w", err)
		}
		return nil
	}()
	if err != nil {
		return errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}
	living := l.children[:0]
	for _, c := range l.children {
		if c.Process.Signal(unix.Signal(0)) == nil {
			living = append(living, c)
		}
	}
	clear(l.children[len(living):])
	l.children = append(living, cmd)
	return nil
}

// ignoreExit is err, or nil when err only says how a child ended.
func ignoreExit(err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil
	}
	return err
}

// atClose has fn called by Close, before children are killed and namespaces
// end. It calls fn at once when the lab is closed already.
func (l *Lab) atClose(fn func() error) error {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.closers = append(l.closers, fn)
	}
	l.mu.Unlock()
	if closed {
		return errors.Join(fmt.Errorf("lab: %w", os.ErrClosed), fn())
	}
	return nil
}

// Close stops holders and servers, kills every child, ends all namespaces and
// removes the lab's directory. Calls after the first return what the first did.
func (l *Lab) Close() error {
	l.closing.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	l.closed = true // from here on nothing is added to the lists below
	l.mu.Unlock()
	var errs []error
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	for _, cmd := range l.children {
		errs = append(errs, end(cmd))
	}
	for _, n := range l.namespaces {
		errs = append(errs, n.close())
	}
	errs = append(errs, l.record.Close(), os.RemoveAll(l.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab: %w", err)
	}
	return nil
}

// end kills a child and waits until it is dead. It leaves the zombie to the one
// who started the child and waits for it.
func end(cmd *exec.Cmd) error {
	if err := cmd.Process.Kill(); errors.Is(err, os.ErrProcessDone) {
		return nil
	} else if err != nil {
		return fmt.Errorf("kill %s: %w", cmd.Path, err)
	}
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil, errors.Is(err, unix.ECHILD):
			return nil
		default:
			return fmt.Errorf("wait for %s: %w", cmd.Path, err)
		}
	}
}
