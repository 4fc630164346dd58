package agent

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/lookup"
	"github.com/nodestead/nodestead/probe"
	"github.com/nodestead/nodestead/workload"
)

// mustBeInert: no script, nothing from elsewhere, no style but the one.
func mustBeInert(t *testing.T, doc *html.Node) {
	t.Helper()
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.DataAtom {
		case atom.Script, atom.Link, atom.Img, atom.Iframe, atom.Object, atom.Form, atom.Base, atom.Embed:
			t.Errorf("the page has a <%s>", n.Data)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "src" {
				t.Errorf("<%s> has %s=%q", n.Data, a.Key, a.Val)
			}
			if a.Key == "href" && (strings.Contains(a.Val, ":") || strings.HasPrefix(a.Val, "/")) {
				t.Errorf("a link leads to %q: behind a proxy's path that is elsewhere", a.Val)
			}
		}
	}
}

// hostile are texts as strangers send them: in names of lookups, of pods and
// processes, in certificates, in what a server says.
func hostile() []string {
	return []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `'><svg/onload=alert(1)>`, `</title></svg></style><script>`,
		`{{.Now}}`, `javascript:alert(1)`, "\x00\x1b[31m\xff\xfe", "\u202egpj.exe", strings.Repeat("&", 5000), `]]>`, `<!--`,
	}
}

// TestHostileStatus: whatever strangers put into it stays text.
func TestHostileStatus(t *testing.T) {
	n, _ := namesHalf()
	clean, _ := pageOf(t, n, trustHalf(certsync.Status{Time: time.Now()}))
	count := func(doc *html.Node, name string) int { return len(all(doc, name)) }
	for _, evil := range hostile() {
		n, _ := namesHalf()
		n.board.blindness(true, blindness{blindKey{lookupSensor, "notrack"}, time.Now(), evil, evil})
		n.board.probe(probe.Result{Time: time.Now(), Name: evil, Type: 1, Nameserver: loser, Outcome: evil, Err: errors.New(evil)})
		in := took(incident.OrphanedAnswer, 1)
		in.Name, in.Evidence, in.Remedy, in.Type, in.Resolver = evil, evil, evil, evil, lookup.Resolver(evil)
		in.Workload = workload.Workload{Namespace: evil, Pod: evil, Container: evil, Process: evil}
		n.happen(in)
		doc, body := pageOf(t, n, trustHalf(hostileTrust(t, evil)))
		mustBeInert(t, doc)
		for _, name := range []string{"svg", "style", "title", "section", "main", "html", "body", "desc"} {
			// Each bar has a title of its own.
			if got, want := count(doc, name), count(clean, name); got != want && name != "title" {
				t.Errorf("with %q the page has %d <%s>, want %d", evil, got, name, want)
			}
		}
		if articles := texts(doc, "article"); len(articles) != 1 || !strings.Contains(articles[0], oneLine(short(strings.ToValidUTF8(strings.ReplaceAll(evil, "\x00", "\uFFFD"), "\uFFFD"), 253))) {
			t.Errorf("with %q the incident reads %q", evil, articles)
		}
		if !utf8.ValidString(body) {
			t.Errorf("with %q the page is no UTF-8", evil)
		}
		mustBeXML(t, body)
	}
}

// mustBeXML: each drawing is well-formed XML, with a title and a description, and
// its bars are in it.
func mustBeXML(t *testing.T, body string) {
	t.Helper()
	drawings := strings.Split(body, "<svg ")[1:]
	if len(drawings) != 2 {
		t.Errorf("%d drawings, want 2", len(drawings))
	}
	for _, d := range drawings {
		d, _, _ = strings.Cut("<svg "+d, "</svg>")
		decoder := xml.NewDecoder(strings.NewReader(d + "</svg>"))
		seen := make(map[string]int)
		for {
			token, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in %s", err, d)
			}
			element, ok := token.(xml.StartElement)
			if !ok {
				continue
			}
			seen[element.Name.Local]++
			if element.Name.Local != "rect" {
				continue
			}
			of := make(map[string]int)
			for _, a := range element.Attr {
				var n int
				if _, err := fmt.Sscan(a.Value, &n); err == nil {
					of[a.Name.Local] = n
				}
			}
			if of["x"] < 0 || of["x"]+of["width"] > 600 || of["y"] < 0 || of["y"]+of["height"] > 100 || of["height"] < 1 {
				t.Errorf("a bar is outside: %v", element.Attr)
			}
		}
		if seen["svg"] != 1 || seen["desc"] != 1 || seen["title"] != 1+seen["rect"] {
			t.Errorf("the drawing has %v", seen)
		}
	}
}

// TestFullStatus: with all that it can hold, and all of it as long as strangers
// can make it, the page stays small.
func TestFullStatus(t *testing.T) {
	for _, tt := range []struct {
		name string
		text string
		most int
	}{
		{"usual", "a text of ordinary length, such as evidence has; it goes on for a while, names an address (10.244.3.3:53) and ends here, or a little later than that", 200_000},
		{"hostile", strings.Repeat("<&\"'>", 1000), 1_000_000},
	} {
		inBubble(t, tt.name, func(t *testing.T) {
			n, _ := fullNames(tt.text)
			doc, body := pageOf(t, n, trustHalf(fullTrust(t, tt.text)))
			t.Logf("%d bytes", len(body))
			if len(body) > tt.most {
				t.Errorf("the page has %d bytes, want at most %d", len(body), tt.most)
			}
			if got := len(all(doc, "article")); got != shownIncidents {
				t.Errorf("%d incidents", got)
			}
			if got := len(all(doc, "li.probe")); got != shownProbes || !strings.Contains(body, fmt.Sprintf("And %d more that are no worse.", maxProbes-shownProbes)) {
				t.Errorf("%d results of the probe, or the others are not counted", got)
			}
			if got := len(all(doc, "rect.lookups")); got != 60 {
				t.Errorf("%d minutes have bars", got)
			}
			mustBeXML(t, body)
			mustBeInert(t, doc)
		})
	}
}

// fullNames is names with all that it can hold.
func fullNames(text string) (*names, *fakeSensor) {
	n, fake := namesHalf()
	for i := range 60 {
		n.board.minutes.add(time.Now().Add(-time.Duration(i)*time.Minute), 10_000_000, 1000, 1000)
	}
	causes := append(incident.TimeoutCauses(), incident.FailureCauses()...)
	for i := range 2 * historyLength {
		in := took(causes[i%len(causes)], 7)
		in.Workload.Pod = fmt.Sprintf("runner-%d", i)
		in.Evidence, in.Remedy = text, text
		if len(text) > 1000 {
			in.Name, in.Workload.Pod = text, in.Workload.Pod+text
		}
		n.happen(in)
	}
	for i := range 1000 {
		server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 53)
		n.board.probe(probe.Result{Time: time.Now(), Name: "git.example.de.", Type: 28, Nameserver: server, Outcome: "noerror", Accepted: true})
	}
	return n, fake
}

func BenchmarkStatus(b *testing.B) {
	n, _ := fullNames("a text of ordinary length, such as evidence has; it goes on for a while, and ends here")
	mux := pageMux(n, trustHalf(fullTrust(b, "a text of ordinary length")))
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/", nil))
		b.SetBytes(int64(w.Body.Len()))
	}
}
