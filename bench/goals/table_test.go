package goals

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var table Table
	table.Add("streams", 1234.5)
	table.Goal(Goal{What: "at least", Value: 1.5, Bound: 1.5, Least: true})
	table.Goal(Goal{What: "at most", Value: 41, Bound: 40, Unit: " KB"})
	table.Goal(Goal{What: "nothing", Bound: 2, Unit: " s", Missing: "no nft"})
	text := table.Markdown()
	for _, want := range []string{
		"\n| streams | 1234 |",
		"\n| at least | ≥ 1.50 | 1.50 | reached |",
		"\n| at most | ≤ 40 KB | 41 KB | **missed** |",
		"\n| nothing | ≤ 2 s | – | not measured: no nft |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestMedianAndRatio(t *testing.T) {
	for _, one := range []struct {
		list []float64
		want float64
	}{{nil, 0}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1}, 2.5}} {
		if got := Median(one.list); got != one.want {
			t.Errorf("Median(%v) = %v, want %v", one.list, got, one.want)
		}
	}
	// The rounds are compared one by one, and a round that one of both lacks does not count.
	if got := Ratio([]float64{10, 30, 20, 9}, []float64{10, 10, 10}); got != 2 {
		t.Errorf("Ratio = %v, want 2", got)
	}
}

func TestBenchmarks(t *testing.T) {
	found := make(Benchmarks)
	found.Read(`goos: linux
BenchmarkRoute/routes=10-2         	 1000000	       100.5 ns/op	       0 B/op
BenchmarkRoute/routes=10-2         	 1000000	       300 ns/op	       0 B/op
BenchmarkRoute/routes=10-2         	 1000000	       200 ns/op	       0 B/op
=== RUN   TestSmall
    small_test.go:12: 150 bytes a rule
PASS
`)
	for key, want := range map[string]float64{"BenchmarkRoute/routes=10 ns/op": 200, "TestSmall bytes a rule": 150} {
		if got, err := found.Median(key); got != want || err != nil {
			t.Errorf("Median(%q) = %v, %v, want %v", key, got, err, want)
		}
	}
	if got, err := found.Median("BenchmarkOther ns/op"); err == nil {
		t.Errorf("Median of nothing = %v, want an error", got)
	}
}
