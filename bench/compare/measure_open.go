package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"culvert/bench/load"
	"culvert/bench/proc"
)

const (
	// openWorkers open streams at the same time, each one after another.
	openWorkers = 16
	// openSettled is what proxies have to clear up before their processor time is read again.
	openSettled = 300 * time.Millisecond
)

// takeOpens measures how many streams a second can be opened, used for a byte each way, and closed.
func takeOpens(ctx context.Context, s *site, r *running, size *size) (values, error) {
	if err := load.OpenOnce(r.entry, 1); err != nil {
		return nil, err
	}
	before, err := r.Usage()
	if err != nil {
		return nil, err
	}
	var opened, failed atomic.Int64
	start := time.Now()
	var workers sync.WaitGroup
	for i := range openWorkers {
		workers.Go(func() { // ends with the time; Wait below
			for time.Since(start) < size.opens && ctx.Err() == nil {
				if err := load.OpenOnce(r.entry, 1+i); err != nil {
					failed.Add(1)
					_ = load.Pause(ctx, proc.Poll) // a refusal is quick; it shall not become a flood
				} else {
					opened.Add(1)
				}
			}
		})
	}
	workers.Wait()
	took := time.Since(start)
	after, err := s.settled(ctx, r)
	if err != nil {
		return nil, err
	}
	n := float64(opened.Load())
	if n == 0 {
		return nil, errors.New("no stream could be opened")
	}
	return values{
		colOpens:      n / took.Seconds(),
		colOpenCPU:    float64(after.CPU-before.CPU) / n / microsecond,
		colOpenErrors: float64(failed.Load()),
	}, nil
}

// settled waits until the proxies have cleared up after streams that have ended, and returns what they use.
func (s *site) settled(ctx context.Context, r *running) (proc.Usage, error) {
	if err := s.target.Quiet(ctx); err != nil {
		return proc.Usage{}, err
	}
	if err := load.Pause(ctx, openSettled); err != nil {
		return proc.Usage{}, err
	}
	return r.Usage()
}
