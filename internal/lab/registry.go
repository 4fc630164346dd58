package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
)

const (
	registryPort = 5000
	// registryBehind is where the registry itself listens, in its namespace.
	registryBehind = "127.0.0.1:5001"
)

// registryConfig keeps images in memory. With relative URLs it does not matter
// by which name it is asked.
const registryConfig = `version: 0.1
log: {level: warn}
storage:
  inmemory: {}
http:
  addr: ` + registryBehind + `
  relativeurls: true
`

// Registry is a real container registry in a namespace behind the remote
// router. A proxy in this process, on its address, speaks TLS for it and does
// what a test wants. All its requests have connections of their own.
type Registry struct {
	Backend
	// Host is its name and port, as images have it in front of theirs.
	Host string

	cert        atomic.Pointer[tls.Certificate]
	status      atomic.Int64
	connections atomic.Int64
	requests    atomic.Int64

	proxy  http.Handler
	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd.Wait has returned

	mu       sync.Mutex
	server   *http.Server // nil: it is down
	listener *net.TCPListener
	wg       sync.WaitGroup

	closing sync.Once
	err     error
}

// AddRegistry runs a registry with this DNS name on port 5000, with this
// certificate. Boxes that are booted later know the name by their /etc/hosts.
func (l *Lab) AddRegistry(name string, cert tls.Certificate) (*Registry, error) {
	r, err := l.addRegistry(name, cert)
	if err != nil {
		return nil, fmt.Errorf("add registry %s: %w", name, err)
	}
	return r, nil
}

func (l *Lab) addRegistry(name string, cert tls.Certificate) (*Registry, error) {
	binary, err := l.registryBinary()
	if err != nil {
		return nil, err
	}
	b, err := l.addBackend("registry")
	if err != nil {
		return nil, err
	}
	r := &Registry{Backend: *b, Host: net.JoinHostPort(name, strconv.Itoa(registryPort)), exited: make(chan struct{})}
	r.Serve(cert)
	r.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: registryBehind})
			p.Out.Host = p.In.Host
		},
		Transport: r.HTTPClient().Transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	if err := r.start(binary); err != nil {
		return nil, err
	}
	err = r.waitAnswer()
	if err == nil {
		err = r.Up()
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := l.atClose(r.Close); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.names = append(l.names, hostName{r.Addr4, name})
	l.mu.Unlock()
	return r, nil
}

// hostName is a line of the /etc/hosts of boxes.
type hostName struct {
	addr netip.Addr
	name string
}

// registryBinary returns the path of Debian's registry in the cache. The package
// is not installed: on a machine that runs systemd that would start it.
func (l *Lab) registryBinary() (string, error) {
	const name = "docker-registry"
	return cached(l.ctx, name, []string{name, runtime.GOARCH}, func(dir string) error {
		l.log.Info("downloading a package", "package", name)
		if err := download(l.ctx, dir, name); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, "usr/bin", name), filepath.Join(dir, name))
	})
}

// start starts the registry itself.
func (r *Registry) start(binary string) error {
	dir := filepath.Join(r.lab.dir, "registry-"+r.Addr4.String())
	conf := filepath.Join(dir, "config.yml")
	if err := writeFile(dir, "config.yml", registryConfig, 0o644); err != nil {
		return err
	}
	var err error
	if r.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return err
	}
	r.cmd = exec.Command(binary, "serve", conf)
	r.cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	if err := r.Start(r.cmd); err != nil {
		return errors.Join(err, r.log.Close())
	}
	go func() {
		defer close(r.exited)
		_ = r.cmd.Wait() // Close waits for this, and knows why it ended
	}()
	return nil
}

// waitAnswer waits until the registry itself answers.
func (r *Registry) waitAnswer() error {
	ctx, stop := context.WithCancel(r.lab.ctx)
	defer stop()
	err := Until(ctx, bootTime, func() error {
		select {
		case <-r.exited:
			stop() // no use to wait
			return fmt.Errorf("it ended: %v", r.cmd.ProcessState)
		default:
		}
		return r.ask(ctx, http.MethodGet, "/v2/", nil, "", http.StatusOK, nil)
	})
	if err != nil {
		b, logErr := os.ReadFile(r.log.Name())
		return errors.Join(fmt.Errorf("wait for its answer: %w: %s", err, tail(b)), logErr)
	}
	return nil
}

// Serve has it show this certificate from the next connection on.
func (r *Registry) Serve(cert tls.Certificate) { r.cert.Store(&cert) }

// Fail has it answer all requests with this status; 0: as it should.
func (r *Registry) Fail(status int) { r.status.Store(int64(status)) }

// Connections is the number of TCP connections that it has accepted so far.
func (r *Registry) Connections() int { return int(r.connections.Load()) }

// Requests is the number of requests that it got so far. One whose client does
// not trust its certificate never comes.
func (r *Registry) Requests() int { return int(r.requests.Load()) }

// ServeHTTP is the proxy.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.requests.Add(1)
	if status := int(r.status.Load()); status != 0 {
		http.Error(w, http.StatusText(status), status)
		return
	}
	r.proxy.ServeHTTP(w, req)
}

// Up opens its port. It is up from the start.
func (r *Registry) Up() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		return nil
	}
	var listener *net.TCPListener
	err := r.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.Addr4, registryPort)))
		return err
	})
	if err != nil {
		return fmt.Errorf("open registry %s: %w", r.Host, err)
	}
	server := &http.Server{
		Handler:  r,
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.cert.Load(), nil },
		},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				r.connections.Add(1)
			}
		},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
	}
	server.SetKeepAlivesEnabled(false)
	r.wg.Go(func() { _ = server.ServeTLS(listener, "", "") }) // until Down closes it
	r.server, r.listener = server, listener
	return nil
}

// Down closes its port and all its connections: from then on the kernel refuses
// new ones.
func (r *Registry) Down() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return nil
	}
	err := stopListening(r.listener)
	err = errors.Join(err, r.server.Close())
	r.server, r.listener = nil, nil
	r.wg.Wait()
	if err != nil {
		return fmt.Errorf("close registry %s: %w", r.Host, err)
	}
	return nil
}

// Close ends it with all its images. Calls after the first return what the first
// did.
func (r *Registry) Close() error {
	r.closing.Do(func() {
		r.err = r.Down()
		if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			r.err = errors.Join(r.err, fmt.Errorf("kill registry: %w", err))
			return
		}
		<-r.exited
		r.err = errors.Join(r.err, r.log.Close())
	})
	return r.err
}
