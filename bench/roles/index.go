package main

import (
	"context"
	"fmt"

	"culvert/bench/goals"
)

// The Go benchmark of the routes' index, by what a flow is found by, or not at all.
var indexKinds = []string{"host", "path", "none"}

// takeIndex runs the benchmark that finds the route of a flow among few and among many.
func takeIndex(ctx context.Context, _ *site, _ *size) (values, error) {
	found := make(goals.Benchmarks)
	if err := found.Run(ctx, "-run", "^$", "-bench", "^BenchmarkRoutes$/^(host|path|none)$/^(10|10000)$", "-benchtime", "200ms", "-count", "5", "./tunnel"); err != nil {
		return nil, err
	}
	v := make(values)
	for _, kind := range indexKinds {
		for _, n := range []int{10, 10_000} {
			ns, err := found.Median(fmt.Sprintf("BenchmarkRoutes/%s/%d ns/op", kind, n))
			if err != nil {
				return v, err
			}
			v[lookup(kind, n)] = ns
		}
	}
	return v, nil
}

// lookup is the name of a value, and lookups those of all kinds.
func lookup(kind string, n int) string {
	return fmt.Sprintf("route's look-up by %s, ns, %d routes", kind, n)
}

func lookups(n int) (names []string) {
	for _, kind := range indexKinds {
		names = append(names, lookup(kind, n))
	}
	return names
}
