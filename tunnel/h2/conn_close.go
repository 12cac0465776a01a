package h2

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// fail ends the connection: streams get err, the peer a GOAWAY where err is not the network's. The
// first call counts.
func (c *Conn) fail(err *ConnError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *Conn) failLocked(err *ConnError) {
	if c.err != nil {
		return
	}
	c.err = err
	if err.By == Local && c.sendErr == nil {
		c.ctrl = appendGoAway(c.ctrl, c.lastPeerID, err.Code, err.Reason)
	} else {
		c.ctrl = c.ctrl[:0]
	}
	for _, s := range c.streams {
		c.endReset(s, err)
	}
	for _, t := range []*time.Timer{c.keepalive, c.handshakeEnd} {
		if t != nil {
			t.Stop()
		}
	}
	c.openCond.Broadcast()
	c.settledCond.Broadcast()
	c.end()
	c.leaveBudget()
	c.log.Debug("connection ended", "conn", c.nc.RemoteAddr(), "err", err)
	if c.busy {
		// Whoever holds the role finishes, in writeStall at most, and then calls finish.
		c.nc.SetWriteDeadline(time.Now().Add(writeStall))
		return
	}
	if len(c.ctrl) == 0 {
		c.finish()
		return
	}
	c.nc.SetWriteDeadline(time.Now().Add(writeStall))
	c.kick()
}

// readRest is how long a connection that cannot be written any more is read on.
const readRest = time.Second

// sendFailed ends the sending side of a connection whose socket takes nothing more. What the peer has sent
// before may still lie there to be read: the last bytes and ends of streams, a GOAWAY, a TLS alert that says
// why. So the connection ends when reading does. Called with mu held.
func (c *Conn) sendFailed(err error) {
	c.ctrl = c.ctrl[:0]
	if c.err != nil || c.sendErr != nil {
		return
	}
	c.sendErr = &ConnError{Code: InternalError, By: Network, Reason: "write", Err: err}
	for _, s := range c.streams {
		if s.werr == nil {
			s.werr = c.sendErr
		}
		c.ring.remove(s)
		s.wcond.Broadcast()
	}
	c.openCond.Broadcast()
	_ = c.nc.SetReadDeadline(time.Now().Add(readRest)) // a closed socket needs none
}

// finish closes the socket of a connection that has ended and has nothing left to write. After an
// offence it is held for CloseDelay, unread, so that one connection can offend once in that time and
// the GOAWAY is not lost to a TCP reset. Called with mu held by the last holder of the write role.
func (c *Conn) finish() {
	if c.finished {
		return
	}
	c.finished = true
	delay := time.Duration(0)
	if c.cfg.CloseDelay > 0 && c.err.By == Local && c.err.Code != NoError {
		delay = c.cfg.CloseDelay
	}
	part := c.parts()
	time.AfterFunc(delay, func() { // not here: closing TLS may wait for the socket
		if part {
			c.part()
		}
		c.nc.Close()
		close(c.closed)
	})
}

// partTimeout is how long a connection that was drained is read on, into nothing, until the peer has ended
// its side too.
const partTimeout = 5 * time.Second

// parts reports whether the connection has ended in good order. Called with mu held.
func (c *Conn) parts() bool {
	return c.draining && c.err != nil && c.err.By == Local && c.err.Code == NoError
}

// part ends our side of the socket and waits until readLoop has seen the end of the peer's. A socket that is
// closed while bytes come, such as WINDOW_UPDATE for the last DATA, is reset by the system, and what the peer
// has not received yet is lost: the tail of a stream, or the RST_STREAM that tells how one has ended.
func (c *Conn) part() {
	c.nc.SetDeadline(time.Now().Add(partTimeout))
	ended := false
	for nc := c.nc; nc != nil; {
		if w, ok := nc.(interface{ CloseWrite() error }); ok {
			ended = w.CloseWrite() == nil || ended // of TLS, which tells the peer, and of TCP below
		}
		outer, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = outer.NetConn()
	}
	if ended {
		<-c.readDone
	}
}

// Close ends the connection at once: GOAWAY(NO_ERROR) is sent if the socket takes it, streams end with
// a *ConnError. It waits for the reader and for the socket's end, after an offence of the peer for
// CloseDelay, after a Drain for the peer's end or 5 s, and must not be called from a hook of Config other than
// Handler. It may be called again.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.err == nil {
		for _, s := range c.streams {
			c.queueReset(s.id, s.cutCode())
		}
	}
	c.failLocked(connError(NoError, "closed"))
	c.mu.Unlock()
	<-c.closed
	<-c.readDone
	return nil
}

// cutCode is the code for a stream that is cut off: a tunnel's peer must not take it for a clean end
// (RFC 9113, section 8.5).
func (s *Stream) cutCode() ErrCode {
	if s.connect {
		return ConnectError
	}
	return Cancel
}

// Retired is closed when the peer has sent GOAWAY, or was sent one for its oddities: streams that are open
// live on, Open fails.
func (c *Conn) Retired() <-chan struct{} { return c.retired }

