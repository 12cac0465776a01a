package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// Pacing of the garbage collector.
const (
	// paceHeap is how large the heap may become between two collections while garbage comes fast, if less of it is in use. The
	// collector would begin at twice of what is in use, which with the few MiB of a gateway is dozens of times a second. More would
	// leave what stays, such as connections, scattered over more pages: 64 MiB cost 8 KB for each of 1,000 agents.
	paceHeap = 32 << 20
	// paceShare of the process budget is the most that it may be.
	paceShare = 16
	// paceOften is how soon after the last one a collection comes while garbage comes fast, and paceAfter for how long that must
	// have been so.
	paceOften = 100 * time.Millisecond
	paceAfter = 50 * time.Millisecond
	// paceQuiet is how long there must be no collection for that to be over; then what is free is given back.
	paceQuiet = 4 * time.Second
	// paceDefault is the percentage that the collector has else.
	paceDefault = 100
)

// pacer lets the heap become larger while garbage comes fast, and makes it small again after. It sleeps while nothing is collected.
type pacer struct {
	heap uint64 // immutable

	mu      sync.Mutex
	last    time.Time   // of the last collection; guarded by mu
	since   time.Time   // of the first one of those that come often; guarded by mu
	percent int         // guarded by mu
	quiet   *time.Timer // runs while percent is not paceDefault; guarded by mu
}

// paceMemory paces the collector within a budget for the process. A GOGC in the environment was meant, so it stays.
func paceMemory(total int64) {
	if os.Getenv("GOGC") != "" {
		return
	}
	p := &pacer{heap: uint64(min(paceHeap, total/paceShare)), percent: paceDefault}
	p.arm()
}

// arm has the next collection noticed, which finds that nobody holds the mark any more.
func (p *pacer) arm() {
	mark := new(*pacer) // a pointer inside, so that it is an allocation of its own
	runtime.AddCleanup(mark, func(p *pacer) {
		p.collected()
		p.arm()
	}, p)
}

// collected looks after a collection whether they come often.
func (p *pacer) collected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.last) > paceOften {
		p.since = now
	}
	p.last = now
	if p.percent == paceDefault && now.Sub(p.since) < paceAfter {
		return
	}
	percent := p.wanted()
	if percent < p.percent*3/4 || percent > p.percent*5/4 || percent == paceDefault && p.percent != paceDefault { // it stops the world for a moment
		p.percent = percent
		debug.SetGCPercent(percent)
	}
	switch {
	case p.percent == paceDefault:
	case p.quiet == nil:
		p.quiet = time.AfterFunc(paceQuiet, p.calm)
	default:
		p.quiet.Reset(paceQuiet)
	}
}

// wanted is the percentage with which the heap may become as large as it may be. It is of what is in use and of what else is looked
// through: stacks and globals.
func (p *pacer) wanted() int {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(s)
	live := s[0].Value.Uint64()
	if live >= p.heap/2 {
		return paceDefault
	}
	return max(paceDefault, int((p.heap-live)*100/max(1<<20, live+s[1].Value.Uint64()+s[2].Value.Uint64())))
}

// calm gives back what a time with much to do has left.
func (p *pacer) calm() {
	p.mu.Lock()
	if time.Since(p.last) < paceQuiet {
		p.quiet.Reset(paceQuiet)
		p.mu.Unlock()
		return
	}
	p.percent = paceDefault
	debug.SetGCPercent(paceDefault)
	p.mu.Unlock()
	debug.FreeOSMemory()
}
