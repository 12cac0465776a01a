package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"culvert/bench/goals"
	"culvert/bench/proc"
)

// results is what roles.json holds.
type results struct {
	Date    string            `json:"date"`
	Command string            `json:"command"`
	Quick   bool              `json:"quick,omitempty"` // only shows that everything works
	Machine proc.Machine      `json:"machine"`
	Rounds  []values          `json:"rounds"`
	Faults  map[string]string `json:"faults,omitempty"` // part → why it has no values, or not all
	Table   goals.Table       `json:"table"`
}

// goal is a figure of Culvert's that is to reach something.
type goal struct {
	part  string // that it comes from
	what  string
	of    []string // values: each has to reach it
	over  []string // values of the same round by which those are divided, if any
	bound float64
	least bool
	unit  string
}

// list is the values of a name in the rounds that have it and, if other is not "", the other one too.
func (r *results) list(name, other string) (list []float64) {
	for _, round := range r.Rounds {
		if x, ok := round[name]; ok {
			if _, both := round[other]; both || other == "" {
				list = append(list, x)
			}
		}
	}
	return list
}

// reach is what a goal has come to: of several values the worst one.
func (r *results) reach(g *goal) goals.Goal {
	has := goals.Goal{What: g.what, Bound: g.bound, Least: g.least, Unit: g.unit}
	for i, name := range g.of {
		other := ""
		if g.over != nil {
			other = g.over[i]
		}
		a := r.list(name, other)
		if len(a) == 0 {
			has.Missing = "no value"
			if why := r.Faults[g.part]; why != "" {
				has.Missing = short(why)
			}
			return has
		}
		x := goals.Median(a)
		if other != "" {
			x = goals.Ratio(a, r.list(other, name))
		}
		if i == 0 || g.least && x < has.Value || !g.least && x > has.Value {
			has.Value = x
		}
	}
	return has
}

// shortBytes is how much of a fault a table shows.
const shortBytes = 120

// short is the beginning of a fault, on one line.
func short(fault string) string {
	line, _, _ := strings.Cut(fault, "\n")
	if len(line) > shortBytes {
		line = strings.ToValidUTF8(line[:shortBytes], "") + " …"
	}
	return strings.ReplaceAll(line, "|", "/")
}

// fill makes the table of the rounds.
func (r *results) fill() {
	r.Table = goals.Table{}
	names := make(map[string]bool)
	for _, round := range r.Rounds {
		for name := range round {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		r.Table.Add(name, goals.Median(r.list(name, "")))
	}
	for i := range promised {
		r.Table.Goal(r.reach(&promised[i]))
	}
}

// markdown is ROLES.md.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# What the roles of a gateway cost

Made by `+"`make roles`"+` on %s; do not edit. Figures are medians of the rounds, ratios medians of the rounds' ratios; of
several ways the worst one counts. All rounds are in [roles.json](roles.json).

`, r.Date)
	if r.Quick {
		b.WriteString("**A quick run: it shows that everything works, and its figures mean nothing.**\n\n")
	}
	if r.Machine.Busy() {
		b.WriteString(proc.BusyWarning)
	}
	b.WriteString((&goals.Table{Goals: r.Table.Goals}).Markdown())
	b.WriteString("\n## Figures\n\n" + (&goals.Table{Rows: r.Table.Rows}).Markdown() + "\n")
	for _, part := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(&b, "- `%s` was not measured, or not all of it: %s\n", part, short(r.Faults[part]))
	}
	fmt.Fprintf(&b, "\n## Machine\n\n%s\n\n", &r.Machine)
	for _, name := range slices.Sorted(maps.Keys(r.Machine.Programs)) {
		if r.Machine.Programs[name] != "" {
			fmt.Fprintf(&b, "- %s: %s\n", name, r.Machine.Programs[name])
		}
	}
	fmt.Fprintf(&b, "\nRounds: %d. The command:\n\n```sh\n%s\n```\n\n%s", len(r.Rounds), r.Command, explanation)
	return b.String()
}

// write keeps the results in dir.
func (r *results) write(dir string) error {
	r.fill()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "roles.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ROLES.md"), []byte(r.markdown()), 0o644)
}
