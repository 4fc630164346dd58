package agent

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// pageOf gets the page of halves, and parses it.
func pageOf(t testing.TB, halves ...half) (*html.Node, string) {
	t.Helper()
	w := httptest.NewRecorder()
	pageMux(halves...).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("/ gives %d %s", w.Code, w.Body)
	}
	body := w.Body.String()
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return doc, body
}

func pageMux(halves ...half) *http.ServeMux {
	mux := http.NewServeMux()
	addStatus(serving{server: &http.Server{}, mux: mux}, halves, nil, "worker-7", Version{Version: "v1.2"})
	return mux
}

// all gives the elements that match: a tag's name, a class after a dot, or both.
func all(doc *html.Node, selector string) []*html.Node {
	tag, class, _ := strings.Cut(selector, ".")
	var found []*html.Node
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode || tag != "" && n.Data != tag {
			continue
		}
		if class == "" || slices.Contains(strings.Fields(attribute(n, "class")), class) {
			found = append(found, n)
		}
	}
	return found
}

func attribute(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// text is what a reader sees of an element, on one line; there is a space between
// its parts, whether there is one on the page or not.
func text(n *html.Node) string {
	var words []string
	for c := range n.Descendants() {
		if c.Type == html.TextNode {
			words = append(words, c.Data)
		}
	}
	return oneLine(strings.Join(words, " "))
}

func texts(doc *html.Node, selector string) []string {
	var out []string
	for _, n := range all(doc, selector) {
		out = append(out, text(n))
	}
	return out
}

// verdictsOf gives the page's answers, each after its state.
func verdictsOf(doc *html.Node) []string {
	var out []string
	for _, list := range all(doc, "ul.verdicts") {
		for _, li := range all(list, "li") {
			out = append(out, attribute(li, "class")+": "+text(li))
		}
	}
	return out
}
