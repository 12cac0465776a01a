package tunnel

import "culvert/tunnel/nowait"

// park lets the goroutine go that reads a silent socket: the gateway's Watch wakes the direction when the socket has
// something to tell, and wake does when it is to find out about something else. It reports whether the direction
// sleeps, or is awake in another goroutine already.
func (d *direction) park() bool {
	w, s := d.flow.g.watch, d.src.(*socket)
	raw := nowait.Raw(s.Conn)
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
	}
	return true
}

// Wake has the direction that sleeps on the socket, where there is one, go on. Whoever closes the socket, or wants
// its reader to see a deadline, calls it after that.
func (s *socket) Wake() {
	if d := s.asleep.Swap(nil); d != nil {
		d.flow.g.watch.Remove(int(s.fd.Load()), s)
		go d.pump(nil) // ends with its direction; the flow is over when both have ended, which Close waits for
	}
}
