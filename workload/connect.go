package workload

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	dialTime   = 2 * time.Second // for a runtime to answer at first
	answerTime = 5 * time.Second // for it to answer later
	maxRedial  = 5 * time.Second
	betterTime = 30 * time.Second // how often CRI is looked for while there is Docker
)

// criSockets are where runtimes have their socket, below the node's root.
var criSockets = [...]string{
	"run/containerd/containerd.sock",
	"run/crio/crio.sock",
	"run/cri-dockerd.sock",
	"run/k3s/containerd/containerd.sock",
	"run/k0s/containerd.sock",
	"var/run/containerd/containerd.sock",
	"var/run/crio/crio.sock",
	"var/run/cri-dockerd.sock",
}

const fromRuntime = "container runtime"

var dockerSockets = [...]string{"run/docker.sock", "var/run/docker.sock"}

// connect finds a runtime when there is none, or CRI when there is only Docker.
func (k *keeper) connect(ctx context.Context) {
	now := time.Now()
	if k.cri == "off" || k.runtime != nil && (!k.docker || k.cri != "auto" || now.Before(k.better)) || now.Before(k.redialAt) {
		return
	}
	k.better = now.Add(betterTime)
	cri, docker := k.paths()
	var errs []error
	for _, socket := range cri {
		r, err := dial(ctx, socket, func(ctx context.Context) (runtime, error) { return dialCRI(ctx, socket) })
		if err == nil {
			k.use(ctx, r, false)
			return
		}
		errs = append(errs, unlessMissing(err))
	}
	if k.runtime != nil {
		return
	}
	for _, socket := range docker {
		r, err := dial(ctx, socket, func(ctx context.Context) (runtime, error) { return dialDocker(ctx, socket) })
		if err == nil {
			k.use(ctx, r, true)
			return
		}
		errs = append(errs, unlessMissing(err))
	}
	if ctx.Err() == nil {
		k.retry()
		k.say(fromRuntime, "", "pods and containers are not named", cmp.Or(errors.Join(errs...), errNoSocket))
	}
}

var errNoSocket = errors.New("no socket of a container runtime")

// unlessMissing is err unless it says that there is no such file: of the usual
// places most have none.
func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// paths are the sockets to try, of each kind.
func (k *keeper) paths() (cri, docker []string) {
	if k.cri != "auto" {
		path := strings.TrimPrefix(k.cri, "unix://")
		if filepath.Base(path) == "docker.sock" {
			return nil, []string{path}
		}
		return []string{path}, nil
	}
	for _, s := range criSockets {
		cri = append(cri, filepath.Join(k.root, s))
	}
	for _, s := range dockerSockets {
		docker = append(docker, filepath.Join(k.root, s))
	}
	return cri, docker
}

func dial(ctx context.Context, socket string, to func(context.Context) (runtime, error)) (runtime, error) {
	if info, err := os.Stat(socket); err != nil {
		return nil, err
	} else if info.Mode().Type() != fs.ModeSocket {
		return nil, &fs.PathError{Op: "dial", Path: socket, Err: errors.New("not a socket")}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return to(ctx)
}

// use takes a runtime and watches its events.
func (k *keeper) use(ctx context.Context, r runtime, docker bool) {
	k.disconnect()
	k.redialAt = time.Time{}
	k.runtime, k.docker, k.events = r, docker, new(atomic.Bool)
	k.events.Store(true) // until it says that it has none
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { k.watch(ctx, r, k.events) })
	k.leave = func() {
		cancel()
		watching.Wait()
	}
}

// watch turns events into refreshes. Where they end it tries again: a runtime
// that ended as well is found out by the refresh.
func (k *keeper) watch(ctx context.Context, r runtime, events *atomic.Bool) {
	for {
		err := r.watch(ctx, k.poke)
		if ctx.Err() != nil {
			return
		}
		k.log.Debug("no events of the container runtime", "err", err)
		events.Store(false)
		if errors.Is(err, errNoEvents) {
			return
		}
		k.poke()
		select {
		case <-ctx.Done():
			return
		case <-time.After(maxRedial):
			events.Store(true)
		}
	}
}

func (k *keeper) disconnect() {
	if k.runtime == nil {
		return
	}
	k.leave()
	if err := k.runtime.close(); err != nil {
		k.log.Debug("container runtime not closed", "err", err)
	}
	k.runtime = nil
	k.retry()
}

// retry says when to look for a runtime again.
func (k *keeper) retry() {
	k.redialAt = time.Now().Add(min(maxRedial, minInterval<<min(k.fails, 4)))
	k.fails++
}
