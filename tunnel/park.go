package tunnel

import (
	"sync"

	"culvert/tunnel/nowait"
)

// parking is where the silent flows of a gateway wait. It is made when the first listener is opened that has
// sockets, or the first of them parks.
type parking struct {
	make  sync.Once
	watch *nowait.Watch // nil: the system has none

	end sync.Once
}

// open returns what watches the sockets, nil where the system has nothing for that.
func (p *parking) open() *nowait.Watch {
	p.make.Do(func() { p.watch, _ = nowait.NewWatch() }) // without it a silent flow keeps a goroutine
	return p.watch
}

// close is called when there are no flows any more.
func (p *parking) close() {
	p.make.Do(func() {}) // too late to make one
	p.end.Do(func() {
		if p.watch != nil {
			p.watch.Close()
		}
	})
}

// park lets the goroutine go that reads a silent socket: the gateway's Watch wakes the direction when the socket has
// something to tell, and wake does when it is to find out about something else. It reports whether the direction
// sleeps, or is awake in another goroutine already.
func (d *direction) park() bool {
	s := d.src.(*socket)
	raw := nowait.Raw(s.Conn)
	if raw == nil {
		return false
	}
	w := d.flow.g.parking.open()
	if w == nil {
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
		d.flow.g.parking.watch.Remove(int(s.fd.Load()), s)
		go d.pump(nil) // ends with its direction; the flow is over when both have ended, which Close waits for
	}
}
