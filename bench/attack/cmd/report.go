package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"culvert/bench/attack"
	"culvert/bench/proc"
)

// What is to be reached, one attacking connection at full speed on two cores.
const (
	goalP99   = 15 * time.Millisecond
	goalCores = 0.10
	goalGrown = 16 << 20
)

// report prints the tables and collects what missed its goal.
type report struct {
	to     io.Writer
	missed []string
}

func (r *report) intro(each time.Duration) {
	fmt.Fprintf(r.to, `# Attacks

<!-- Written by: make attack -->

Every attack that [SECURITY.md](../SECURITY.md) promises a bound for, played at full speed for %v by one offender that
connects again whenever it is thrown out, on gateway processes of their own. Beside it a probe sends 64 bytes every 2 ms
through the same gateway on another connection and waits for their echo. The attacks are in `+"`bench/attack`"+`; its tests
play each once and check the codes, the counts and that nothing is left.

- command: `+"`make attack`"+`
- machine: %s, %d cores, %s/%s, %s, shared with the offender and the probe; load when this began: %s
- date: %s

| column | means |
|---|---|
| ended | GOAWAY codes, and how many of the offender's connections ended so; "open": the gateway let it live |
| offences/s | what the offender has written, whether or not the gateway still read it |
| per connection | offences, RST_STREAM frames that came back, and connections that the gateway made for it |
| cores | CPU of the gateway beyond what the probe alone costs; to reach: %.2f |
| memory | resident memory at its most, beyond that before; to reach: 16 MiB |
| files | descriptors still held three seconds later; to reach: 0 |
| probe | median and 99th percentile; to reach: %v and no error |
| direct | 99th percentile of the same probe without a gateway, at the same time: what the machine adds by itself |

After an offence the gateway holds the socket for a second without reading, which is why an offender gets no further
than about one connection a second. What missed its goal is set in bold.
`, each, cmp.Or(proc.Processor(), "unknown processor"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), load(), time.Now().UTC().Format(time.DateOnly), goalCores, goalP99)
}

// load is how many tasks wanted a core in the last minute, where the system tells.
func load() string {
	first, _, _ := strings.Cut(proc.Line("/proc/loadavg"), " ")
	return cmp.Or(first, "unknown")
}

func (r *report) table(title, dials string) {
	fmt.Fprintf(r.to, "\n## %s\n\n| row | attack | ended | offences/s | per connection: offences | resets | %s | cores | memory, MiB | files | probe p50, ms | p99, ms | errors | direct p99, ms |\n", title, dials)
	fmt.Fprintln(r.to, "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
}

// row prints what an attack came to, and holds it against the goals.
func (r *report) row(a *attack.Result) { r.print(a, goalGrown) }

// unbound is row for an attack whose memory the process budget bounds.
func (r *report) unbound(a *attack.Result) { r.print(a, 1<<62) }

func (r *report) print(a *attack.Result, grown float64) {
	if a == nil {
		return // it was not to be played
	}
	row := "-"
	if a.Row > 0 {
		row = fmt.Sprint(a.Row)
	}
	conns := float64(max(a.Conns, 1))
	fmt.Fprintf(r.to, "| %s | %s | %s | %.0f | %.0f | %.0f | %.1f | %s | %s | %s |", row, a.Name, ends(a), float64(a.Offences)/a.Seconds,
		float64(a.Offences)/conns, float64(a.Resets)/conns, a.Dials/conns,
		r.goal(a, a.Cores <= goalCores, "%.2f", a.Cores), r.goal(a, a.Grown <= grown, "%.1f", a.Grown/(1<<20)), r.goal(a, a.Left == 0, "%.0f", a.Left))
	r.probe(a, &a.Probe)
	if a.Beside != nil {
		fmt.Fprintf(r.to, "| | … a tunnel on the offender's own connection | | | | | | | | |")
		r.probe(a, a.Beside)
	}
}

func (r *report) probe(a *attack.Result, p *attack.Rounds) {
	errors := "0"
	if p.Err != nil {
		errors = r.goal(a, false, "%v", p.Err)
	}
	fmt.Fprintf(r.to, " %.2f | %s | %s | %.1f |\n", ms(p.P50), r.goal(a, p.P99 <= goalP99, "%.1f", ms(p.P99)), errors, ms(a.Direct.P99))
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// goal formats a figure, in bold where it missed its goal.
func (r *report) goal(a *attack.Result, reached bool, format string, value any) string {
	text := fmt.Sprintf(format, value)
	if reached || a.Row == 0 { // what the others are compared with
		return text
	}
	if !slices.Contains(r.missed, a.Name) {
		r.missed = append(r.missed, a.Name)
	}
	return "**" + text + "**"
}

func ends(a *attack.Result) string {
	var list []string
	for _, code := range slices.Sorted(maps.Keys(a.Ends)) {
		list = append(list, fmt.Sprintf("%v %d", code, a.Ends[code]))
	}
	if a.Open > 0 {
		list = append(list, fmt.Sprintf("open %d", a.Open))
	}
	return strings.Join(list, ", ")
}

func (r *report) end() {
	if len(r.missed) == 0 {
		fmt.Fprintln(r.to, "\nEvery goal was reached.")
		return
	}
	fmt.Fprintf(r.to, "\nGoals missed by: %s.\n", strings.Join(r.missed, "; "))
}
