package tunnel

import (
	"sync"
	"sync/atomic"

	"culvert/tunnel/nowait"
)

// parking is where the silent flows of a gateway wait, as soon as it has a listener for sockets.
type parking struct {
	once  sync.Once
	watch atomic.Pointer[nowait.Watch] // nil: there is none, and a silent flow keeps a goroutine
}

// open makes it possible to park, where the system has what that takes.
func (p *parking) open() {
	p.once.Do(func() {
		if w, err := nowait.NewWatch(); err == nil {
			p.watch.Store(w)
		}
	})
}

// close is called when there are no flows any more.
func (p *parking) close() {
	if w := p.watch.Swap(nil); w != nil {
		w.Close()
	}
}

// park lets the goroutine go that reads s, a silent socket: the gateway's Watch wakes the direction when the socket has
// something to tell, and socket.Wake does when it is to find out about something else. It reports whether the direction
// sleeps, or is awake in another goroutine already.
func (d *direction) park(s *socket) bool {
	w, raw := d.flow.g.parking.watch.Load(), nowait.Raw(s.Conn)
	if w == nil || raw == nil {
		return false
	}
	s.asleep.Store(d)
	fd, err := w.Add(raw, s)
	s.fd.Store(int32(fd))
	if err != nil || d.gone() != nil { // closed, or given up before it was asleep
		w.Remove(fd, s)
		return !s.asleep.CompareAndSwap(d, nil)
	}
	if s.asleep.Load() != d {
		w.Remove(fd, s) // woken meanwhile by somebody who did not know the descriptor
		if s.asleep.Load() != nil {
			s.Wake() // asleep again since then, and maybe removed just now
		}
	}
	return true
}

// Wake has the direction that sleeps on the socket, where there is one, go on. Whoever closes the socket, or wants
// its reader to see a deadline, calls it after that.
func (s *socket) Wake() {
	if d := s.asleep.Swap(nil); d != nil {
		if w := d.flow.g.parking.watch.Load(); w != nil {
			w.Remove(int(s.fd.Load()), s)
		}
		go d.pump(nil) // ends with its direction; the flow is over when both have ended, which Close waits for
	}
}
