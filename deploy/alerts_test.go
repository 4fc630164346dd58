package deploy

import (
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	rulesPath = "alerts/nodestead.rules.yaml"
	// runbooks is how every runbook_url begins; what follows is a path in this repository.
	runbooks = "https://github.com/nodestead/nodestead/blob/main/"
)

// rule is an alert, or a series that is recorded.
type rule struct {
	Alert       string            `yaml:"alert"`
	Record      string            `yaml:"record"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// readRules gives the rules of the file that is shipped.
func readRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	decode(t, rulesPath, &file)
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatalf("%s has no rules", rulesPath)
	}
	return all
}

// decode reads a YAML file, in which nothing may stand that the value does not know.
func decode(t *testing.T, path string, into any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// promtool runs Debian's promtool and gives what it prints. It needs root, as
// apt-get does for the package lists.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("to fetch promtool needs root")
	}
	dir, err := lab.Prometheus(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "promtool"), args...).CombinedOutput()
	return string(out), err
}

// unitTests are the files with promtool's unit tests.
func unitTests(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("alerts/*_test.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("unit tests: %v, %v", files, err)
	}
	return files
}

// TestAlertRules has promtool check the rules and run their unit tests.
func TestAlertRules(t *testing.T) {
	if out, err := promtool(t, "check", "rules", "--lint=all", "--lint-fatal", rulesPath); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	if out, err := promtool(t, append([]string{"test", "rules"}, unitTests(t)...)...); err != nil {
		t.Errorf("unit tests: %v\n%s", err, out)
	}
}

// TestScrapeConfigDocumented has promtool check the scrape configuration of
// docs/operate.md, but for the discovery, which Debian builds without Kubernetes.
func TestScrapeConfigDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\nscrape_configs:\n")
	config, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("docs/operate.md has no scrape_configs")
	}
	const discovery = "kubernetes_sd_configs: [{role: pod}]"
	if strings.Count(config, discovery) != 1 {
		t.Errorf("it has no line %s", discovery)
	}
	config = strings.ReplaceAll(config, discovery, "static_configs: [{targets: ['192.0.2.1:9853']}]")
	path := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(path, []byte("scrape_configs:\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "check", "config", path); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestEveryAlertIsUnitTested: each fires in one unit test, with all that it says,
// and does not in another.
func TestEveryAlertIsUnitTested(t *testing.T) {
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, path := range unitTests(t) {
		var file struct {
			RuleFiles []string `yaml:"rule_files"`
			Interval  string   `yaml:"evaluation_interval"`
			Tests     []struct {
				Name     string `yaml:"name"`
				Interval string `yaml:"interval"`
				Input    any    `yaml:"input_series"`
				Exprs    any    `yaml:"promql_expr_test"`
				Alerts   []struct {
					Alert  string `yaml:"alertname"`
					At     string `yaml:"eval_time"`
					Expect []struct {
						Labels      map[string]string `yaml:"exp_labels"`
						Annotations map[string]string `yaml:"exp_annotations"`
					} `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			} `yaml:"tests"`
		}
		decode(t, path, &file)
		if diff := cmp.Diff([]string{filepath.Base(rulesPath)}, file.RuleFiles); diff != "" {
			t.Errorf("%s tests other rules (-want +got):\n%s", path, diff)
		}
		for _, test := range file.Tests {
			for _, a := range test.Alerts {
				if len(a.Expect) == 0 {
					silent[a.Alert] = true
				} else {
					fires[a.Alert] = true
				}
			}
		}
	}
	want := alertNames(readRules(t))
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(fires))); diff != "" {
		t.Errorf("alerts that fire in a unit test (-in the rules +tested):\n%s", diff)
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(silent))); diff != "" {
		t.Errorf("alerts that do not fire in a unit test (-in the rules +tested):\n%s", diff)
	}
}

// alertNames are the names of all alerts, sorted.
func alertNames(rules []rule) []string {
	var names []string
	for _, r := range rules {
		if r.Alert != "" {
			names = append(names, r.Alert)
		}
	}
	slices.Sort(names)
	return names
}

// TestAlertsSayWhatToDo: each has a severity, says what to do first, and has a
// runbook that exists, for each cause where the link depends on it.
func TestAlertsSayWhatToDo(t *testing.T) {
	causes := values(readMetrics(t)["nodestead_dns_lookup_timeouts_total"], readMetrics(t)["nodestead_dns_lookup_failures_total"])
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		if got := slices.Sorted(maps.Keys(r.Annotations)); !slices.Equal(got, []string{"description", "runbook_url", "summary"}) {
			t.Errorf("%s has the annotations %v", r.Alert, got)
		}
		if !strings.Contains(r.Annotations["description"], "First: ") {
			t.Errorf("%s does not say what to do first", r.Alert)
		}
		path, ok := strings.CutPrefix(r.Annotations["runbook_url"], runbooks)
		if !ok {
			t.Errorf("%s has the runbook %q, which does not begin with %s", r.Alert, r.Annotations["runbook_url"], runbooks)
			continue
		}
		links := []string{path}
		if before, ok := strings.CutSuffix(path, "{{ $labels.cause }}"); ok {
			links = nil
			for _, cause := range causes {
				links = append(links, before+cause)
			}
		}
		for _, link := range links {
			if !sectionExists(t, link) {
				t.Errorf("%s: there is no section %s", r.Alert, link)
			}
		}
	}
}

var notInAnchors = regexp.MustCompile(`[^\pL\pN _-]`)

// sectionExists looks for the heading that "docs/page.md#section" leads to, by the
// anchors that GitHub gives to headings.
func sectionExists(t *testing.T, link string) bool {
	t.Helper()
	path, anchor, _ := strings.Cut(link, "#")
	page, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Error(err)
		return false
	}
	for line := range strings.Lines(string(page)) {
		heading := strings.TrimLeft(line, "#")
		if heading == line {
			continue
		}
		name := notInAnchors.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
		if anchor != "" && strings.ReplaceAll(name, " ", "-") == anchor {
			return true
		}
	}
	return false
}

// TestAlertsDocumented: docs/operate.md has a section for each alert, and none for
// what does not exist.
func TestAlertsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(page)) {
		if name, ok := strings.CutPrefix(line, "### Nodestead"); ok {
			documented = append(documented, "Nodestead"+strings.TrimSpace(name))
		}
	}
	slices.Sort(documented)
	if diff := cmp.Diff(alertNames(readRules(t)), documented); diff != "" {
		t.Errorf("docs/operate.md (-in the rules +on the page):\n%s", diff)
	}
}
