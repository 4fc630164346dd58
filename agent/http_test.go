package agent

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// TestLimited: of many requests at once some are answered, the rest is refused at
// once, and when they have ended others are answered again.
func TestLimited(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	h := limited(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-end
	}))
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
		return w.Code
	}
	for range 2 {
		var asking sync.WaitGroup
		for range maxAtOnce {
			asking.Go(func() {
				if code := ask(); code != http.StatusOK {
					t.Errorf("one of %d: %d", maxAtOnce, code)
				}
			})
			<-begun
		}
		if code := ask(); code != http.StatusServiceUnavailable {
			t.Errorf("one more than %d: %d", maxAtOnce, code)
		}
		for range maxAtOnce {
			end <- struct{}{}
		}
		asking.Wait()
	}
}
