package main

import (
	"fmt"
	"sort"
	"strings"
)

// fault is one thing that is wrong with a configuration: where it stands, what it is, and what would
// be right.
type fault struct {
	file string // configuration file, or empty for a flag
	line int    // line in file, from 1
	flag string // the flag, with its dashes, when file is empty
	what string
}

// place renders where the fault stands: `gw.yaml:12` or `--socks`.
func (f fault) place() string {
	switch {
	case f.file != "" && f.line > 0:
		return fmt.Sprintf("%s:%d", f.file, f.line)
	case f.file != "":
		return f.file
	case f.flag != "":
		return f.flag
	}
	return "configuration"
}

// faults collects everything that is wrong, so that a user mends a configuration in one go. It is an
// error when it is not empty; err says so.
type faults struct {
	list []fault
	// broken tells that the configuration could not be read at all, so that nothing can be said of what
	// it lacks.
	broken bool
}

// err returns f as an error, or nil when nothing is wrong.
func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	return f
}

// Error renders one fault per line, in the order of the file.
func (f *faults) Error() string {
	sort.SliceStable(f.list, func(i, j int) bool {
		a, b := f.list[i], f.list[j]
		if a.file != b.file {
			return a.file < b.file
		}
		return a.line < b.line
	})
	var b strings.Builder
	seen := make(map[string]bool, len(f.list))
	for _, one := range f.list {
		text := one.place() + ": " + one.what
		if seen[text] {
			continue
		}
		seen[text] = true
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(text)
	}
	return b.String()
}

// places remembers where each value of a Config was written, so that a check made long after decoding
// still names a line or a flag. Paths look like `listeners[0].address`.
type places struct {
	file  string
	lines map[string]int
	flags map[string]string
}

func newPlaces(file string) *places {
	return &places{file: file, lines: map[string]int{}, flags: map[string]string{}}
}

// at returns a fault at the place of path, or of the nearest value around it that has one.
func (p *places) at(path, what string) fault {
	for at := path; ; at = parentPath(at) {
		if flag, ok := p.flags[at]; ok {
			field := path[strings.LastIndexByte(path, '.')+1:]
			return fault{flag: flag, what: strings.TrimPrefix(what, field+": ")} // the flag says which field it is
		}
		if line, ok := p.lines[at]; ok {
			return fault{file: p.file, line: line, what: what}
		}
		if at == "" {
			break
		}
	}
	if p.file != "" {
		return fault{file: p.file, line: 1, what: what}
	}
	return fault{what: what}
}

// parentPath cuts the last step off a path: `a.b[3]` → `a.b` → `a` → “.
func parentPath(path string) string {
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}
