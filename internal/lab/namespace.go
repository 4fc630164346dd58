package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with a mount namespace of its own. One
// goroutine owns it: that goroutine locks its thread, enters new namespaces and
// never unlocks the thread, so that the Go runtime ends the thread instead of
// handing it, in the wrong namespace, to other goroutines.
type Namespace struct {
	lab   *Lab
	name  string
	fd    int
	calls chan func()
	stop  chan struct{} // closed by close
	done  chan struct{} // closed when the owner has ended
}

// newNamespace makes a namespace with its loopback still down.
func newNamespace(l *Lab, name string) (*Namespace, error) {
	n := &Namespace{
		lab:   l,
		name:  name,
		fd:    -1,
		calls: make(chan func()),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	ready := make(chan error, 1)
	go n.own(ready)
	if err := <-ready; err != nil {
		<-n.done
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	return n, nil
}

// own is the goroutine that owns the namespace.
func (n *Namespace) own(ready chan<- error) {
	runtime.LockOSThread() // and never unlocked, with the one exception below
	if unix.Gettid() == unix.Getpid() {
		// This is the process's first thread. The runtime cannot end it, and
		// /proc/self is its view, so it must not change its namespaces. While
		// this goroutine holds it, another one gets another thread.
		go n.own(ready)
		<-n.done
		runtime.UnlockOSThread()
		return
	}
	defer close(n.done) // also when a closure ends the goroutine (t.FailNow)
	if err := n.enter(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case call := <-n.calls:
			call()
		case <-n.stop:
			return
		}
	}
}

// enter moves the calling thread into new namespaces.
func (n *Namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Slave, not private: what the machine unmounts goes here as well, and
	// what is mounted here stays here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	n.fd = fd
	return nil
}

// close ends the owner and with it the namespaces, unless somebody else still
// holds them open, for example by a socket.
func (n *Namespace) close() error {
	close(n.stop)
	<-n.done
	if err := unix.Close(n.fd); err != nil {
		return fmt.Errorf("close namespace %s: %w", n.name, err)
	}
	return nil
}

// Do runs fn on the namespace's thread and returns its error. It is an error to
// call Do in fn, which would wait for itself. It returns an error that wraps
// os.ErrClosed when the namespace has ended.
func (n *Namespace) Do(fn func() error) error {
	result := make(chan error, 1)
	select {
	case n.calls <- func() { result <- fn() }:
	case <-n.done:
		return fmt.Errorf("namespace %s: %w", n.name, os.ErrClosed)
	}
	select {
	case err := <-result:
		return err
	case <-n.done:
		// The closure's result may have come together with the end.
		select {
		case err := <-result:
			return err
		default:
			return fmt.Errorf("namespace %s: %w", n.name, os.ErrClosed)
		}
	}
}

// FD is the file descriptor of the network namespace. It belongs to the
// Namespace and is valid until the lab is closed.
func (n *Namespace) FD() int { return n.fd }

// Sysctl writes value to the sysctl name, as "net/ipv4/ip_forward".
func (n *Namespace) Sysctl(name, value string) error {
	return n.Do(func() error {
		f, err := os.OpenFile(filepath.Join("/proc/sys", name), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
		_, err = f.WriteString(value)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("set sysctl to %q: %w", value, err)
		}
		return nil
	})
}

// ReadSysctl returns the value of the sysctl name without the newline at its end.
func (n *Namespace) ReadSysctl(name string) (string, error) {
	var value string
	err := n.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		value = strings.TrimRight(string(b), "\n")
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return value, nil
}

// Start starts cmd in this namespace. The caller must call cmd.Wait. The child
// dies with the namespace's thread, and so with this process, however that ends.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	err := n.Do(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		return n.lab.adopt(cmd)
	})
	if err != nil {
		return fmt.Errorf("start %s in namespace %s: %w", cmd.Path, n.name, err)
	}
	return nil
}
