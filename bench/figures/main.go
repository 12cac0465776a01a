package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"culvert/bench/goals"
)

// figure is a row of the table: a unit of a benchmark's line, or of a test's log, and its goal.
type figure struct {
	what   string
	name   string // of the benchmark, in full, without the number of processors
	unit   string // as in its line
	factor float64
	shown  string // the unit of the table
	most   bool   // the goal is the most that it may be; else the least that it has to be
	goal   float64
	over   string // another benchmark that it is divided by; "": none
}

// figures are those that were promised.
var figures = []figure{ // it is never changed
	{what: "decide, 10 rules, allowed", name: "BenchmarkDecideRules/allow/rules=10", unit: "ns/op", factor: 1, shown: "ns", most: true, goal: 1000},
	{what: "decide, 10,000 rules, allowed", name: "BenchmarkDecideRules/allow/rules=10000", unit: "ns/op", factor: 1, shown: "ns", most: true, goal: 1000},
	{what: "decide, 10,000 rules, denied", name: "BenchmarkDecideRules/deny/rules=10000", unit: "ns/op", factor: 1, shown: "ns", most: true, goal: 1000},
	{what: "decide, 10,000 rules beside 10", name: "BenchmarkDecideRules/allow/rules=10000", unit: "ns/op", factor: 1, shown: "×", most: true, goal: 2, over: "BenchmarkDecideRules/allow/rules=10"},
	{what: "decide, 10,000 rules, allocations", name: "BenchmarkDecideRules/deny/rules=10000", unit: "allocs/op", factor: 1, most: true, goal: 0},
	{what: "decide with one CEL condition", name: "BenchmarkDecideCEL/short", unit: "ns/op", factor: 1e-3, shown: "µs", most: true, goal: 5},
	{what: "the same, with four terms", name: "BenchmarkDecideCEL/long", unit: "ns/op", factor: 1e-3, shown: "µs", most: true, goal: 5},
	{what: "compile 10,000 policies of Istio", name: "BenchmarkCompile10000", unit: "ns/op", factor: 1e-9, shown: "s", most: true, goal: 1},
	{what: "a rule of 100,000 in memory", name: "TestSnapshotIsSmall", unit: "bytes a rule", factor: 1, shown: "bytes", most: true, goal: 200},
	{what: "a token that was verified before", name: "BenchmarkVerifyRemembered", unit: "ns/op", factor: 1e-3, shown: "µs", most: true, goal: 1},
	{what: "certificates of the CA, on open connections", name: "BenchmarkCreateCertificate", unit: "certs/s", factor: 1, shown: "a second", goal: 2000},
}

func main() {
	count := flag.Int("count", 5, "runs of each benchmark")
	out := flag.String("out", "bench/IDENTITY.md", "file to write")
	flag.Parse()
	if err := run(*count, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(count int, out string) error {
	found := make(goals.Benchmarks)
	for _, args := range [][]string{
		{"-run", "^$", "-bench", "DecideRules|DecideCEL|Compile10000", "-benchmem", "-count", strconv.Itoa(count), "./policy"},
		{"-run", "^TestSnapshotIsSmall$", "-v", "-count", strconv.Itoa(count), "./policy"},
		{"-run", "^$", "-bench", "VerifyRemembered", "-count", strconv.Itoa(count), "./pki/jwt"},
		{"-run", "^$", "-bench", "CreateCertificate", "-benchtime", "3s", "-count", strconv.Itoa(count), "./pki"},
	} {
		if err := found.Run(context.Background(), args...); err != nil {
			return err
		}
	}
	table, err := render(found, count)
	if err != nil {
		return err
	}
	fmt.Print(table)
	return os.WriteFile(out, []byte(table), 0o644)
}

// render makes the page.
func render(found goals.Benchmarks, count int) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# What identity and policy cost\n\nMade by `make figures` on %s, the median of %d runs of each benchmark; do not edit. %d cores, %s. The goals are for a machine\nthat does nothing else; the CA's certificates are made and asked for on the same cores.\n\n| measure | goal | reached | |\n|---|--:|--:|---|\n",
		time.Now().UTC().Format(time.DateOnly), count, runtime.NumCPU(), runtime.Version())
	var missing []error
	for _, f := range figures {
		value, err := found.Median(f.name + " " + f.unit)
		if err == nil && f.over != "" {
			var by float64
			by, err = found.Median(f.over + " " + f.unit)
			value /= by
		}
		if err != nil {
			missing = append(missing, err)
			continue
		}
		value *= f.factor
		sign, verdict := "≥", "missed"
		if f.most {
			sign = "≤"
		}
		if f.most && value <= f.goal || !f.most && value >= f.goal {
			verdict = "reached"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", f.what, strings.TrimSpace(fmt.Sprintf("%s %g %s", sign, f.goal, f.shown)), strings.TrimSpace(number(value)+" "+f.shown), verdict)
	}
	return b.String(), errors.Join(missing...)
}

// number writes three digits that count.
func number(v float64) string {
	if v >= 100 || v == 0 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
