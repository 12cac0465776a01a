package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"culvert/bench/load"
)

const (
	// idlePatience bounds the opening of all idle streams: a pair that is slower than this counts as unable to.
	idlePatience = 45 * time.Second
	// idleTries is how often one stream is tried: an entry's backlog may be short.
	idleTries = 3
)

// takeIdle opens many streams, uses each for a byte each way, leaves them alone, and measures by how much the
// resident memory of the proxies has grown, for each stream.
func takeIdle(ctx context.Context, s *site, r *running, size *size) (values, error) {
	if err := load.OpenOnce(r.entry, 1); err != nil {
		return nil, err
	}
	before, err := s.settled(ctx, r)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	conns, err := hold(ctx, r.entry, size.idle)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("%d of %d streams opened in %v: %w", len(conns), size.idle, time.Since(begin).Round(time.Second), err)
	}
	opened := time.Since(begin)
	if err := load.Pause(ctx, size.settled); err != nil {
		return nil, err
	}
	after, err := r.Usage()
	if err != nil {
		return nil, err
	}
	if err := stillOpen(conns); err != nil {
		return nil, err
	}
	grown := float64(after.ResidentBytes - before.ResidentBytes)
	return values{colIdle: grown / float64(size.idle) / kilobyte, colIdleOpen: opened.Seconds()}, nil
}

// hold opens n streams and returns them, also if not all could be opened.
func hold(ctx context.Context, addr string, n int) ([]*net.TCPConn, error) {
	deadline := time.Now().Add(idlePatience)
	var mu sync.Mutex
	var conns []*net.TCPConn
	var failed error
	var next atomic.Int64
	var workers sync.WaitGroup
	for range openWorkers {
		workers.Go(func() { // until all are open or one cannot be; Wait below
			for {
				i := int(next.Add(1))
				if i > n {
					return
				}
				c, err := holdOne(ctx, addr, 1+i%openWorkers, deadline)
				mu.Lock()
				if err == nil {
					conns = append(conns, c)
				} else if failed == nil {
					failed = err
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	workers.Wait()
	return conns, failed
}

// holdOne opens one stream, and tries again if it was refused.
func holdOne(ctx context.Context, addr string, source int, deadline time.Time) (*net.TCPConn, error) {
	for try := 1; ; try++ {
		c, err := load.Dial(addr, source)
		if err == nil {
			if err = load.UseOnce(c, deadline); err == nil {
				return c, nil
			}
			_ = c.Close()
		}
		if try == idleTries || time.Now().After(deadline) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// stillOpen looks at a stream in every hundred: a byte must still go there and back.
func stillOpen(conns []*net.TCPConn) error {
	for i := 0; i < len(conns); i += 100 {
		if err := load.SendOne(conns[i], time.Now().Add(load.OpenPatience)); err != nil {
			return fmt.Errorf("a stream that was idle is dead: %w", err)
		}
	}
	return nil
}
