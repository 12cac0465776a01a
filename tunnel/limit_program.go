package tunnel

import (
	"os"
	"sync"
	"time"
)

// patience ends waits for a limit at a deadline, or when it is set to one that has passed, as those of a net.Conn are.
type patience struct {
	turn sync.Mutex // held by the one that waits

	mu    sync.Mutex    // guards the group below
	at    time.Time     // zero: never
	over  chan struct{} // closed at the deadline; nil: nobody waits
	timer *time.Timer
}

// set changes the deadline.
func (p *patience) set(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
	p.arm()
}

// arm closes over at the deadline. Called with mu held.
func (p *patience) arm() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if p.over == nil || p.at.IsZero() {
		return
	}
	if wait := time.Until(p.at); wait > 0 {
		p.timer = time.AfterFunc(wait, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.arm() // it may have been set anew
		})
		return
	}
	close(p.over)
	p.over = nil
}

// quit is closed at the deadline. The caller holds turn.
func (p *patience) quit() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	over := make(chan struct{})
	p.over = over
	p.arm()
	return over
}

// pass waits until some of n bytes of f may go on, or until the deadline; see Flow.pass.
func (p *patience) pass(f *Flow, n int) (int, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	m, ok, err := f.pass(n, p)
	p.mu.Lock()
	passed := !p.at.IsZero() && !time.Now().Before(p.at)
	p.over = nil
	p.arm()
	p.mu.Unlock()
	switch {
	case err != nil:
		return 0, f.reason()
	case !ok && passed:
		return 0, os.ErrDeadlineExceeded
	}
	return m, nil
}

// Write sends p to the peer. Where a limit of policy counts the bytes of the peer, it waits for that.
func (c *PeerConn) Write(p []byte) (total int, err error) {
	if !c.flow.paced() {
		return c.write(p)
	}
	for len(p) > 0 && err == nil {
		var n int
		if n, err = c.writes.pass(c.flow, len(p)); err != nil {
			return total, err
		}
		n, err = c.write(p[:n])
		total += n
		p = p[n:]
	}
	return total, err
}

func (c *PeerConn) write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.flow.out.moved(n)
	return n, err
}

// Read reads what the peer has sent. Where a limit of policy counts the bytes of the peer, it waits for that.
func (c *PeerConn) Read(p []byte) (int, error) {
	paced := c.flow.paced() && len(p) > 0
	if paced {
		if _, err := c.reads.pass(c.flow, 0); err != nil {
			return 0, err
		}
		p = p[:min(len(p), pieceBytes)]
	}
	n, err := c.Conn.Read(p)
	c.flow.in.bytes.add(int64(n))
	if paced {
		c.flow.owe(n)
	}
	return n, err
}

// SetDeadline sets both deadlines.
func (c *PeerConn) SetDeadline(t time.Time) error {
	c.reads.set(t)
	c.writes.set(t)
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline makes Read return os.ErrDeadlineExceeded after t; zero: never.
func (c *PeerConn) SetReadDeadline(t time.Time) error {
	c.reads.set(t)
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline makes Write return os.ErrDeadlineExceeded after t; zero: never.
func (c *PeerConn) SetWriteDeadline(t time.Time) error {
	c.writes.set(t)
	return c.Conn.SetWriteDeadline(t)
}
