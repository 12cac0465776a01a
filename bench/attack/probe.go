package attack

import (
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// probeEvery is the pace of a probe.
const probeEvery = 2 * time.Millisecond

// Probe is an innocent flow beside an attack: it sends 64 bytes every two milliseconds and waits for their
// echo.
type Probe struct {
	nc   net.Conn
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	times []time.Duration
	err   error
}

// StartProbe begins to probe through nc, which leads to an echo, and owns it.
func StartProbe(nc net.Conn) *Probe {
	p := &Probe{nc: nc, stop: make(chan struct{}), done: make(chan struct{})}
	go p.loop() // ends with Stop, which waits for it
	return p
}

func (p *Probe) loop() {
	defer close(p.done)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	buf := make([]byte, 64)
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		_ = p.nc.SetDeadline(time.Now().Add(patience)) // a broken one fails below
		start := time.Now()
		_, err := p.nc.Write(buf)
		if err == nil {
			_, err = io.ReadFull(p.nc, buf)
		}
		p.mu.Lock()
		p.times = append(p.times, time.Since(start))
		p.err = err
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Take returns the median and the 99th percentile of the round trips since it was called last, how many
// there were, and the error that has ended the probe.
func (p *Probe) Take() (p50, p99 time.Duration, n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	times := p.times
	p.times = nil
	if len(times) == 0 {
		return 0, 0, 0, p.err
	}
	slices.Sort(times)
	return times[len(times)/2], times[len(times)*99/100], len(times), p.err
}

// Stop ends the probe.
func (p *Probe) Stop() {
	close(p.stop)
	_ = p.nc.Close()
	<-p.done
}
