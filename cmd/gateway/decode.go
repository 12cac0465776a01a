package main

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// decoder fills a struct from YAML and notes every fault instead of stopping at the first. It knows
// nothing of gateways: what it may find is what the struct's yaml tags say.
type decoder struct {
	places *places
	faults *faults
	deeper map[string]reflect.Value // fields whose names are paths, as in "policy.authorizers", by them
}

// decode reads the one document in text into dst, a pointer to a struct.
func (d *decoder) decode(text []byte, dst any) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return // an empty file is an empty configuration; what is missing is said later
	}
	if err != nil {
		d.syntax(err)
		return
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		d.note(&second, "a second YAML document; a configuration is one document: remove this `---` and what follows")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	d.value("", doc.Content[0], reflect.ValueOf(dst).Elem())
}

// timeWanted is what a time should be.
const timeWanted = "a time with its unit, such as 30s, 5m or 1h"

// syntaxLine finds the line in an error of the YAML parser, which has no type for it.
var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

func (d *decoder) syntax(err error) {
	line, what := 1, err.Error()
	if m := syntaxLine.FindStringSubmatch(what); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		what = m[2]
	}
	d.faults.broken = true
	d.faults.list = append(d.faults.list, fault{file: d.places.file, line: line, what: "not YAML: " + what + "; look there, and in the line before, for a tab, a bracket, a quote or a colon"})
}

func (d *decoder) note(n *yaml.Node, format string, args ...any) {
	d.faults.list = append(d.faults.list, fault{file: d.places.file, line: n.Line, what: fmt.Sprintf(format, args...)})
}

// value decodes n into v, which stands at path.
func (d *decoder) value(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if _, seen := d.places.lines[path]; !seen && path != "" {
		d.places.lines[path] = n.Line
	}
	if v.Type() == reflect.TypeFor[yaml.Node]() {
		v.Set(reflect.ValueOf(n).Elem()) // for somebody who knows what it is
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if d.scalar(path, n, "a value") {
			if err := text.UnmarshalText([]byte(n.Value)); err != nil {
				d.note(n, "%s: %v", path, err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.fields(path, n, v)
	case reflect.Map:
		d.entries(path, n, v)
	case reflect.Slice:
		d.items(path, n, v)
	default:
		d.leaf(path, n, v)
	}
}

// scalar reports whether n is a single value, and notes it when it is not.
func (d *decoder) scalar(path string, n *yaml.Node, want string) bool {
	switch {
	case n.Kind != yaml.ScalarNode:
		d.note(n, "%s is %s; it should be %s", path, kindName(n), want)
	case n.Tag == "!!null":
		d.note(n, "%s has no value; write %s or remove the line", path, want)
	default:
		return true
	}
	return false
}

func (d *decoder) leaf(path string, n *yaml.Node, v reflect.Value) {
	want := wanted(v.Type())
	if !d.scalar(path, n, want) {
		return
	}
	if err := setLeaf(n.Value, v); err != nil {
		d.note(n, "%s: %q is not %s", path, n.Value, want)
	}
}

func wanted(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return timeWanted
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.String:
		return "a text"
	case t.Kind() == reflect.Float64:
		return "a number"
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	}
	return "a whole number"
}

// setLeaf parses text as v's type; the caller says what would have been right.
func setLeaf(text string, v reflect.Value) error {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		v.SetInt(int64(d))
		return err
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return strconv.ErrSyntax
		}
		v.SetBool(text == "true")
	case v.CanInt():
		i, err := strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(i)
		return err
	case v.CanUint():
		u, err := strconv.ParseUint(text, 10, v.Type().Bits())
		v.SetUint(u)
		return err
	case v.CanFloat():
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		v.SetFloat(f)
		return err
	default:
		panic("BUG: no way to decode a " + v.Type().String())
	}
	return nil
}

// fields decodes a mapping into a struct and names every key that the struct does not have.
func (d *decoder) fields(path string, n *yaml.Node, v reflect.Value) {
	known := map[string]reflect.Value{}
	d.fieldsOf(path, v, known)
	d.mapping(path, n, func(key *yaml.Node, at string, value *yaml.Node) {
		field, ok := known[key.Value]
		if !ok {
			d.note(key, "unknown field %q%s; %s", key.Value, inside(path), alternatives(key.Value, known))
			return
		}
		d.places.lines[at] = key.Line
		d.value(at, value, field)
	})
}

