package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/bench/proc"
)

// example is three rounds of three pairs with figures that are easy to check.
func example() *results {
	r := &results{Date: "2026-01-02", Command: "compare -rounds 3", Absent: map[string]string{sshName: "no sshd"}}
	for round, down := range []float64{100, 400, 300} {
		r.Rounds = append(r.Rounds,
			result{Round: round + 1, Pair: culvertName, Values: values{colDown1: down, colUp1: 300, colIdle: 11, colOpens: 16}},
			result{Round: round + 1, Pair: tlsRelayName, Values: values{colDown1: 250, colUp1: 300, colOpens: 10}},
			result{Round: round + 1, Pair: netHTTP2Name, Values: values{colOpens: 10}},
			result{Round: round + 1, Pair: directName, Values: values{colDown1: 1000, colCPU: 0}},
		)
	}
	r.Rounds[2].Faults = map[string]string{"idle": "4 of 9 streams opened\nand the log"}
	return r
}

func TestMedian(t *testing.T) {
	r := example()
	if x, ok := r.median(culvertName, colDown1); x != 300 || !ok {
		t.Errorf("median of 100, 400, 300 = %v, %v, want 300", x, ok)
	}
	r.Rounds = r.Rounds[:8] // two rounds
	if x, ok := r.median(culvertName, colDown1); x != 250 || !ok {
		t.Errorf("median of 100, 400 = %v, %v, want 250", x, ok)
	}
	if x, ok := r.median(tlsRelayName, colIdle); ok {
		t.Errorf("median of nothing = %v, want none", x)
	}
}

// TestBusyMachine wants a warning where other work ran, and none where nothing did.
func TestBusyMachine(t *testing.T) {
	for load, busy := range map[string]bool{"0.20 9 9": false, "1.90 0 0": true, "": false} {
		r := example()
		r.Machine = proc.Machine{Cores: 2, Load: load}
		if got := strings.Contains(r.markdown(), proc.BusyWarning); got != busy {
			t.Errorf("load %q on two cores: warning %v, want %v", load, got, busy)
		}
	}
}

func TestMarkdown(t *testing.T) {
	text := example().markdown()
	for _, want := range []string{
		"\n| Culvert | 300 (1.20) | 300 (1.00) | – |",
		"\n| TLS relay | 250 | 300 | – |",
		"\n| OpenSSH | – |",
		"\n| direct | 1000 (4.00) | – |",
		"OpenSSH was not measured: no sshd.",
		"x/net/http2 failed 1 × in `idle`: 4 of 9 streams opened.",
		"\n| one stream, down and up, MB/s | ≥ 1.15 × TLS relay | 1.20 ×, 1.00 × | **missed** |",
		"\n| streams opened and closed a second | ≥ 1.60 × x/net/http2 | 1.60 × | reached |",
		"\n| memory of an idle stream | ≤ 12 KB | 11.0 KB | reached |",
		"\n| processor seconds per GB | ≤ 0.92 × TLS relay | – | not measured |",
		"Rounds: 3.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	columns := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| ") {
			columns = 0
			continue
		}
		if n := strings.Count(line, "|"); columns == 0 {
			columns = n
		} else if n != columns {
			t.Errorf("%d columns, want %d: %s", n, columns, line)
		}
	}
}

func TestQuantile(t *testing.T) {
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(i))
	}
	for q, want := range map[float64]float64{0: 0, 0.5: 50, 0.99: 99, 1: 99} {
		if got := quantile(times, q); got != want {
			t.Errorf("quantile %v of 0 to 99 = %v, want %v", q, got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-pairs", "direct, culvert", "-measures", "rtt", "-rounds", "2"})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.pairs) != 2 || o.pairs[0].name != culvertName || o.pairs[1].name != directName || o.rounds != 2 || len(o.measures) != 1 {
		t.Errorf("options = %v, want Culvert and direct, one measure, two rounds", o)
	}
	for _, args := range [][]string{{"-pairs", "nobody"}, {"-measures", "love"}, {"more"}, {"-rounds", "0"}} {
		if o, err := parseOptions(args); err == nil {
			t.Errorf("parseOptions(%q) = %v, want an error", args, o)
		}
	}
	if names := measureNames(); !slices.Contains(strings.Split(names, ", "), "bulk") {
		t.Errorf("measures are %s, want bulk among them", names)
	}
}
