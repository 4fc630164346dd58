package agent

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// listen opens the address of a key, such as http.watch.
func listen(ctx context.Context, key, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err == nil {
		return listener, nil
	}
	err = fmt.Errorf("%s %s: %w", key, address, innermost(err))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%w: stop what listens there, or set another address", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		err = fmt.Errorf("%w: it is no address of this node", err)
	}
	return nil, err
}

// innermost is the kernel's own error where there is one: net wraps it in the
// address, once more.
func innermost(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// health is what one half contributes to /healthz and /readyz. The zero value is
// one whose loops have not started.
type health struct {
	mu sync.Mutex
	// alive: the loops run, or have ended because they were told to.
	// ready: the sensor is open and reads; the first pass is done. why explains
	// what is false.
	alive, ready bool
	why          string
}

func (h *health) set(alive, ready bool, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.alive, h.ready, h.why = alive, ready, why
}

func (h *health) state() (alive, ready bool, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.alive, h.ready, h.why
}

// maxAtOnce is how many requests of one page are answered at once: whoever reaches
// the port may ask, and must not take the node's CPU and memory.
const maxAtOnce = 8

// limited answers 503 to what comes while maxAtOnce requests are being answered,
// as promhttp does for the metrics.
func limited(h http.Handler) http.Handler {
	slots := make(chan struct{}, maxAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		default:
			http.Error(w, fmt.Sprintf("%d such requests are being answered: try again", maxAtOnce), http.StatusServiceUnavailable)
		}
	})
}

// addPages adds the pages that every agent has to the mux of its halves.
func addPages(mux *http.ServeMux, registry *prometheus.Registry, healths []*health, log *slog.Logger) {
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: maxAtOnce,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, healths, func(alive, _ bool) bool { return alive })
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, healths, func(_, ready bool) bool { return ready })
	})
}

func newServer(mux *http.ServeMux, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          stdlog.New(serverLog(log), "", 0),
	}
}

// shutdown ends the server: it lets scrapes that have begun end, but not for
// longer than a while.
func shutdown(server *http.Server, while time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), while)
	defer cancel()
	if server.Shutdown(ctx) == nil {
		return nil
	}
	return server.Close()
}

// answer says ok when all halves are good, and else why not.
func answer(w http.ResponseWriter, healths []*health, good func(alive, ready bool) bool) {
	var whys []string
	for _, h := range healths {
		if alive, ready, why := h.state(); !good(alive, ready) && !slices.Contains(whys, why) {
			whys = append(whys, why)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(whys) == 0 {
		fmt.Fprintln(w, "ok")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintln(w, strings.Join(whys, "; "))
}
