package main

import (
	"context"

	"culvert/bench/goals"
)

// The benchmark of the routes' index, and how often it runs.
const (
	indexFew, indexMany = "BenchmarkRouteIndex/routes=10 ns/op", "BenchmarkRouteIndex/routes=10000 ns/op"
	indexRuns           = "5"
)

// takeIndex runs the Go benchmark that finds a request's route among few and among many.
func takeIndex(ctx context.Context, _ *site, _ *size) (values, error) {
	found := make(goals.Benchmarks)
	if err := found.Run(ctx, "-run", "^$", "-bench", "^BenchmarkRouteIndex$", "-count", indexRuns, "./tunnel"); err != nil {
		return nil, err
	}
	few, err := found.Median(indexFew)
	if err != nil {
		return nil, err
	}
	many, err := found.Median(indexMany)
	return values{indexFew: few, indexMany: many}, err
}
