package tunnel

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// phase is a part of the time that goes by until a flow stands.
type phase uint8

const (
	phaseQueue  phase = iota // for a connection that somebody else is making, or for room on one
	phaseAsk                 // for authorizers
	phaseDNS                 // for the addresses of the destination
	phaseDial                // for a connection to the destination or to a hop, whose name is resolved in it
	phaseTLS                 // for the handshake on that
	phaseAnswer              // for the hop's answer; what it takes there, and behind, is in it
	phaseOpen                // all of it, and what is in no other: from acceptance until the flow stands
	numPhases
)

// phaseNames are the keys of records and the labels of metrics.
var phaseNames = [numPhases]string{"queue", "ask", "dns", "dial", "tls", "answer", "open"}

// phaseFirst names what comes after: from when a flow stands until the first byte of the destination has gone on to its peer.
const phaseFirst = "first_byte"

// timing is where the time of a flow went, each phase in microseconds, of which an hour has room. It is owned by who opens
// the flow. A nil one keeps nothing.
type timing [numPhases]uint32

// micros is a time in the unit of a timing.
func micros(d time.Duration) uint32 {
	return uint32(min(max(d, 0)/time.Microsecond, 1<<32-1))
}

// add notes that a phase has taken d, besides what it took before.
func (t *timing) add(p phase, d time.Duration) {
	if t != nil {
		t[p] += micros(d)
	}
}

// since is add of what has gone by since then.
func (t *timing) since(p phase, then time.Time) {
	if t != nil {
		t.add(p, time.Since(then))
	}
}

// wait notes a wait for a connection that took d. It has ended together with the dial, so what made tells is the end of it,
// and the rest was spent on what others had begun before.
func (t *timing) wait(d time.Duration, made *timing) {
	if t == nil {
		return
	}
	left := micros(d)
	for _, p := range []phase{phaseTLS, phaseDial} {
		part := min(left, made[p])
		t[p] += part
		left -= part
	}
	t[phaseQueue] += left
}

// get returns a phase as a duration.
func (t *timing) get(p phase) time.Duration { return time.Duration(t[p]) * time.Microsecond }

// opened notes when the opening has ended, for err if that is not nil, and counts its phases.
func (f *Flow) opened(err error) {
	if err == nil {
		f.times.since(phaseOpen, f.started)
	}
	for p := range numPhases {
		if d := f.times.get(p); d > 0 {
			f.g.stats.phases[p].observe(d)
		}
	}
}

// moved counts n bytes that have gone on. The first of those that come back are noted.
func (d *direction) moved(n int) {
	if n > 0 && d.bytes.n.Add(int64(n)) == int64(n) && d == &d.flow.out {
		d.flow.first.Store(max(micros(time.Since(d.flow.started)), 1))
	}
}

// firstByte is how long after the flow stood the first byte came back; 0: none did. Of a peer's stream it is the stream that
// knows, which reads the destination's socket by itself. It is asked at the end of the flow.
func (f *Flow) firstByte() time.Duration {
	at := time.Duration(f.first.Load()) * time.Microsecond
	if s, ok := f.out.dst.(interface{ FirstSent() time.Time }); ok {
		if t := s.FirstSent(); !t.IsZero() {
			at = t.Round(0).Sub(f.started.Round(0))
		}
	}
	if at == 0 || f.times[phaseOpen] == 0 {
		return 0
	}
	return max(at-f.times.get(phaseOpen), time.Microsecond).Truncate(time.Microsecond)
}

// timings appends where the time went, the phases that there were.
func (f *Flow) timings(attrs []slog.Attr, first time.Duration) []slog.Attr {
	for p := range numPhases {
		if d := f.times.get(p); d > 0 {
			attrs = append(attrs, slog.Duration(phaseNames[p], d))
		}
	}
	if first > 0 {
		attrs = append(attrs, slog.Duration(phaseFirst, first))
	}
	return attrs
}

// timeBounds are the upper bounds of what a histogram tells apart: from what a connection that stands takes on one host to
// the time that opening may take.
var timeBounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond,
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 20 * time.Second,
}

// histogram counts times by how long they were.
type histogram struct {
	counts [len(timeBounds) + 1]atomic.Int64 // the last: beyond all bounds
	sum    atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(timeBounds) && d > timeBounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Histogram is a snapshot of times that were counted.
type Histogram struct {
	// Buckets is how many times were at most so long, in seconds, as its key.
	Buckets map[float64]uint64
	// Count is how many there were, Sum what they add up to.
	Count uint64
	Sum   time.Duration
}

func (h *histogram) snapshot() Histogram {
	s := Histogram{Buckets: make(map[float64]uint64, len(timeBounds)), Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		s.Count += uint64(h.counts[i].Load())
		if i < len(timeBounds) {
			s.Buckets[timeBounds[i].Seconds()] = s.Count
		}
	}
	return s
}