// entries decodes a mapping with keys of the user's choice.
func (d *decoder) entries(path string, n *yaml.Node, v reflect.Value) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	d.mapping(path, n, func(key *yaml.Node, at string, value *yaml.Node) {
		d.places.lines[at] = key.Line
		name, item := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if err := setLeaf(key.Value, name); err != nil {
			d.note(key, "the key %q%s is not %s", key.Value, inside(path), wanted(name.Type()))
			return
		}
		if v.MapIndex(name).IsValid() { // numbers have several forms
			d.note(key, "%v%s is there twice; keep one", name, inside(path))
			return
		}
		d.value(at, value, item)
		v.SetMapIndex(name, item)
	})
}

// mapping walks the keys of n, once each.
func (d *decoder) mapping(path string, n *yaml.Node, each func(key *yaml.Node, at string, value *yaml.Node)) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section with nothing in it
	}
	if n.Kind != yaml.MappingNode {
		d.note(n, "%s is %s; it should be a mapping with fields", orDocument(path), kindName(n))
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch line, twice := first[key.Value]; {
		case key.Kind != yaml.ScalarNode:
			d.note(key, "a key%s is %s; it should be a name", inside(path), kindName(key))
			continue
		case key.Tag == "!!merge":
			d.note(key, "merge keys (<<) are not understood; write the fields out")
			continue
		case twice:
			d.note(key, "field %q%s is there twice (first in line %d); keep one", key.Value, inside(path), line)
			continue
		}
		first[key.Value] = key.Line
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		each(key, at, value)
	}
}

func (d *decoder) items(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.note(n, "%s is %s; it should be a list, such as [%s]", path, kindName(n), n.Value)
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		d.value(fmt.Sprintf("%s[%d]", path, i), item, list.Index(i))
	}
	v.Set(list)
}

// fieldsOf adds the fields of struct v, which stands at path, by their YAML names; inlined structs add theirs. A field with a
// path for a name is one of the struct there, which may be in a package that must not know of it.
func (d *decoder) fieldsOf(path string, v reflect.Value, to map[string]reflect.Value) {
	for at, field := range d.deeper {
		if parent, name := splitPath(at); parent == path {
			to[name] = field
		}
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, inline, ok := yamlName(f.Tag.Get("yaml"))
		switch {
		case inline:
			d.fieldsOf(path, v.Field(i), to)
		case ok && strings.Contains(name, "."):
			if d.deeper == nil {
				d.deeper = make(map[string]reflect.Value)
			}
			d.deeper[strings.TrimPrefix(path+"."+name, ".")] = v.Field(i)
		case ok && f.IsExported():
			to[name] = v.Field(i)
		}
	}
}

// splitPath takes the last name off a path.
func splitPath(path string) (parent, name string) {
	i := strings.LastIndexByte(path, '.')
	return path[:max(i, 0)], path[i+1:]
}

// yamlName reads a yaml struct tag. A field without one is not part of the file.
func yamlName(tag string) (name string, inline, ok bool) {
	name, rest, _ := strings.Cut(tag, ",")
	if strings.Contains(rest, "inline") {
		return "", true, true
	}
	return name, false, name != "" && name != "-"
}

func inside(path string) string {
	if path == "" {
		return ""
	}
	return " in " + path
}

func orDocument(path string) string {
	if path == "" {
		return "the configuration"
	}
	return path
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "empty"
		}
		return strconv.Quote(n.Value)
	}
	return "something else"
}

// alternatives says what could have been meant by an unknown name.
func alternatives[V any](name string, known map[string]V) string {
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	sort.Strings(names)
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if len(names) == 0 {
		return "there is none here"
	}
	return "known here: " + strings.Join(names, ", ")
}

// nearest returns the one of names that a slip of the finger makes into name, or "".
func nearest(name string, names []string) string {
	best, bestDistance := "", 1+len(name)/3
	for _, n := range names {
		if strings.EqualFold(n, name) {
			return n
		}
		if d := distance(name, n); d <= bestDistance && (best == "" || d < bestDistance) {
			best, bestDistance = n, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
