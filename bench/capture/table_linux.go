package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"culvert/bench/proc"
)

// table is what was measured.
type table struct{ rows, goals []string }

func (t *table) add(name string, value float64, unit string) {
	t.rows = append(t.rows, fmt.Sprintf("| %s | %s%s |", name, figure(value), unit))
}

// goal notes a figure that has one; least tells that it should be reached, else it should not be passed.
func (t *table) goal(name string, value, goal float64, least bool) {
	verdict, sign := "reached", "≥"
	if !least {
		sign = "≤"
	}
	if least && value < goal || !least && value > goal {
		verdict = "**missed**"
	}
	t.goals = append(t.goals, fmt.Sprintf("| %s | %s %s | %s | %s |", name, sign, figure(goal), figure(value), verdict))
}

func figure(v float64) string {
	if v >= 100 || v == float64(int(v)) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (t *table) write(file string, rounds int) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# What capturing costs\n\nMade by `make capture` on %s, %d rounds of each comparison; do not edit. %s, %d cores, %s.\n\n",
		time.Now().Format(time.DateOnly), rounds, cmp.Or(proc.Processor(), runtime.GOARCH), runtime.NumCPU(), runtime.Version())
	fmt.Fprintf(&b, "| measure | median |\n|---|--:|\n%s\n\n", strings.Join(t.rows, "\n"))
	fmt.Fprintf(&b, "| goal | to reach | reached | |\n|---|---|---|---|\n%s\n", strings.Join(t.goals, "\n"))
	return os.WriteFile(file, b.Bytes(), 0o644)
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ratios is the median of what a is of b in each round.
func ratios(a, b []float64) float64 {
	var list []float64
	for i := range a {
		list = append(list, a[i]/b[i])
	}
	return median(list)
}
