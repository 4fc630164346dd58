package agent

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// Path is the key, with the index of the value in a list; empty when the
	// source as a whole is at fault.
	Path string
	// Source is where it was set: file:line, the name of the environment
	// variable, or the flag.
	Source string
	// Text says what is wrong and what is right.
	Text string
}

// String gives the problem as one line.
func (p Problem) String() string {
	if p.Path == "" {
		return p.Source + ": " + p.Text
	}
	return fmt.Sprintf("%s (%s): %s", p.Path, p.Source, p.Text)
}

// Problems is the error of Load: all that is wrong, at once.
type Problems []Problem

// Error gives one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// Load gives the configuration: the defaults, changed by the file (none when
// its name is empty), by the environment (as os.Environ gives it) and by the
// flags (text by path of the key), the later over the earlier. An environment
// variable that is no key's is ignored, whatever its prefix: Kubernetes makes
// NODESTEAD_PORT and its like for a Service named nodestead. The error is
// Problems.
func Load(file string, environ []string, flags map[string]string) (Config, error) {
	l := newLoader()
	if file != "" {
		if data, err := os.ReadFile(file); err != nil {
			l.report("", "--config", "%v", err)
		} else {
			l.file(file, data)
		}
	}
	l.environment(environ)
	l.flags(flags)
	return l.result()
}

// loader collects values into cfg and what is wrong with them into problems.
type loader struct {
	cfg      Config
	keys     []Key
	problems Problems
}

func newLoader() *loader { return &loader{cfg: Default(), keys: Keys()} }

func (l *loader) result() (Config, error) {
	if len(l.problems) > 0 {
		return Config{}, l.problems
	}
	return l.cfg, nil
}

func (l *loader) report(path, source, format string, args ...any) {
	l.problems = append(l.problems, Problem{
		Path:   oneLine(path),
		Source: oneLine(source),
		Text:   oneLine(fmt.Sprintf(format, args...)),
	})
}

// oneLine keeps a problem in its line, whatever a key, a value or a library's
// error put into it.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func (l *loader) environment(environ []string) {
	set := make(map[string]string)
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		set[name] = value
	}
	for _, key := range l.keys {
		if value, ok := set[key.Env]; ok {
			l.text(key, value, key.Env)
		}
	}
}

func (l *loader) flags(flags map[string]string) {
	for _, key := range l.keys {
		if value, ok := flags[key.Path]; ok {
			l.text(key, value, "--"+key.Path)
		}
	}
}

// written is a value as it was written, and where.
type written struct {
	text, source string
	problem      string // found already; then text is no value
}

// unmarshal puts the value into a field of Config, or of a list in it.
func (w written) unmarshal(into reflect.Value) error {
	if w.problem != "" {
		return errors.New(w.problem)
	}
	return into.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(w.text))
}

// text sets a key from text, where a list's values are separated by commas.
func (l *loader) text(key Key, text, source string) {
	if text == "" && key.empty == "" {
		l.report(key.Path, source, "is empty: leave it out for the default, %s", key.Default)
		return
	}
	if !key.list {
		l.set(key, written{text: text, source: source})
		return
	}
	var values []written
	for value := range strings.SplitSeq(text, ",") {
		if text == "" {
			break
		}
		values = append(values, written{text: strings.TrimSpace(value), source: source})
	}
	l.setList(key, source, values)
}

func (l *loader) set(key Key, value written) {
	into := reflect.ValueOf(&l.cfg).Elem().FieldByIndex(key.index)
	if err := value.unmarshal(into); err != nil {
		l.report(key.Path, value.source, "%v", err)
	}
}

func (l *loader) setList(key Key, source string, values []written) {
	into := reflect.ValueOf(&l.cfg).Elem().FieldByIndex(key.index)
	list := reflect.MakeSlice(into.Type(), 0, len(values))
	first := make(map[any]int)
	for i, value := range values {
		path := fmt.Sprintf("%s[%d]", key.Path, i)
		element := reflect.New(into.Type().Elem()).Elem()
		if err := value.unmarshal(element); err != nil {
			l.report(path, value.source, "%v", err)
			continue
		}
		if at, ok := first[element.Interface()]; ok {
			l.report(path, value.source, "%s stands in the list already, at [%d]", value.text, at)
			continue
		}
		first[element.Interface()] = i
		list = reflect.Append(list, element)
	}
	switch n := len(values); {
	case n == 0 && key.empty != "":
		list = reflect.Zero(into.Type())
	case n == 0:
		l.report(key.Path, source, "the list is empty: leave it out for the default, %s", key.Default)
	case n > key.max:
		l.report(key.Path, source, "%d values are too many: at most %d", n, key.max)
	}
	into.Set(list)
}
