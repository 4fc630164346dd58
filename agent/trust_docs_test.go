package agent

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
)

// TestTrustDocumented holds docs/trust.md: a row for each setting and for each
// reason, in its section, and none for what does not exist.
func TestTrustDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/trust.md")
	if err != nil {
		t.Fatal(err)
	}
	refusals, warnings := anchor.Reasons()
	decisions := certsync.Reasons()
	slices.Sort(decisions)
	for _, tt := range []struct {
		section string
		want    []string
	}{
		{"Refused", sorted(append(strs(refusals), strs(warnings)...))},
		{"Problems", placeReasons(t)},
		{"Pending", decisions},
	} {
		if diff := cmp.Diff(tt.want, rows(t, string(page), tt.section)); diff != "" {
			t.Errorf("docs/trust.md, section %s (-in the code +on the page):\n%s", tt.section, diff)
		}
	}

	var keys []string
	for _, key := range Keys() {
		short := strings.HasPrefix(key.Path, "trust.runtimes.containerd") || strings.HasPrefix(key.Path, "trust.runtimes.crio")
		if strings.HasPrefix(key.Path, "trust.") && !short {
			keys = append(keys, fmt.Sprintf("%s %s", key.Path, key.standard()))
		}
	}
	var documented []string
	for line := range strings.Lines(section(t, string(page), "Settings")) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.Contains(cells[1], "`trust.") || strings.Contains(cells[1], "`, `") {
			continue
		}
		plain := strings.NewReplacer("`", "", "[", "", "]", "")
		documented = append(documented, plain.Replace(strings.TrimSpace(cells[1])+" "+strings.TrimSpace(cells[2])))
	}
	if diff := cmp.Diff(keys, documented, cmp.Transformer("minutes", func(s string) string { return strings.ReplaceAll(s, "1m0s", "1m") })); diff != "" {
		t.Errorf("docs/trust.md, settings (-in the code +on the page):\n%s", diff)
	}
}

// section gives a section of a page, without its heading.
func section(t *testing.T, page, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "\n## "+name+"\n")
	if !ok {
		t.Fatalf("there is no section %s", name)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// rows gives what stands in the first column of a section's tables, sorted.
func rows(t *testing.T, page, name string) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(section(t, page, name)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		if strings.TrimSpace(cells[2]) == "" {
			t.Errorf("%s: the row of %s says nothing", name, cells[1])
		}
		out = append(out, strings.Trim(strings.TrimSpace(cells[1]), "`"))
	}
	return sorted(out)
}

// placeReasons are the reasons of all place.Problem in the source of package
// place, which makes each in its own place.
func placeReasons(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../certsync/place/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source of package place: %v", err)
	}
	var out []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || len(lit.Elts) != 3 {
				return true
			}
			if id, ok := lit.Type.(*ast.Ident); !ok || id.Name != "Problem" {
				return true
			}
			reason := lit.Elts[1]
			if kv, ok := reason.(*ast.KeyValueExpr); ok {
				reason = kv.Value
			}
			constant, ok := reason.(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: a Problem whose reason is no text", name)
				return true
			}
			text, err := strconv.Unquote(constant.Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, text)
			return true
		})
	}
	return slices.Compact(sorted(out))
}
