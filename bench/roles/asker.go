package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"culvert/bench/load"
)

const (
	// askEvery is how often an asker asks: 50 times a second.
	askEvery = 20 * time.Millisecond
	// askPatience is how long it waits for one answer.
	askPatience = 2 * time.Second
)

// asker opens a flow over and over, whether the ones before have been answered or not, and notes when answers came.
type asker struct {
	stopped chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	good    []time.Time // when answers came, guarded by mu
	asked   int         // guarded by mu
	end     time.Time   // set by stop
}

// startAsker asks at addr until stop.
func startAsker(addr string) *asker {
	a := &asker{stopped: make(chan struct{})}
	a.done.Go(func() { // until stop, which waits
		tick := time.NewTicker(askEvery)
		defer tick.Stop()
		for {
			a.done.Go(func() { a.once(addr) }) // askPatience at most; stop waits
			select {
			case <-tick.C:
			case <-a.stopped:
				return
			}
		}
	})
	return a
}

func (a *asker) once(addr string) {
	deadline := time.Now().Add(askPatience)
	c, err := load.Dial(addr, 0)
	if err == nil {
		err = load.UseOnce(c, deadline)
		_ = c.Close()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	if err == nil {
		a.good = append(a.good, time.Now())
	}
}

// stop ends it. It is called once.
func (a *asker) stop() {
	a.end = time.Now()
	close(a.stopped)
	a.done.Wait()
}

// answers is how many there were since.
func (a *asker) answers(since time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.good {
		if t.After(since) {
			n++
		}
	}
	return n
}

// gap is the longest time without an answer from since until stop was called, which has to be before.
func (a *asker) gap(since time.Time) time.Duration {
	var longest time.Duration
	last := since
	for _, t := range slices.SortedFunc(slices.Values(a.good), time.Time.Compare) {
		if t.After(since) {
			longest = max(longest, t.Sub(last))
			last = t
		}
	}
	return max(longest, a.end.Sub(last))
}

// recovered waits until answers come as fast as questions again, at least for a second, and no longer than most.
func (a *asker) recovered(ctx context.Context, most time.Duration) error {
	const whole = int(time.Second/askEvery) * 9 / 10
	for deadline := time.Now().Add(most); time.Now().Before(deadline) && a.answers(time.Now().Add(-time.Second)) < whole; {
		if err := load.Pause(ctx, askEvery); err != nil {
			return err
		}
	}
	return nil
}
