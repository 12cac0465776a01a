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
	round func() error // sends and waits
	end   func()       // makes a round under way fail
	stop  chan struct{}
	done  chan struct{}

	mu    sync.Mutex
	times []time.Duration // guarded by mu
	err   error           // guarded by mu
}

// probeConn begins to probe through nc, which leads to an echo, and owns it.
func probeConn(nc net.Conn) *Probe {
	buf := make([]byte, 64)
	return startProbe(func() error {
		_ = nc.SetDeadline(time.Now().Add(patience)) // a broken one fails below
		if _, err := nc.Write(buf); err != nil {
			return err
		}
		_, err := io.ReadFull(nc, buf)
		return err
	}, func() { _ = nc.Close() })
}

func startProbe(round func() error, end func()) *Probe {
	p := &Probe{round: round, end: end, stop: make(chan struct{}), done: make(chan struct{})}
	go p.loop() // ends with Stop, which waits for it
	return p
}

func (p *Probe) loop() {
	defer close(p.done)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		start := time.Now()
		err := p.round()
		p.mu.Lock()
		p.times = append(p.times, time.Since(start))
		p.err = err
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Rounds are the round trips of a probe.
type Rounds struct {
	P50, P99 time.Duration
	N        int
	Err      error // what has ended the probe
}

// Take returns the round trips since it was called last.
func (p *Probe) Take() (r Rounds) {
	p.mu.Lock()
	defer p.mu.Unlock()
	times := p.times
	p.times = nil
	r.Err, r.N = p.err, len(times)
	if r.N > 0 {
		slices.Sort(times)
		r.P50, r.P99 = times[r.N/2], times[r.N*99/100]
	}
	return r
}

// Stop ends the probe.
func (p *Probe) Stop() {
	close(p.stop)
	p.end()
	<-p.done
}
