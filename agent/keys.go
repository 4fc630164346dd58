package agent

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Key is one setting: a leaf of Config.
type Key struct {
	// Path is where it stands in the file (log.level), and its flag after --.
	Path string
	// Env is its environment variable.
	Env string
	// Syntax names its value in a flag's help, Help explains it, Default is
	// its default as a flag takes it.
	Syntax, Help, Default string

	index []int // in Config, for reflect
	list  bool
	max   int    // the most values in a list
	empty string // what an empty list or text stands for; "" where it may not be empty
}

// Keys gives all settings in the order of Config.
func Keys() []Key {
	return keysOf(reflect.ValueOf(Default()), "", nil)
}

func keysOf(v reflect.Value, prefix string, index []int) []Key {
	var keys []Key
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		path := prefix + field.Tag.Get("yaml")
		at := append(index[:len(index):len(index)], i)
		if value.Kind() == reflect.Struct {
			keys = append(keys, keysOf(value, path+".", at)...)
			continue
		}
		limit, _ := strconv.Atoi(field.Tag.Get("max"))
		keys = append(keys, Key{
			Path:    path,
			Env:     "NODESTEAD_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_")),
			Syntax:  field.Tag.Get("syntax"),
			Help:    field.Tag.Get("help"),
			Default: fmt.Sprint(value),
			index:   at,
			list:    value.Kind() == reflect.Slice,
			max:     limit,
			empty:   field.Tag.Get("empty"),
		})
	}
	return keys
}

// isNumber tells whether the key's value, or each in its list, is a number.
func (k Key) isNumber() bool {
	t := reflect.TypeFor[Config]().FieldByIndex(k.index).Type
	if k.list {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Uint16, reflect.Uint32:
		return true
	default:
		return false
	}
}

// standard is the default as a message names it.
func (k Key) standard() string {
	if k.Default == "" {
		return k.empty
	}
	return k.Default
}
