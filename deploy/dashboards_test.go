package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// source is where a panel, a query or a variable gets its data.
type source struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// fromVariable is the data source that the reader of a dashboard chooses.
var fromVariable = source{Type: "prometheus", UID: "${datasource}"}

// grid is where a panel stands: x and y from the upper left corner, of 24 columns.
type grid struct {
	X, Y, W, H int
}

type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Source      source `json:"datasource"`
	Grid        grid   `json:"gridPos"`
	Collapsed   bool   `json:"collapsed"`
	Panels      []any  `json:"panels"`
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Options map[string]any `json:"options"`
	Targets []struct {
		RefID  string `json:"refId"`
		Source source `json:"datasource"`
		Expr   string `json:"expr"`
		Legend string `json:"legendFormat"`
	} `json:"targets"`
}

type dashboard struct {
	file string

	Title         string   `json:"title"`
	UID           string   `json:"uid"`
	SchemaVersion int      `json:"schemaVersion"`
	Tags          []string `json:"tags"`
	Refresh       string   `json:"refresh"`
	ID            *int     `json:"id"`
	Time          struct{ From, To string }
	Templating    struct {
		List []variable `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
	Links  []struct {
		URL string `json:"url"`
	} `json:"links"`
}

type variable struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	Source     source `json:"datasource"`
	Definition string `json:"definition"`
}

// readDashboards gives the dashboards that are shipped.
func readDashboards(t *testing.T) []dashboard {
	t.Helper()
	files, err := filepath.Glob("dashboards/*.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []dashboard
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d := dashboard{file: file}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
	if len(all) != 2 {
		t.Fatalf("there are the dashboards %v", files)
	}
	return all
}

// expression is a query of a dashboard.
type expression struct{ where, expr string }

// expressions are those of all panels and variables.
func (d *dashboard) expressions() []expression {
	var all []expression
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, expression{p.Title, target.Expr})
		}
	}
	for _, v := range d.Templating.List {
		if m := labelValues.FindStringSubmatch(v.Definition); m != nil {
			all = append(all, expression{"$" + v.Name, fmt.Sprintf("count by (%s) (%s)", m[2], m[1])})
		}
	}
	return all
}

var (
	labelValues = regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
	variables   = regexp.MustCompile(`\$(?:\{(\w+)\}|(\w+))`)
)

// plain is an expression as Prometheus gets it. Grafana puts in its variables.
func plain(expr string) string {
	return variables.ReplaceAllStringFunc(expr, func(v string) string {
		if strings.Contains(v, "__") {
			return "5m"
		}
		return "x"
	})
}

// TestDashboards checks what a machine without Grafana can: that all is there that
// Grafana wants, and nothing lies above something else.
func TestDashboards(t *testing.T) {
	ids := make(map[string]bool)
	all := readDashboards(t)
	for _, d := range all {
		ids["/d/"+d.UID] = true
	}
	if len(ids) != len(all) {
		t.Errorf("the uids are %v", ids)
	}
	for _, d := range all {
		t.Run(d.file, func(t *testing.T) {
			if d.Title == "" || d.UID == "" || d.SchemaVersion < 36 || d.ID != nil || !slices.Contains(d.Tags, "nodestead") || d.Time.From == "" || d.Time.To == "" {
				t.Errorf("title %q, uid %q, schema %d, id %v, tags %q, time %+v", d.Title, d.UID, d.SchemaVersion, d.ID, d.Tags, d.Time)
			}
			for _, l := range d.Links {
				if !ids[l.URL] {
					t.Errorf("a link leads to %s, which does not exist", l.URL)
				}
			}
			for _, p := range d.problems() {
				t.Error(p)
			}
		})
	}
}

// problems are what is wrong with panels and variables.
func (d *dashboard) problems() []string {
	var all []string
	bad := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	known := []string{"__rate_interval"}
	for i, v := range d.Templating.List {
		known = append(known, v.Name)
		switch {
		case v.Type == "datasource" && i == 0 && v.Name == "datasource":
		case v.Type != "query" || v.Source != fromVariable || !labelValues.MatchString(v.Definition):
			bad("variable %s: %+v", v.Name, v)
		}
	}
	seen := make(map[int]bool)
	for i, p := range d.Panels {
		if p.ID <= 0 || seen[p.ID] {
			bad("%s: id %d is none, or that of another panel", p.Title, p.ID)
		}
		seen[p.ID] = true
		if p.Title == "" {
			bad("panel %d has no title", p.ID)
		}
		if g := p.Grid; g.X < 0 || g.Y < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			bad("%s is out of the grid: %+v", p.Title, g)
		}
		for _, other := range d.Panels[:i] {
			if overlap(p.Grid, other.Grid) {
				bad("%s lies above %s", p.Title, other.Title)
			}
		}
		if p.Type == "row" {
			if len(p.Targets) > 0 || p.Collapsed || len(p.Panels) > 0 || p.Grid.W != 24 || p.Grid.H != 1 {
				bad("%s is no open row", p.Title)
			}
			continue
		}
		if !slices.Contains([]string{"stat", "table", "timeseries"}, p.Type) || p.Source != fromVariable || p.FieldConfig.Defaults.Unit == "" || len(p.Options) == 0 {
			bad("%s: type %q, data source %v, unit %q, %d options", p.Title, p.Type, p.Source, p.FieldConfig.Defaults.Unit, len(p.Options))
		}
		refs := make(map[string]bool)
		for _, target := range p.Targets {
			if target.RefID == "" || refs[target.RefID] || target.Source != fromVariable || target.Expr == "" {
				bad("%s, query %q: %+v", p.Title, target.RefID, target)
			}
			refs[target.RefID] = true
			if len(p.Targets) > 1 && target.Legend == "" {
				bad("%s, query %s has no legend", p.Title, target.RefID)
			}
			for _, m := range variables.FindAllStringSubmatch(target.Expr, -1) {
				if name := m[1] + m[2]; !slices.Contains(known, name) {
					bad("%s: there is no variable %s", p.Title, name)
				}
			}
		}
		if len(p.Targets) == 0 {
			bad("%s shows nothing", p.Title)
		}
	}
	return all
}

func overlap(a, b grid) bool {
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

// TestDashboardProblems: what is wrong with a dashboard is found.
func TestDashboardProblems(t *testing.T) {
	for _, tt := range []struct {
		name, problem string
		change        func(*dashboard)
	}{
		{"sound", "", func(*dashboard) {}},
		{"an id twice", "is none, or that of another panel", func(d *dashboard) { d.Panels[2].ID = d.Panels[1].ID }},
		{"above another", "lies above", func(d *dashboard) { d.Panels[2].Grid.X-- }},
		{"out of the grid", "is out of the grid", func(d *dashboard) { d.Panels[2].Grid.X = 23 }},
		{"another data source", "data source", func(d *dashboard) { d.Panels[2].Source.UID = "abc" }},
		{"no query", "shows nothing", func(d *dashboard) { d.Panels[2].Targets = nil }},
		{"no such variable", "there is no variable pod", func(d *dashboard) { d.Panels[1].Targets[0].Expr = `up{pod="$pod"}` }},
		{"a variable of nothing", "variable namespace", func(d *dashboard) { d.Templating.List[1].Definition = "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := readDashboards(t)[0]
			tt.change(&d)
			got := strings.Join(d.problems(), "\n")
			if tt.problem == "" && got != "" || !strings.Contains(got, tt.problem) {
				t.Errorf("got %q, want %q", got, tt.problem)
			}
		})
	}
}

// TestDashboardExpressions has promtool parse each expression, as a rule.
func TestDashboardExpressions(t *testing.T) {
	type record struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []record
	for _, d := range readDashboards(t) {
		for i, e := range d.expressions() {
			rules = append(rules, record{fmt.Sprintf("%s:%d", strings.ReplaceAll(d.UID, "-", "_"), i), plain(e.expr)})
		}
	}
	file := struct {
		Groups []any `yaml:"groups"`
	}{[]any{map[string]any{"name": "expressions", "rules": rules}}}
	b, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "expressions.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := promtool(t, "check", "rules", path)
	if want := fmt.Sprintf("SUCCESS: %d rules found", len(rules)); err != nil || !strings.Contains(out, want) {
		t.Errorf("%v, want %s:\n%s", err, want, out)
	}
}
