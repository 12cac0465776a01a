package endpoint

import (
	"log/slog"
	"time"
)

// Outcome is what a flow says of its endpoint when it is over.
type Outcome uint8

// The outcomes.
const (
	// Served is a flow that was carried, or one of which nothing follows: it was withdrawn, or refused for a reason of its own.
	Served Outcome = iota
	// Failed is a flow that did not get there: the endpoint could not be connected to, did not answer, or was not who it should be.
	Failed
	// Broke is a flow that the endpoint has accepted and broken off at once, although nobody had said anything.
	Broke
)

// Connected notes that the endpoint has accepted the flow.
func (l *Lease) Connected() {
	s := l.m.set
	s.mu.Lock()
	defer s.unlock()
	if l.connected || l.done {
		return
	}
	l.connected = true
	l.m.load.pending--
	s.load.pending--
	l.m.reached(time.Now())
}

// Done notes that the flow is over at this endpoint; err says why where it has Failed or Broke. A second call does nothing.
func (l *Lease) Done(o Outcome, err error) {
	s, m := l.m.set, l.m
	s.mu.Lock()
	defer s.unlock()
	if l.done {
		return
	}
	l.done = true
	m.load.flows--
	s.load.flows--
	if !l.connected {
		m.load.pending--
		s.load.pending--
	}
	switch {
	case o == Failed:
		m.fails++
		m.failed(m.fails, err)
	case o == Broke:
		m.breaks++
		m.failed(m.breaks, err)
	case l.connected:
		m.breaks = 0
	}
}

// isEjected reports whether m is left alone.
func (m *member) isEjected(now time.Time) bool { return now.Before(m.ejected) }

// reached notes that a flow got there. Called with mu held.
func (m *member) reached(now time.Time) {
	m.fails = 0
	if m.isEjected(now) { // it was tried all the same, as no other was left
		m.ejected = now
		m.set.stale = true
	}
	if m.trial {
		m.trial = false
		m.set.note(slog.LevelInfo, "endpoint is back", slog.String("endpoint", m.e.String()))
	}
}

// failed notes that a flow did not get there, or was broken off, as did n in a row. Called with mu held.
func (m *member) failed(n int, err error) {
	m.remember(err)
	s, now := m.set, time.Now()
	c := &s.conf.Ejection
	switch {
	case c.Failures < 0 || m.gone || m.down || m.isEjected(now):
		return
	case n < c.Failures && !m.trial:
		return
	case !s.mayEject(now):
		s.counts.spared++
		return
	}
	if now.Sub(m.ejected) >= c.Longest {
		m.ejections = 0
	}
	wait := c.Longest
	if m.ejections < 20 { // beyond, shifting would overflow
		wait = min(c.Time<<m.ejections, c.Longest)
	}
	m.ejections++
	m.ejected, m.trial, m.breaks = now.Add(wait), true, 0
	s.stale = true
	s.counts.ejections++
	s.note(slog.LevelWarn, "endpoint is ejected", slog.String("endpoint", m.e.String()), slog.Duration("dur", wait), slog.String("reason", m.problem))
}

// mayEject reports whether one more may be ejected. Called with mu held.
func (s *Set) mayEject(now time.Time) bool {
	up, ejected := 0, 0
	for _, m := range s.members {
		if m.down {
			continue
		}
		up++
		if m.isEjected(now) {
			ejected++
		}
	}
	return (ejected+1)*100 <= up*s.conf.Ejection.Most
}

// TakeConn counts a connection to e that carries tunnels, or returns ErrFull where there may be no more. GiveConn is to be called
// when it is over.
func (e *Endpoint) TakeConn() error {
	m, s := e.m, e.m.set
	s.mu.Lock()
	defer s.unlock()
	if over(s.load.conns, s.conf.Limits.Connections) || over(m.load.conns, s.conf.Limits.Endpoint.Connections) {
		s.counts.full++
		return ErrFull
	}
	m.load.conns++
	s.load.conns++
	return nil
}

// GiveConn ends what TakeConn began.
func (e *Endpoint) GiveConn() {
	m, s := e.m, e.m.set
	s.mu.Lock()
	defer s.unlock()
	m.load.conns--
	s.load.conns--
}

// Gone reports whether neither the configuration nor DNS has e any more.
func (e *Endpoint) Gone() bool {
	s := e.m.set
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.m.gone
}

// ConnectTimeout is that of its Set.
func (e *Endpoint) ConnectTimeout() time.Duration { return e.m.set.ConnectTimeout() }
