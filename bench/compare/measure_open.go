package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// openWorkers open streams at the same time, each one after another.
	openWorkers = 16
	// openPatience bounds one of them.
	openPatience = 20 * time.Second
	// openSettled is what proxies have to clear up before their processor time is read again.
	openSettled = 300 * time.Millisecond
)

// takeOpens measures how many streams a second can be opened, used for a byte each way, and closed.
func takeOpens(ctx context.Context, s *site, r *running, size *size) (values, error) {
	if err := openOnce(r.entry, 1); err != nil {
		return nil, err
	}
	before, err := r.usage()
	if err != nil {
		return nil, err
	}
	var opened, failed atomic.Int64
	start := time.Now()
	var workers sync.WaitGroup
	for i := range openWorkers {
		workers.Go(func() { // ends with the time; Wait below
			for time.Since(start) < size.opens && ctx.Err() == nil {
				if err := openOnce(r.entry, 1+i); err != nil {
					failed.Add(1)
					_ = pause(ctx, startPoll) // a refusal is quick; it shall not become a flood
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
		colOpenCPU:    float64(after.cpu-before.cpu) / n / microsecond,
		colOpenErrors: float64(failed.Load()),
	}, nil
}

// settled waits until the proxies have cleared up after streams that have ended, and returns what they use.
func (s *site) settled(ctx context.Context, r *running) (usage, error) {
	if err := s.target.quiet(ctx); err != nil {
		return usage{}, err
	}
	if err := pause(ctx, openSettled); err != nil {
		return usage{}, err
	}
	return r.usage()
}

// openOnce opens a stream from a source address, and closes it after a byte each way.
func openOnce(addr string, source int) error {
	c, err := dialFrom(addr, source)
	if err != nil {
		return err
	}
	defer c.Close()
	return useOnce(c, time.Now().Add(openPatience))
}

// useOnce asks for an echo on a new stream, and sends a byte there and back.
func useOnce(c net.Conn, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	return exchange(c, askEcho, 'x')
}

// sendOne sends another byte there and back.
func sendOne(c net.Conn, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	return exchange(c, 'y')
}

// exchange sends bytes and waits for the last of them to come back.
func exchange(c net.Conn, send ...byte) error {
	if _, err := c.Write(send); err != nil {
		return err
	}
	var got [1]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return err
	}
	if want := send[len(send)-1]; got[0] != want {
		return fmt.Errorf("%q came back, not %q", got[0], want)
	}
	return nil
}
