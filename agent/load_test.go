package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// problems gives the lines of Load's error, with the file's directory cut off.
func problems(t *testing.T, file string, environ []string, flags map[string]string) []string {
	t.Helper()
	cfg, err := Load(file, environ, flags)
	if err == nil {
		t.Fatalf("no error, config %+v", cfg)
	}
	if _, ok := errors.AsType[Problems](err); !ok {
		t.Fatalf("error is a %T, want Problems", err)
	}
	return strings.Split(strings.ReplaceAll(err.Error(), filepath.Dir(file)+"/", ""), "\n")
}

func TestAllProblemsAtOnce(t *testing.T) {
	file := write(t, `log:
  level: loud
  colour: true
http:
  watch: localhost:80
  watch: ":80"
names:
  ports:
  - 53
  - 70000
  - "54"
lookup: {}
`)
	got := problems(t, file,
		[]string{"NODESTEAD_LOG_LEVEL=verbose", "NODESTEAD_NAMES_PORTS=53,x,53", "NODESTEAD_LOG_FORMAT="},
		map[string]string{"names.ports": "0", "http.watch": "nowhere"})
	want := []string{
		`log.level (n.yaml:2): "loud" is no level: want debug, info, warn or error`,
		`log.colour (n.yaml:3): unknown key: known here are level, format`,
		`http.watch (n.yaml:5): "localhost:80" is no address to listen on: want :port or IP:port, such as :9853 or 127.0.0.1:9853`,
		`http.watch (n.yaml:6): is set twice, first in line 5`,
		`names.ports[1] (n.yaml:10): "70000" is no port: want 1 to 65535`,
		`names.ports[2] (n.yaml:11): want a number, not "54"`,
		`lookup (n.yaml:12): unknown key: known here are log, http, node_name, host_root, kubernetes, names, trust`,
		`log.level (NODESTEAD_LOG_LEVEL): "verbose" is no level: want debug, info, warn or error`,
		`log.format (NODESTEAD_LOG_FORMAT): is empty: leave it out for the default, text`,
		`names.ports[1] (NODESTEAD_NAMES_PORTS): "x" is no port: want 1 to 65535`,
		`names.ports[2] (NODESTEAD_NAMES_PORTS): 53 stands in the list already, at [0]`,
		`http.watch (--http.watch): "nowhere" is no address to listen on: want :port or IP:port, such as :9853 or 127.0.0.1:9853`,
		`names.ports[0] (--names.ports): "0" is no port: want 1 to 65535`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestProblemsOfRestarts(t *testing.T) {
	got := problems(t, write(t, `trust:
  restarts:
    concurrency: 21
    days: [monday, tue, Tue]
    start: "24:00"
    end: 6
    time_zone: Berlin
kubernetes: {events: on}
node_name: A
`), nil, map[string]string{"trust.restarts.days": ""})
	want := []string{
		`trust.restarts.concurrency (n.yaml:3): "21" is no number from 0 to 20`,
		`trust.restarts.days[0] (n.yaml:4): "monday" is no day: want mon, tue, wed, thu, fri, sat or sun`,
		`trust.restarts.days[2] (n.yaml:4): Tue stands in the list already, at [1]`,
		`trust.restarts.start (n.yaml:5): "24:00" is no time of the day to begin at: want one such as 22:30, at most 23:59`,
		`trust.restarts.end (n.yaml:6): "6" is no time of the day: want one such as 22:30, at most 24:00`,
		`trust.restarts.time_zone (n.yaml:7): "Berlin" is no time zone: want UTC, or a name such as Europe/Berlin`,
		`kubernetes.events (n.yaml:8): "on" is neither auto nor off`,
		`node_name (n.yaml:9): "A" is no name of a node: want one such as worker-1.example.de`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestBadFiles(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"syntax", "log: [", []string{"n.yaml: line 1: did not find expected node content"}},
		{"two documents", "log: {}\n---\nlog: {}\n", []string{"n.yaml:2: a second YAML document begins here: the file must hold one"}},
		{"list at the top", "- log\n", []string{"n.yaml:1: want a section with the keys log, http, node_name, host_root, kubernetes, names, trust"}},
		{"text for a section", "log: info\n", []string{"log (n.yaml:1): want a section with the keys level, format"}},
		{"dotted key", "log.level: info\n", []string{"log.level (n.yaml:1): unknown key: known here are log, http, node_name, host_root, kubernetes, names, trust"}},
		{"case", "log: {Level: info}\n", []string{"log.Level (n.yaml:1): unknown key: known here are level, format"}},
		{"no value", "log:\n  level:\n", []string{"log.level (n.yaml:2): has no value: leave it out for the default, info"}},
		{"list for one value", "log: {level: [info]}\n", []string{"log.level (n.yaml:1): want one value (debug|info|warn|error)"}},
		{"one value for a list", "names: {ports: 53}\n", []string{"names.ports (n.yaml:1): want a list, such as [53]"}},
		{"empty list", "names: {ports: []}\n", []string{"names.ports (n.yaml:1): the list is empty: leave it out for the default, 53"}},
		{"list in a list", "names: {ports: [[53]]}\n", []string{"names.ports[0] (n.yaml:1): want one value (ports)"}},
		{"octal, hexadecimal", "names: {ports: [053, 0x35]}\n", []string{
			`names.ports[0] (n.yaml:1): "053" is no port: want 1 to 65535`,
			`names.ports[1] (n.yaml:1): "0x35" is no port: want 1 to 65535`,
		}},
		{"seventeen", "names: {ports: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}\n", []string{
			"names.ports (n.yaml:1): 17 values are too many: at most 16",
		}},
		{"tag", "log: {format: !!binary text}\n", []string{"log.format (n.yaml:1): has the tag !!binary: want a plain value"}},
		{"merge", "log: &l {level: info}\nhttp: {<<: *l}\n", []string{"http.<< (n.yaml:2): unknown key: known here are watch, trust, web_config"}},
		{"key over two lines", "\"a\\nb\": 1\n", []string{"a b (n.yaml:1): unknown key: known here are log, http, node_name, host_root, kubernetes, names, trust"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := problems(t, write(t, tt.text), nil, nil)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none.yaml")
	got := problems(t, file, nil, nil)
	want := []string{"--config: open none.yaml: no such file or directory"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "log: {level: warn}\n", "names:\n  ports: [53, 5353]\n", "a: &a [*a]\n", "names: &n {ports: *n}\n",
		"trust:\n  sources: [/ca]\n  overlap: 0\n  registries: ['[fd00::1]:5000', a.b]\n  runtimes: {docker: {restart: never, disruptive: true}}\n",
		"---\n---\n", "<<: {log: 1}\n", "? [a]\n: b\n", "log: !!map {}\n", "\"\\0\": ~\n", "names: {ports: [&p 1, *p]}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLoader()
		l.file("n.yaml", data)
		cfg, err := l.result()
		if err != nil {
			for _, p := range l.problems {
				if strings.Contains(p.String(), "\n") {
					t.Errorf("a problem of two lines: %q", p)
				}
			}
			return
		}
		// What was taken is good: it can be given as flags, and stays the same; but
		// for what a flag cannot say, because it splits lists at commas.
		flags := make(map[string]string)
		for _, key := range l.keys {
			value := reflect.ValueOf(cfg).FieldByIndex(key.index)
			flags[key.Path] = fmt.Sprint(value)
			for i := 0; key.list && i < value.Len(); i++ {
				if text := fmt.Sprint(value.Index(i)); strings.TrimSpace(text) != text || strings.Contains(text, ",") {
					return
				}
			}
		}
		again, err := Load("", nil, flags)
		if err != nil {
			t.Fatalf("%+v came from the file, and is refused as flags: %v", cfg, err)
		}
		if diff := cmp.Diff(cfg, again); diff != "" {
			t.Errorf("as file and as flags (-file +flags):\n%s", diff)
		}
	})
}

// FuzzText is for the environment and the flags.
func FuzzText(f *testing.F) {
	f.Add("info", "53,5353", "0.0.0.0:80")
	f.Add("", ",", "[]:")
	f.Fuzz(func(t *testing.T, level, ports, watch string) {
		cfg, err := Load("", nil, map[string]string{"log.level": level, "names.ports": ports, "http.watch": watch})
		if err == nil && (len(cfg.Names.Ports) == 0 || len(cfg.Names.Ports) > 16) {
			t.Errorf("%q gave %d ports", ports, len(cfg.Names.Ports))
		}
	})
}
