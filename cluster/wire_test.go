package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"path"
	"strconv"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pipes is a network in memory, which a synctest bubble can wait for.
type pipes struct {
	conns chan net.Conn
	end   chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), end: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.end); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.end:
		return nil, net.ErrClosed
	}
}

// wire is an agent's way to the server by the real client and HTTP.
type wire struct {
	*Client
	*port
}

func (w wire) through(ctx context.Context, do func() (Lease, error)) (Lease, error) {
	if w.isCut() {
		return Lease{}, errors.Join(errTimeout, sleep(ctx, requestTime))
	}
	return do()
}

func (w wire) Get(ctx context.Context, name string) (Lease, error) {
	return w.through(ctx, func() (Lease, error) { return w.Client.Get(ctx, name) })
}

func (w wire) Create(ctx context.Context, l Lease) (Lease, error) {
	return w.through(ctx, func() (Lease, error) { return w.Client.Create(ctx, l) })
}

func (w wire) Update(ctx context.Context, l Lease) (Lease, error) {
	return w.through(ctx, func() (Lease, error) { return w.Client.Update(ctx, l) })
}

// serve serves the model by HTTP, as the API server does, until the function
// that it returns is called.
func (m *model) serve() (network *pipes, end func()) {
	network = newPipes()
	s := &http.Server{Handler: http.HandlerFunc(m.handle), ErrorLog: log.New(io.Discard, "", 0)}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(network) })
	return network, func() {
		_ = s.Close()
		done.Wait()
	}
}

// handle carries out one request, or lets it come to harm.
func (m *model) handle(w http.ResponseWriter, r *http.Request) {
	f := m.fate(r.Method)
	var asked coordinationv1.Lease
	if r.Body != nil && r.Method != http.MethodGet {
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&asked); err != nil {
			answer(w, http.StatusBadRequest, "BadRequest")
			return
		}
	}
	switch {
	case f.busy > 0:
		w.Header().Set("Retry-After", strconv.Itoa(int(f.busy/time.Second)))
		answer(w, http.StatusTooManyRequests, "TooManyRequests")
		return
	case f.lost:
		m.harm(w, r)
		return
	}
	time.Sleep(f.there) //nolint:forbidigo // in a bubble; the request goes on when nobody waits any more
	m.mu.Lock()
	var l Lease
	var err error
	switch r.Method {
	case http.MethodGet:
		l, err = m.get(path.Base(r.URL.Path))
	case http.MethodPost:
		l, err = m.create(leaseOf(asked))
	case http.MethodPut:
		l, err = m.update(leaseOf(asked))
	}
	m.mu.Unlock()
	if f.silent {
		m.harm(w, r)
		return
	}
	time.Sleep(f.back) //nolint:forbidigo // in a bubble
	switch {
	case errors.Is(err, ErrNotFound):
		answer(w, http.StatusNotFound, "NotFound")
	case errors.Is(err, ErrConflict) && r.Method == http.MethodPost:
		answer(w, http.StatusConflict, "AlreadyExists")
	case errors.Is(err, ErrConflict):
		answer(w, http.StatusConflict, "Conflict")
	default:
		_ = json.NewEncoder(w).Encode(objectOf(l))
	}
}

// harm is how an answer is lost.
func (m *model) harm(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	n := m.rnd.IntN(6)
	m.mu.Unlock()
	switch n {
	case 0:
		panic(http.ErrAbortHandler) // the connection ends
	case 1:
		answer(w, http.StatusInternalServerError, "InternalError")
	case 2:
		answer(w, http.StatusGatewayTimeout, "Timeout")
	case 3:
		_, _ = io.WriteString(w, "<html>all is well</html>")
	case 4:
		http.Error(w, "conflict", http.StatusConflict) // of a proxy, which knows nothing
	default:
		<-r.Context().Done()
	}
}

func answer(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, status(code, reason))
}

// leaseOf and objectOf are what the API server makes of its own types.
func leaseOf(o coordinationv1.Lease) Lease {
	l := Lease{Name: o.Name, Version: o.ResourceVersion, object: map[string]any{}}
	if o.Spec.HolderIdentity != nil {
		l.Holder = *o.Spec.HolderIdentity
	}
	if o.Spec.LeaseDurationSeconds != nil {
		l.TTL = time.Duration(*o.Spec.LeaseDurationSeconds) * time.Second
	}
	if o.Spec.RenewTime != nil {
		l.Renewed = o.Spec.RenewTime.Time
	}
	return l
}

func objectOf(l Lease) coordinationv1.Lease {
	return coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Name: l.Name, ResourceVersion: l.Version},
		Spec:       leaseSpec(l.Holder, int32(l.TTL/time.Second), 0, l.Renewed, l.Renewed),
	}
}

// TestNoTwoHoldersByHTTP is TestNoTwoHolders with the real client and an HTTP
// server that answers conflicts, 429, errors, rubbish and nothing.
func TestNoTwoHoldersByHTTP(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "namespace", "nodestead")
	write(t, dir, "token", "x")
	write(t, dir, "ca.crt", otherCA(t))
	count := 10_000
	if raced {
		count = 100
	}
	interleave(t, count, count/2, func(t *testing.T, seed uint64) *witness { return interleaving(t, seed, dir) })
}
