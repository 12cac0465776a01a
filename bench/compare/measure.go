package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// size says how long things are measured.
type size struct {
	warm    time.Duration // before bytes are counted
	bulk    time.Duration // each of the four bulk runs
	ping    time.Duration // round trips
	beside  time.Duration // round trips beside a bulk stream
	opens   time.Duration
	idle    int           // streams that are held open
	settled time.Duration // after the last of them
	farWarm time.Duration // until a stream has found its pace on a long road
	far     time.Duration
	rest    time.Duration // between measures, for the proxies to finish what was cut off
}

var (
	full = size{
		warm: 500 * time.Millisecond, bulk: 2 * time.Second, ping: 2 * time.Second, beside: 3 * time.Second,
		opens: 3 * time.Second, idle: 9000, settled: 10 * time.Second,
		farWarm: 6 * time.Second, far: 5 * time.Second, rest: 300 * time.Millisecond,
	}
	small = size{
		warm: 50 * time.Millisecond, bulk: 200 * time.Millisecond, ping: 200 * time.Millisecond, beside: 200 * time.Millisecond,
		opens: 200 * time.Millisecond, idle: 50, settled: 100 * time.Millisecond,
		farWarm: 200 * time.Millisecond, far: 300 * time.Millisecond, rest: 50 * time.Millisecond,
	}
)

// values are what a pair reached in one round, by column.
type values map[string]float64

// measure is something that is taken of a running pair.
type measure struct {
	name    string // as -measures has it
	take    func(ctx context.Context, s *site, r *running, size *size) (values, error)
	fresh   bool // needs a pair that has carried nothing yet
	far     bool // needs one whose proxies are far from each other
	proxies bool // says nothing about a direct connection
	most    int  // rounds it is taken in, 0 for all
}

// measures lists what can be measured, in the order it is taken.
var measures = []*measure{
	{name: "rtt", take: takeRoundTrip},
	{name: "bulk", take: takeBulk},
	{name: "beside", take: takeBeside},
	{name: "opens", take: takeOpens},
	{name: "idle", take: takeIdle, fresh: true, proxies: true, most: 2},
	{name: "far", take: takeFar, fresh: true, far: true, most: 2},
}

func measureNames() string {
	var names []string
	for _, m := range measures {
		names = append(names, m.name)
	}
	return strings.Join(names, ", ")
}

// The columns, as results.json names them.
const (
	colDown1, colDown8   = "down_1_mb_s", "down_8_mb_s"
	colUp1, colUp8       = "up_1_mb_s", "up_8_mb_s"
	colCPU               = "cpu_s_per_gb"
	colRTT50, colRTT99   = "rtt_p50_us", "rtt_p99_us"
	colBeside99          = "beside_p99_ms"
	colOpens, colOpenCPU = "opens_per_s", "cpu_per_open_us"
	colOpenErrors        = "open_errors"
	colIdle, colIdleOpen = "idle_kb_per_stream", "idle_open_s"
	colFar, colFarFirst  = "far_mb_s", "far_first_byte_ms"
	colBesideCount       = "beside_count"
	kilobyte             = 1e3
	megabyte, gigabyte   = 1e6, 1e9
	microsecond          = float64(time.Microsecond)
	millisecond          = float64(time.Millisecond)
)

// String renders the values for a progress line.
func (v values) String() string {
	var parts []string
	for _, c := range slices.Sorted(maps.Keys(v)) {
		parts = append(parts, fmt.Sprintf("%s=%.4g", c, v[c]))
	}
	return strings.Join(parts, " ")
}
