package agent

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// showing is a half of which only its part of the status page is asked for.
type showing struct {
	half
	fill func()
}

func (s showing) show(time.Time, *statusPage) { s.fill() }

// TestLimited: of many requests at once some are answered, the rest is refused at
// once, and when they have ended others are answered again.
func TestLimited(t *testing.T) {
	for name, page := range map[string]func(work func()) http.Handler{
		"a page": func(work func()) http.Handler {
			return limited(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { work() }))
		},
		"the status page": func(work func()) http.Handler {
			mux := http.NewServeMux()
			addStatus(serving{mux: mux, server: new(http.Server)}, []half{showing{fill: work}}, nil, "worker-7", Version{})
			return mux
		},
	} {
		// In the bubble a place that is never given back is a deadlock.
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testLimited(t, page) }) })
	}
}

func testLimited(t *testing.T, page func(work func()) http.Handler) {
	end := make(chan struct{})
	working := 0
	var mu sync.Mutex
	h := page(func() {
		mu.Lock()
		working++
		mu.Unlock()
		<-end
	})
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
		return w.Code
	}
	for round := range 2 {
		var asking sync.WaitGroup
		codes := make(chan int, maxAtOnce+1)
		for range maxAtOnce + 1 {
			asking.Go(func() { codes <- ask() })
		}
		synctest.Wait()
		if code := <-codes; code != http.StatusServiceUnavailable || working != (round+1)*maxAtOnce {
			t.Errorf("one of %d: %d, %d were begun", maxAtOnce+1, code, working)
		}
		for range maxAtOnce {
			end <- struct{}{}
		}
		asking.Wait()
		for range maxAtOnce {
			if code := <-codes; code != http.StatusOK {
				t.Errorf("one of %d: %d", maxAtOnce, code)
			}
		}
	}
}
