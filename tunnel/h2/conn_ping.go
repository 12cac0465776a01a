package h2

import (
	"context"
	"encoding/binary"
	"time"
)

// ping is a PING of ours under way.
type ping struct {
	data   [8]byte
	sentAt time.Time
	done   chan struct{} // closed at the acknowledgement
	rtt    time.Duration
}

// The first octets of our PING payloads say what they are for.
const (
	pingUser = iota + 1
	pingKeepAlive
	pingSample
	pingDrain
)

func pingData(kind byte, seq uint64) (d [8]byte) {
	binary.BigEndian.PutUint64(d[:], seq)
	d[0] = kind
	return d
}

// queuePing queues a PING. Called with mu held.
func (c *Conn) queuePing(kind byte) *ping {
	c.pingSeq++
	data := pingData(kind, c.pingSeq)
	p := &ping{data: data, sentAt: time.Now(), done: make(chan struct{})}
	if c.pings == nil {
		c.pings = make(map[[8]byte]*ping)
	}
	c.pings[data] = p
	c.ctrl = appendPing(c.ctrl, false, data)
	return p
}

// Ping measures a round trip (RFC 9113, section 6.7). Errors: ctx's or a *ConnError.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, c.err
	}
	p := c.queuePing(pingUser)
	c.flush()
	c.mu.Unlock()
	select {
	case <-p.done:
		return p.rtt, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pings, p.data) // its answer is nobody's
		c.mu.Unlock()
		return 0, ctx.Err()
	case <-c.over.Done():
		return 0, c.Err()
	}
}

// onPing answers a PING, or ends one of ours.
func (c *Conn) onPing(h frameHeader, p []byte) error {
	if h.streamID != 0 {
		return connError(ProtocolError, "PING on a stream")
	}
	if len(p) != 8 {
		return connError(FrameSizeError, "PING length not 8")
	}
	data := [8]byte(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if own := c.pings[data]; h.has(flagAck) && own != nil {
		delete(c.pings, data)
		now := time.Now()
		own.rtt = now.Sub(own.sentAt)
		c.rtt.Store(int64(max(own.rtt, 1)))
		close(own.done)
		if data[0] == pingSample && c.in.bdp.finish(now) {
			c.windowGoal.Store(min(c.in.bdp.estimate, int64(c.cfg.MaxStreamWindow)))
		}
		return nil
	}
	if err := c.in.odd(controlFrame, 1); err != nil {
		return err
	}
	if h.has(flagAck) {
		return nil
	}
	if !c.queueAnswer() {
		return connError(EnhanceYourCalm, "too many answers queued")
	}
	c.ctrl = appendPing(c.ctrl, true, data)
	return nil
}

// tickInterval is how often tick looks; 0: never.
func (c *Conn) tickInterval() time.Duration {
	d := c.cfg.PingInterval
	if d < 0 {
		d = c.cfg.IdleTimeout
	}
	return d
}

// tick is the keep-alive and the idle clock. A connection that was silent for PingInterval is asked; if
// it stays silent for PingTimeout it is dead. Called by the timer.
func (c *Conn) tick() {
	c.refundOwed()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	if d := c.cfg.WriteTimeout; d > 0 && !c.writeSince.IsZero() && now.Sub(c.writeSince) >= d {
		c.failLocked(&ConnError{Code: NoError, By: Network, Reason: "peer does not read"})
		return
	}
	if d := c.cfg.IdleTimeout; d > 0 && !c.idleSince.IsZero() && now.Sub(c.idleSince) >= d {
		c.failLocked(connError(NoError, "no stream for too long"))
		return
	}
	next := c.tickInterval()
	if c.cfg.PingInterval > 0 {
		next = c.keepAlive(now)
	}
	if next > 0 {
		c.keepalive.Reset(next)
	}
}

// Silence returns for how long nothing has been received.
func (c *Conn) Silence() time.Duration { return time.Since(time.Unix(0, c.lastRead.Load())) }

// keepAlive asks or buries a silent peer and returns when to look again. Called with mu held.
func (c *Conn) keepAlive(now time.Time) time.Duration {
	heard := time.Unix(0, c.lastRead.Load())
	if !c.silentSince.IsZero() && !heard.Before(c.silentSince) {
		c.silentSince = time.Time{}
	}
	if !c.silentSince.IsZero() {
		if left := c.cfg.PingTimeout - now.Sub(c.silentSince); left > 0 {
			return min(left, c.cfg.PingInterval)
		}
		c.failLocked(&ConnError{Code: NoError, By: Network, Reason: "peer does not answer PING"})
		return 0
	}
	if left := c.cfg.PingInterval - now.Sub(heard); left > 0 {
		return left
	}
	c.silentSince = now
	c.queuePing(pingKeepAlive)
	c.kick()
	return min(c.cfg.PingTimeout, c.cfg.PingInterval)
}
