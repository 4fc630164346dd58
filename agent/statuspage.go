package agent

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page's template and style are files
	"encoding/base64"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"
)

// statusPage is all that the page at / shows: text, and the state of each thing,
// which is also the class of its style.
type statusPage struct {
	Version, Node string
	Now, Started  time.Time
	Style         template.CSS
	// NotReady says why /readyz does not say ok.
	NotReady []string
	// Certificate is that of HTTP itself; nil without TLS.
	Certificate *expiry
	Verdicts    []verdict
	Names       *namesView // nil: this half does not run
	Trust       *trustView
}

// State is how a thing is; the page shows it by colour and by word.
type state string

const (
	good state = "good"
	warn state = "warn" // somebody should look, today
	bad  state = "bad"  // now
)

// verdict is the page's answer in one line.
type verdict struct {
	State state
	Text  string
}

func (p *statusPage) say(s state, text string) { p.Verdicts = append(p.Verdicts, verdict{s, text}) }

// expiry is when a certificate ends.
type expiry struct {
	State state
	At    time.Time
}

// A certificate that ends within warnBefore needs somebody's plan, and within
// badBefore somebody's day.
const (
	warnBefore = 30 * 24 * time.Hour
	badBefore  = 7 * 24 * time.Hour
)

func expires(now, at time.Time) expiry {
	switch left := at.Sub(now); {
	case left <= badBefore:
		return expiry{bad, at}
	case left <= warnBefore:
		return expiry{warn, at}
	default:
		return expiry{good, at}
	}
}

var (
	//go:embed page/status.html
	statusHTML string
	//go:embed page/status.css
	statusCSS string
)

// statusHandler serves the page.
type statusHandler struct {
	template *template.Template
	policy   string
	fill     func() *statusPage
}

// newStatusHandler serves what fill gives.
func newStatusHandler(fill func() *statusPage) *statusHandler {
	// The page has no script, loads nothing and sends nothing; its one style is
	// named by its hash. Nothing that a stranger's query could smuggle in would run.
	hash := sha256.Sum256([]byte(statusCSS))
	return &statusHandler{
		template: template.Must(template.New("status").Funcs(statusFuncs()).Parse(statusHTML)),
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) +
			"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		fill: fill,
	}
}

// ServeHTTP implements http.Handler.
func (h *statusHandler) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	page := h.fill()
	page.Style = template.CSS(statusCSS) //nolint:gosec // it is our own file
	var out bytes.Buffer
	if err := h.template.Execute(&out, page); err != nil {
		http.Error(w, "the page cannot be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", h.policy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-store")
	_, _ = w.Write(bytes.ToValidUTF8(out.Bytes(), []byte("\uFFFD"))) // the client has gone
}

// addStatus serves the page of all halves at /, and nowhere else.
func addStatus(at serving, halves []half, healths []*health, node string, version Version) {
	started := time.Now()
	at.mux.Handle("GET /{$}", limited(newStatusHandler(func() *statusPage {
		now := time.Now()
		page := &statusPage{Version: version.Version, Node: node, Now: now, Started: started}
		for _, h := range healths {
			if _, ready, why := h.state(); !ready && !slices.Contains(page.NotReady, why) {
				page.NotReady = append(page.NotReady, why)
			}
		}
		if len(page.NotReady) > 0 {
			page.say(bad, "not ready: "+strings.Join(page.NotReady, "; "))
		}
		for _, h := range halves {
			h.show(now, page)
		}
		if end := certificateEnd(at.server); !end.IsZero() {
			e := expires(now, end)
			page.Certificate = &e
			if e.State != good {
				page.say(e.State, "the certificate of this page "+ends(now, end))
			}
		}
		return page
	})))
}
