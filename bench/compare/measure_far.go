package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"culvert/bench/load"
)

const (
	// farDelay and farRate are the road of the measure "far": 100 ms there and back, 50 MB/s.
	farDelay = 50 * time.Millisecond
	farRate  = 50 * megabyte
	// farOpens is how many streams are opened, one after another, to see how long the first byte takes.
	farOpens = 5
)

// takeFar measures a pair whose proxies are far from each other: the time from the client's connect until its first
// byte has come back, and what one stream carries to the client when it has found its pace.
func takeFar(ctx context.Context, s *site, r *running, size *size) (values, error) {
	var times []time.Duration
	for range farOpens {
		start := time.Now()
		if err := load.OpenOnce(r.entry, 0); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	slices.Sort(times)
	b, err := load.Start(s.target, r.entry, load.Way{Streams: 1})
	if err != nil {
		return nil, err
	}
	c, err := b.Count(ctx, &r.Group, size.farWarm, size.far)
	b.Stop()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", colFar, err)
	}
	return values{colFar: c.PerSecond() / megabyte, colFarFirst: quantile(times, 0.5) / millisecond}, nil
}
