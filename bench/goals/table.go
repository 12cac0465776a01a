package goals

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Table is what was measured, in the order of its rows.
type Table struct {
	Rows  []Row  `json:"rows"`
	Goals []Goal `json:"goals"`
}

// Row is a figure to look at.
type Row struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
}

// Goal is a figure that is to reach something.
type Goal struct {
	What    string  `json:"what"`
	Bound   float64 `json:"bound"`
	Least   bool    `json:"least,omitempty"` // it is to be reached, else not to be passed
	Unit    string  `json:"unit,omitempty"`  // behind the figures
	Value   float64 `json:"value"`
	Missing string  `json:"missing,omitempty"` // why there is no value
}

// Add notes a figure.
func (t *Table) Add(what string, value float64) { t.Rows = append(t.Rows, Row{what, value}) }

// Goal notes a figure that has one.
func (t *Table) Goal(g Goal) { t.Goals = append(t.Goals, g) }

// Reached reports whether the goal is reached.
func (g *Goal) Reached() bool {
	return g.Missing == "" && (g.Least && g.Value >= g.Bound || !g.Least && g.Value <= g.Bound)
}

// Markdown is the goals, or the figures, as a table.
func (t *Table) Markdown() string {
	var b strings.Builder
	if len(t.Rows) > 0 {
		b.WriteString("| measure | median |\n|---|--:|\n")
	}
	for _, r := range t.Rows {
		fmt.Fprintf(&b, "| %s | %s |\n", r.What, Figure(r.Value))
	}
	if len(t.Rows) > 0 && len(t.Goals) > 0 {
		b.WriteString("\n")
	}
	if len(t.Goals) > 0 {
		b.WriteString("| goal | to reach | reached | |\n|---|---|---|---|\n")
	}
	for i := range t.Goals {
		b.WriteString(t.Goals[i].row())
	}
	return b.String()
}

func (g *Goal) row() string {
	verdict, sign, value := "reached", "≤", Figure(g.Value)+g.Unit
	if g.Least {
		sign = "≥"
	}
	switch {
	case g.Missing != "":
		verdict, value = "not measured: "+g.Missing, "–"
	case !g.Reached():
		verdict = "**missed**"
	}
	return fmt.Sprintf("| %s | %s %s%s | %s | %s |\n", g.What, sign, Figure(g.Bound), g.Unit, value, verdict)
}

// Figure writes v without digits that mean nothing.
func Figure(v float64) string {
	if v >= 100 || v == math.Trunc(v) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// Median is the middle of a list, 0 of none.
func Median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Ratio is the median of what a is of b in each round, but for those where b is 0.
func Ratio(a, b []float64) float64 {
	var list []float64
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			list = append(list, a[i]/b[i])
		}
	}
	return Median(list)
}
