package main

import (
	"context"
	"io"
	"net"
	"slices"
	"time"

	"culvert/bench/load"
)

// pingPatience bounds one message there and back.
const pingPatience = 20 * time.Second

// takeRoundTrip measures how long a message of 64 bytes takes there and back when nothing else happens.
func takeRoundTrip(ctx context.Context, _ *site, r *running, size *size) (values, error) {
	times, err := ping(ctx, r.entry, size.warm, size.ping)
	if err != nil {
		return nil, err
	}
	return values{colRTT50: quantile(times, 0.50) / microsecond, colRTT99: quantile(times, 0.99) / microsecond}, nil
}

// takeBeside measures the same beside one stream that carries as much as it can to the client.
func takeBeside(ctx context.Context, s *site, r *running, size *size) (values, error) {
	b, err := load.Start(s.target, r.entry, load.Way{Streams: 1})
	if err != nil {
		return nil, err
	}
	defer b.Stop()
	if err := b.Arrives(ctx, 0); err != nil {
		return nil, err
	}
	times, err := ping(ctx, r.entry, size.warm, size.beside)
	if err != nil {
		return nil, err
	}
	if err := b.Fault(); err != nil {
		return nil, err
	}
	return values{colBeside99: quantile(times, 0.99) / millisecond, colBesideCount: float64(len(times))}, nil
}

// ping sends messages one after another on one stream, and returns the times of those after warm, in order of length.
func ping(ctx context.Context, addr string, warm, d time.Duration) ([]time.Duration, error) {
	c, err := load.Dial(addr, 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write([]byte{load.AskEcho}); err != nil {
		return nil, err
	}
	var times []time.Duration
	message := make([]byte, load.MessageBytes)
	for begin := time.Now(); ; {
		start := time.Now()
		if start.Sub(begin) > warm+d && len(times) > 0 || ctx.Err() != nil {
			break
		}
		if err := pingOnce(c, message); err != nil {
			return nil, err
		}
		if start.Sub(begin) > warm {
			times = append(times, time.Since(start))
		}
	}
	slices.Sort(times)
	return times, ctx.Err()
}

func pingOnce(c net.Conn, message []byte) error {
	if err := c.SetDeadline(time.Now().Add(pingPatience)); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, message)
	return err
}

// quantile is the value below which the share q of sorted times lies.
func quantile(sorted []time.Duration, q float64) float64 {
	i := min(int(q*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[i])
}
