package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const (
	chartPath    = "chart"
	manifestPath = "nodestead.yaml"
)

// rendering is the request and the response of deploy/render.
type rendering struct {
	Values     map[string]any
	Kubernetes string `json:",omitempty"`
	Lint       bool   `json:",omitempty"`

	Objects  []json.RawMessage `json:",omitempty"`
	Notes    string            `json:",omitempty"`
	Refused  string            `json:",omitempty"`
	Problems []string          `json:",omitempty"`
}

// runRender runs deploy/render, which is a module of its own. Its first build takes a
// minute or two.
func runRender(t *testing.T, stdin io.Reader, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"run", "-C", "render", ".", "../" + chartPath}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	cmd.Stdin = stdin
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("render: %v\n%s", err, stderr.Bytes())
	}
	return stdout.Bytes()
}

// renderAll renders the chart for each of the requests.
func renderAll(t *testing.T, requests []rendering) []rendering {
	t.Helper()
	var stdin bytes.Buffer
	in := json.NewEncoder(&stdin)
	for _, r := range requests {
		if err := in.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	out := json.NewDecoder(bytes.NewReader(runRender(t, &stdin, "requests")))
	all := slices.Clone(requests)
	for i := range all {
		if err := out.Decode(&all[i]); err != nil {
			t.Fatalf("response %d: %v", i, err)
		}
	}
	return all
}

// renderChart renders it for values in YAML.
func renderChart(t *testing.T, values string) rendering {
	t.Helper()
	return renderAll(t, []rendering{{Values: parse(t, values)}})[0]
}

// parse reads YAML as helm reads values: by version 1.1, where a bare off is false.
func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var values map[string]any
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, ": off", ": false")), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// change is what a switch of the chart sets, as a path and a value.
type change struct {
	path  string
	value any
}

// switches are all choices of two that the chart has: its booleans, and what else
// makes objects, volumes or permissions come and go.
func switches(t *testing.T) [][2]change {
	t.Helper()
	var all [][2]change
	var defaults map[string]any
	decode(t, filepath.Join(chartPath, "values.yaml"), &defaults)
	var walk func(prefix string, values map[string]any)
	walk = func(prefix string, values map[string]any) {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			switch value := values[key].(type) {
			case bool:
				all = append(all, [2]change{{prefix + key, false}, {prefix + key, true}})
			case map[string]any:
				walk(prefix+key+".", value)
			}
		}
	}
	walk("", defaults)
	if len(all) < 8 {
		t.Fatalf("values.yaml has the booleans %v", all)
	}
	return append(all,
		[2]change{{"config.kubernetes.events", "auto"}, {"config.kubernetes.events", false}},
		[2]change{{"config.trust.restarts.concurrency", 0}, {"config.trust.restarts.concurrency", 3}},
		[2]change{{"webConfig.secret", ""}, {"webConfig.secret", "web"}},
	)
}

// set sets a value at a path.
func set(values map[string]any, c change) {
	keys := strings.Split(c.path, ".")
	for _, key := range keys[:len(keys)-1] {
		if values[key] == nil {
			values[key] = map[string]any{}
		}
		values = values[key].(map[string]any)
	}
	values[keys[len(keys)-1]] = c.value
}

// TestChartSwitches renders all combinations of switches, and looks at each.
func TestChartSwitches(t *testing.T) {
	all := switches(t)
	var requests []rendering
	for n := range 1 << len(all) {
		values := map[string]any{}
		for i, s := range all {
			set(values, s[n>>i&1])
		}
		requests = append(requests, rendering{Values: values})
	}
	if len(requests) < 2000 {
		t.Errorf("%d combinations", len(requests))
	}
	// A few hundred at a time, because half of them have the dashboards.
	for part := range slices.Chunk(requests, 256) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for _, r := range renderAll(t, part) {
				if !r.on("watch", true) && !r.on("trust", true) {
					if !strings.Contains(r.Refused, "nothing is left to install") {
						t.Errorf("%v: refused: %q", r.Values, r.Refused)
					}
				} else if problems := r.problems(t); len(problems) > 0 {
					t.Fatalf("%v:\n%s", r.Values, strings.Join(problems, "\n"))
				}
			}
		})
	}
}