// retire tells who waits for Retired. Called with mu held.
func (c *Conn) retire() {
	select {
	case <-c.retired:
	default:
		close(c.retired)
	}
}

// drainRoundTrip bounds the wait between the two GOAWAY frames of a drain.
const drainRoundTrip = time.Second

// Drain ends the connection in an orderly way (RFC 9113, section 6.8): it announces the end, takes what
// the peer had sent before it knew, refuses the rest, waits for the streams, and until the peer has read what was
// sent on them, and closes. When ctx ends first it returns ctx's error and the connection is still up: Close ends it.
func (c *Conn) Drain(ctx context.Context) error {
	c.mu.Lock()
	if c.err == nil && (!c.draining || c.goAwayID == maxStreamID) {
		var p *ping
		if c.mayServe() {
			if !c.draining { // else that was said before
				c.ctrl = appendGoAway(c.ctrl, maxStreamID, NoError, "draining")
			}
			p = c.queuePing(pingDrain)
		}
		c.draining, c.goAwayID = true, maxStreamID
		c.openCond.Broadcast()
		c.kick()
		c.mu.Unlock()
		c.awaitRoundTrip(ctx, p, drainRoundTrip)
		c.mu.Lock()
		if c.err == nil {
			c.goAwayID = c.lastPeerID
			c.ctrl = appendGoAway(c.ctrl, c.goAwayID, NoError, "draining")
			c.kick()
		}
	}
	err := waitLocked(ctx, c.openCond, func() bool {
		return c.err != nil || len(c.streams)+c.peerHeld+c.peerTail == 0
	})
	if err == nil && c.err == nil {
		err = c.awaitRead(ctx)
	}
	gone := c.err
	c.mu.Unlock()
	if gone != nil {
		<-c.closed
		<-c.readDone
		if gone.Code == NoError {
			return nil
		}
		return gone
	}
	if err != nil {
		return err
	}
	return c.Close()
}

// awaitRead waits until the peer has read everything that was sent: a socket that is closed before may be reset, by
// what the peer still sends, and what is on its way is lost. The end of a silent peer is the keep-alive's to find.
// Called and returns with mu held.
func (c *Conn) awaitRead(ctx context.Context) error {
	p := c.queuePing(pingDrain)
	c.kick()
	c.mu.Unlock()
	defer c.mu.Lock()
	c.awaitRoundTrip(ctx, p, c.cfg.IdleTimeout)
	return ctx.Err()
}

// awaitRoundTrip waits for the answer to p, nil being none, for so long at most; 0 or less: without bound.
func (c *Conn) awaitRoundTrip(ctx context.Context, p *ping, most time.Duration) {
	if p == nil {
		return
	}
	var late <-chan time.Time
	if most > 0 {
		t := time.NewTimer(most)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-p.done:
	case <-late:
	case <-ctx.Done():
	case <-c.over.Done():
	}
}

// Draining reports whether either side has sent GOAWAY.
func (c *Conn) Draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining || c.peerGoAway || c.err != nil
}

// onGoAway takes the peer's GOAWAY: our streams above its last id were not processed (RFC 9113,
// section 6.8) and end with RefusedStream, so that they may be sent again.
func (c *Conn) onGoAway(h frameHeader, p []byte) error {
	if h.streamID != 0 {
		return connError(ProtocolError, "GOAWAY on a stream")
	}
	if len(p) < 8 {
		return connError(FrameSizeError, "GOAWAY shorter than 8 bytes")
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	code := ErrCode(binary.BigEndian.Uint32(p[4:]))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peerGoAway {
		// "Endpoints MUST NOT increase the value they send in the last stream identifier."
		if last > c.peerLastID {
			return connError(ProtocolError, "GOAWAY with a greater last stream id than before")
		}
		// The second one of a drain is expected; more are odd.
		if err := c.in.odd(glitch, 1); err != nil {
			return err
		}
	} else {
		c.peerGoAway = true
		c.retire()
	}
	c.peerLastID = last
	c.openCond.Broadcast()
	for id, s := range c.streams {
		if s.own && s.asks && id > last {
			c.endReset(s, &StreamError{StreamID: id, Code: RefusedStream, By: Peer, Reason: "not processed before GOAWAY"})
		}
	}
	if code != NoError {
		c.log.Debug("goaway received", "conn", c.nc.RemoteAddr(), "reason", code.String())
		c.peerCode = code
		c.peerDebug = string(p[8:min(len(p), 8+maxDebugBytes)])
	}
	return nil
}

// maxDebugBytes is how much of a GOAWAY's debug data is kept for the error.
const maxDebugBytes = 200

// readFailed turns an error of the socket into the connection's end.
func (c *Conn) readFailed(err error) *ConnError {
	c.mu.Lock()
	defer c.mu.Unlock()
	silent := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded)
	if c.sendErr != nil && !c.peerGoAway && silent {
		return c.sendErr
	}
	e := &ConnError{Code: NoError, By: Network, Reason: "read", Err: err}
	if c.peerGoAway {
		e.By, e.Code, e.Reason = Peer, c.peerCode, c.peerDebug
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) && c.peerGoAway {
		e.Err = nil
	}
	return e
}
