package main

import (
	"context"
	"time"

	"culvert/bench/load"
)

// takeBulk measures throughput down and up with one and with eight streams, and what the proxies' processors spend on
// all four runs together.
func takeBulk(ctx context.Context, s *site, r *running, size *size) (values, error) {
	list, err := load.AllWays(ctx, s.target, r.entry, &r.Group, size.warm, size.bulk)
	if err != nil {
		return nil, err
	}
	v := make(values)
	var cpu time.Duration
	var moved int64
	for _, c := range list {
		v[c.Way.Name+"_mb_s"] = c.PerSecond() / megabyte
		v[c.Way.Name+"_mb_s_cpu"] = c.Spent().Seconds() / c.Took.Seconds()
		moved += c.Bytes
		cpu += c.Spent()
	}
	v[colCPU] = cpu.Seconds() / (float64(moved) / gigabyte)
	return v, nil
}