// TestChartLint: helm lint has nothing to say but that a picture would be nice.
func TestChartLint(t *testing.T) {
	full := map[string]any{}
	for _, s := range switches(t) {
		set(full, s[1])
	}
	for _, r := range renderAll(t, []rendering{{Lint: true}, {Values: full, Lint: true}}) {
		if diff := cmp.Diff([]string{"[INFO] Chart.yaml: icon is recommended"}, r.Problems); diff != "" || r.Refused != "" {
			t.Errorf("%v: refused: %q, problems (-want +got):\n%s", r.Values, r.Refused, diff)
		}
	}
}

// TestManifestUpToDate: deploy/nodestead.yaml is what make manifest writes, and is
// sound by itself.
func TestManifestUpToDate(t *testing.T) {
	shipped, err := os.ReadFile(manifestPath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(runRender(t, nil)), string(shipped)); diff != "" {
		t.Errorf("%s is out of date, make manifest writes it (-want +got):\n%s", manifestPath, diff)
	}
	r := rendering{Objects: documents(t, shipped)}
	var first struct {
		Kind     string
		Metadata struct{ Name string }
	}
	if err := json.Unmarshal(r.Objects[0], &first); err != nil || first.Kind != "Namespace" || first.Metadata.Name != "nodestead" {
		t.Errorf("first comes %+v, %v", first, err)
	}
	r.Objects = r.Objects[1:]
	for _, p := range r.problems(t) {
		t.Error(p)
	}
}

// TestChartCopies: what the chart has of alerts and dashboards is a copy, because
// nothing outside of a chart can be in its package.
func TestChartCopies(t *testing.T) {
	dashboards, err := filepath.Glob("dashboards/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatalf("dashboards: %v, %v", dashboards, err)
	}
	copies, err := filepath.Glob(chartPath + "/files/dashboards/*")
	if err != nil || len(copies) != len(dashboards) {
		t.Errorf("copies of %v: %v, %v", dashboards, copies, err)
	}
	for original, name := range map[string]string{rulesPath: filepath.Base(rulesPath), dashboards[0]: dashboards[0], dashboards[1]: dashboards[1]} {
		want, err := os.ReadFile(original)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(chartPath, "files", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("the chart's copy of %s is another (%v): make manifest copies it", original, err)
		}
	}
}

// TestChartNotes: the notes have the next three commands.
func TestChartNotes(t *testing.T) {
	for _, tt := range []struct {
		values string
		want   []string
	}{
		{"{}", []string{"rollout status", "create secret generic ca ", "port-forward daemonset/nodestead 9853 "}},
		{"{watch: {enabled: false}, trust: {caSecret: {name: root}}}", []string{"rollout status", "create secret generic root ", "port-forward daemonset/nodestead 9854 "}},
		{`{trust: {enabled: false}, config: {http: {watch: "127.0.0.1:80"}}}`, []string{"rollout status", "port-forward daemonset/nodestead 80 "}},
	} {
		var got []string
		for line := range strings.Lines(renderChart(t, tt.values).Notes) {
			if command, ok := strings.CutPrefix(line, "  kubectl -n nodestead "); ok {
				got = append(got, command)
			}
		}
		same := slices.EqualFunc(got, tt.want, strings.HasPrefix)
		if !same {
			t.Errorf("%s: got %q, want %q", tt.values, got, tt.want)
		}
	}
}

// problem is the only one.
func problem(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }

// documents are those of a YAML file, as JSON.
func documents(t *testing.T, file []byte) (all []json.RawMessage) {
	t.Helper()
	decoder := yaml.NewDecoder(bytes.NewReader(file))
	for {
		var object map[string]any
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data)
	}
}
