package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"culvert/bench/proc"
)

// results is what results.json holds.
type results struct {
	Date    string            `json:"date"`
	Command string            `json:"command"`
	Quick   bool              `json:"quick,omitempty"` // only shows that everything works
	Machine proc.Machine      `json:"machine"`
	Rounds  []result          `json:"rounds"`
	Absent  map[string]string `json:"absent,omitempty"` // pair → why it was not measured
}

// result is what one pair reached in one round.
type result struct {
	Round  int               `json:"round"`
	Pair   string            `json:"pair"`
	Values values            `json:"values"`
	Faults map[string]string `json:"faults,omitempty"` // measure → why there is no value
}

// median is the middle of what a pair reached in a column; false if it has no value there.
func (r *results) median(pair, column string) (float64, bool) {
	all := r.sorted(pair, column)
	if len(all) == 0 {
		return 0, false
	}
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2, true
}

// sorted lists the values of a pair in a column.
func (r *results) sorted(pair, column string) []float64 {
	var all []float64
	for _, one := range r.Rounds {
		if x, ok := one.Values[column]; ok && one.Pair == pair {
			all = append(all, x)
		}
	}
	slices.Sort(all)
	return all
}

// ratio compares a pair with another in a column.
func (r *results) ratio(pair, other, column string) (float64, bool) {
	x, ok := r.median(pair, column)
	y, ok2 := r.median(other, column)
	if !ok || !ok2 || y == 0 {
		return 0, false
	}
	return x / y, true
}

// failed reports whether a measure of a pair failed in a round.
func (r *results) failed(pair, measure string) bool {
	return slices.ContainsFunc(r.Rounds, func(one result) bool { return one.Pair == pair && one.Faults[measure] != "" })
}

// pairs lists the pairs that were measured or were to be, in the order of the table.
func (r *results) pairs() []string {
	var names []string
	for _, p := range pairs {
		_, absent := r.Absent[p.name]
		if absent || slices.ContainsFunc(r.Rounds, func(one result) bool { return one.Pair == p.name }) {
			names = append(names, p.name)
		}
	}
	return names
}

// notes says for every pair and measure without a value why there is none.
func (r *results) notes() []string {
	var notes []string
	for _, name := range slices.Sorted(maps.Keys(r.Absent)) {
		notes = append(notes, fmt.Sprintf("%s was not measured: %s.", name, r.Absent[name]))
	}
	for _, name := range r.pairs() {
		failed := make(map[string]int)
		why := make(map[string]string)
		for _, one := range r.Rounds {
			if one.Pair != name {
				continue
			}
			for m, text := range one.Faults {
				failed[m]++
				why[m] = text
			}
		}
		for _, m := range slices.Sorted(maps.Keys(failed)) {
			notes = append(notes, fmt.Sprintf("%s failed %d × in `%s`: %s.", name, failed[m], m, short(why[m])))
		}
		if n := r.sorted(name, colOpenErrors); len(n) > 0 && n[len(n)-1] > 0 {
			notes = append(notes, fmt.Sprintf("%s refused or lost streams while they were opened and closed: up to %.0f in a round.", name, n[len(n)-1]))
		}
	}
	return notes
}

// shortBytes is how much of a fault a note shows.
const shortBytes = 200

// short is the beginning of a fault, on one line.
func short(fault string) string {
	line, _, _ := strings.Cut(fault, "\n")
	if len(line) > shortBytes {
		line = strings.ToValidUTF8(line[:shortBytes], "") + " …"
	}
	return line
}

// write keeps the results in dir: all rounds, the tables, and the plot.
func (r *results) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "RESULTS.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	return r.plot(filepath.Join(dir, "results.svg"))
}
