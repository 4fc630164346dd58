package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// file takes the values of a YAML file. It walks the nodes itself, because the
// library's own decoding stops early, and does not say which key it means.
func (l *loader) file(name string, data []byte) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if !errors.Is(err, io.EOF) {
			l.syntax(name, err)
		}
		return
	}
	l.section(name, "", document.Content[0])
	if err := decoder.Decode(&second); err == nil {
		l.report("", at(name, &second), "a second YAML document begins here: the file must hold one")
	} else if !errors.Is(err, io.EOF) {
		l.syntax(name, err)
	}
}

func (l *loader) syntax(name string, err error) {
	l.report("", name, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
}

// section takes the keys under prefix, which is empty or ends with a dot.
func (l *loader) section(name, prefix string, node *yaml.Node) {
	node = target(node)
	if isNull(node) {
		return // all keys of the section are commented out
	}
	if node.Kind != yaml.MappingNode {
		l.report(strings.TrimSuffix(prefix, "."), at(name, node), "want a section with the keys %s", l.known(prefix))
		return
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		path := prefix + key.Value
		if first, ok := lines[key.Value]; ok {
			l.report(path, at(name, key), "is set twice, first in line %d", first)
			continue
		}
		lines[key.Value] = key.Line

		// A dot in a key would let one setting stand in two places.
		known := key.Kind == yaml.ScalarNode && key.Value != "" && !strings.Contains(key.Value, ".")
		leaf := slices.IndexFunc(l.keys, func(k Key) bool { return k.Path == path })
		switch {
		case known && leaf >= 0:
			l.leaf(name, l.keys[leaf], value)
		case known && l.known(path+".") != "":
			l.section(name, path+".", value)
		default:
			l.report(path, at(name, key), "unknown key: known here are %s", l.known(prefix))
		}
	}
}

// known lists the names that may stand under prefix, empty when it is no
// section.
func (l *loader) known(prefix string) string {
	var names []string
	for _, key := range l.keys {
		if rest, ok := strings.CutPrefix(key.Path, prefix); ok {
			name, _, _ := strings.Cut(rest, ".")
			names = append(names, name)
		}
	}
	return strings.Join(slices.Compact(names), ", ")
}

func (l *loader) leaf(name string, key Key, node *yaml.Node) {
	node = target(node)
	if isNull(node) {
		l.report(key.Path, at(name, node), "has no value: leave it out for the default, %s", key.standard())
		return
	}
	if !key.list {
		l.set(key, scalar(name, key, node))
		return
	}
	if node.Kind != yaml.SequenceNode {
		if key.Default == "" {
			l.report(key.Path, at(name, node), "want a list in brackets (%s)", key.Syntax)
		} else {
			l.report(key.Path, at(name, node), "want a list, such as [%s]", key.Default)
		}
		return
	}
	var values []written
	for _, element := range node.Content {
		values = append(values, scalar(name, key, target(element)))
	}
	l.setList(key, at(name, node), values)
}

// scalar gives a node that must be one value of the key's type.
func scalar(name string, key Key, node *yaml.Node) written {
	value := written{text: node.Value, source: at(name, node)}
	switch {
	case node.Kind != yaml.ScalarNode:
		value.problem = fmt.Sprintf("want one value (%s)", key.Syntax)
	case key.isNumber() && node.ShortTag() != "!!int":
		value.problem = fmt.Sprintf("want a number, not %q", node.Value)
	case node.Style&yaml.TaggedStyle != 0:
		value.problem = fmt.Sprintf("has the tag %s: want a plain value", node.Tag)
	}
	return value
}

// target follows an alias to what it stands for.
func target(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

func at(name string, node *yaml.Node) string { return fmt.Sprintf("%s:%d", name, node.Line) }
