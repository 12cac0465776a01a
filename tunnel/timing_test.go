package tunnel

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestTimingOfAWait(t *testing.T) {
	made := timing{phaseDial: micros(30 * time.Millisecond), phaseTLS: micros(20 * time.Millisecond)}
	for _, tt := range []struct {
		name             string
		waited           time.Duration
		queue, dial, tls time.Duration
	}{
		{"who began the dial", 50 * time.Millisecond, 0, 30 * time.Millisecond, 20 * time.Millisecond},
		{"who came while it dialled", 35 * time.Millisecond, 0, 15 * time.Millisecond, 20 * time.Millisecond},
		{"who came during the handshake", 5 * time.Millisecond, 0, 0, 5 * time.Millisecond},
		{"who was not let at once", 60 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 20 * time.Millisecond},
		{"who did not wait", 0, 0, 0, 0},
		{"a clock that is set back", -time.Second, 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got timing
			got.wait(tt.waited, &made)
			if q, d, h := got.get(phaseQueue), got.get(phaseDial), got.get(phaseTLS); q != tt.queue || d != tt.dial || h != tt.tls {
				t.Errorf("queue %v, dial %v, tls %v, want %v, %v, %v", q, d, h, tt.queue, tt.dial, tt.tls)
			}
		})
	}
	var none *timing
	none.wait(time.Second, &made)
	none.since(phaseAnswer, time.Now())
	if got := micros(100 * time.Hour); got != 1<<32-1 {
		t.Errorf("100 hours are %d microseconds, want as many as there is room for", got)
	}
}

// Who waits for a connection that another flow has asked for, and then for a second one, has queued for the first.
func TestPoolTellsWhatItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(1))
		defer p.close()
		p.chain.last.streamsPerConn = 1
		connect := func(times *timing) Stream {
			s, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{Target: Target{Host: "a", Port: 1}, times: times})
			if err != nil {
				t.Error(err)
			}
			return s
		}
		var first, second timing
		done := make(chan Stream)
		go func() { done <- connect(&first) }() // ends when it has a stream, for which the test waits
		synctest.Wait()
		go func() { done <- connect(&second) }() // as above
		for _, s := range []Stream{<-done, <-done} {
			s.Close()
		}
		got := []time.Duration{first.get(phaseQueue), second.get(phaseQueue)}
		if got[0]+got[1] != 3*time.Second || max(got[0], got[1]) != 2*time.Second { // the fake tells no phases of its own
			t.Errorf("the flows waited %v, want 1s and 2s", got)
		}
	})
}

func TestHistogram(t *testing.T) {
	var h histogram
	for _, d := range []time.Duration{0, 100 * time.Microsecond, time.Millisecond, time.Millisecond + 1, time.Hour} {
		h.observe(d)
	}
	s := h.snapshot()
	if s.Count != 5 || s.Sum != time.Hour+2100*time.Microsecond+1 {
		t.Errorf("%d times, %v in sum", s.Count, s.Sum)
	}
	for bound, want := range map[float64]uint64{0.0001: 2, 0.0005: 2, 0.001: 3, 0.0025: 4, 20: 4} {
		if s.Buckets[bound] != want {
			t.Errorf("%d times of at most %v s, want %d", s.Buckets[bound], bound, want)
		}
	}
}
