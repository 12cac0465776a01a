package h2

import (
	"io"
	"time"
)

// beginData checks the header of a DATA frame (RFC 9113, section 6.1); pad is its pad length octet
// where it has one. Flow control counts the whole payload, padding included (section 6.9.1).
func (in *inbound) beginData(h frameHeader, pad []byte) error {
	c := in.c
	d := dataFrame{left: int(h.length), end: h.has(flagEndStream)}
	if h.streamID == 0 {
		return connError(ProtocolError, "DATA on stream 0")
	}
	if h.has(flagPadded) {
		if len(pad) == 0 {
			return connError(FrameSizeError, "padded frame without pad length")
		}
		d.pad = int(pad[0])
		if d.left -= 1 + d.pad; d.left < 0 {
			return connError(ProtocolError, "padding as long as the payload or longer")
		}
	}
	if err := in.meterEmpty(h, d.left); err != nil {
		return err
	}
	s, err := c.takeData(h)
	if err != nil {
		in.data = d // its payload is discarded
		return err
	}
	if err := in.meterTiny(s, h, d.left); err != nil {
		return err
	}
	if s != nil {
		d.stream = s
		if err := s.admitData(int(h.length), d.left, d.end); err != nil {
			in.data = dataFrame{left: d.left, pad: d.pad}
			return err
		}
	}
	in.data = d
	if d.left == 0 && d.pad == 0 {
		return in.endData()
	}
	in.sample(int(h.length))
	return nil
}

// meterEmpty counts frames that carry nothing (CVE-2019-9518).
func (in *inbound) meterEmpty(h frameHeader, n int) error {
	if n > 0 || h.has(flagEndStream) {
		in.emptyData = 0
	} else if in.emptyData++; in.emptyData > in.c.cfg.MaxEmptyData {
		return connError(EnhanceYourCalm, "too many empty DATA frames")
	}
	return nil
}

// meterTiny counts splinters, see splinterBelow. A nil s stands for a stream that is gone.
func (in *inbound) meterTiny(s *Stream, h frameHeader, n int) error {
	if n >= splinterBelow || h.has(flagEndStream) {
		return nil
	}
	if s != nil && s.tinyIn != in.record {
		s.tinyIn = in.record
		return nil
	}
	return in.odd(splinter, 1-float64(n)/splinterBelow)
}

// takeData finds the stream of a DATA frame and takes the connection's window. A nil stream: discard.
// The window of discarded bytes is given back like any other.
func (c *Conn) takeData(h frameHeader) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.recv.receive(h.length) {
		return nil, connError(FlowControlError, "more DATA than the connection's window")
	}
	c.refund(int(h.length))
	s := c.streams[h.streamID]
	switch {
	case s == nil && c.draining && !c.isOwnID(h.streamID) && h.streamID > c.goAwayID:
		return nil, nil
	case c.idle(h.streamID):
		return nil, connError(ProtocolError, "DATA on an idle stream")
	case s == nil && c.resetRecently(h.streamID):
		return nil, nil
	case s == nil:
		return nil, streamError(h.streamID, StreamClosed, "DATA on a closed stream")
	case s.state == stateReservedLocal || s.state == stateReservedRemote:
		return nil, connError(ProtocolError, "DATA on a reserved stream")
	case !s.state.canReceive():
		return nil, streamError(h.streamID, StreamClosed, "DATA after END_STREAM")
	case s.asks && !s.gotHead:
		return nil, streamError(h.streamID, ProtocolError, "DATA before response headers")
	case s.userDone:
		return nil, nil
	}
	return s, nil
}

// refund gives received bytes of the connection's window back at once, while the budget has room: a
// stalled stream must not stop the others. Called with mu held.
func (c *Conn) refund(n int) {
	if c.cfg.Budget.Full() {
		c.owed.Add(int64(n))
		return
	}
	if grant := c.recv.consume(n); grant > 0 {
		c.ctrl = appendWindowUpdate(c.ctrl, 0, grant)
	}
}

// refundOwed gives back what was held while the budget was full.
func (c *Conn) refundOwed() {
	if c.owed.Load() == 0 || c.cfg.Budget.Full() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.owed.Swap(0); n > 0 && c.err == nil {
		c.refund(int(n))
		c.kick()
	}
}

// credit grants a stream receive credit, where there is some, and the connection what it is owed.
func (c *Conn) credit(s *Stream, n uint32) {
	if n > 0 {
		c.grant(s, n)
	}
	c.refundOwed()
}

// admitData takes the stream's window for a frame of length bytes of which n are data.
func (s *Stream) admitData(length, n int, end bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.flow.receive(uint32(length)) {
		return streamError(s.id, FlowControlError, "more DATA than the stream's window")
	}
	if s.length >= 0 {
		// RFC 9113, section 8.1.1: a content-length that differs from the DATA received is malformed.
		if s.length -= int64(n); s.length < 0 || end && s.length > 0 {
			return streamError(s.id, ProtocolError, "DATA and content-length differ")
		}
	}
	if length > n { // padding is consumed at once
		s.flow.window += int32(length - n)
		s.padding += uint32(length - n)
	}
	return nil
}

// readData passes on what is there of a DATA frame.
func (in *inbound) readData(p []byte) (bool, error) {
	d := &in.data
	n := min(d.left, len(p))
	if n > 0 && d.stream != nil {
		d.stream.receive(in.buf, in.r, in.r+n)
	}
	d.left -= n
	in.r += n
	skip := min(d.pad, len(p)-n)
	d.pad -= skip
	in.r += skip
	if d.left > 0 || d.pad > 0 {
		return false, nil
	}
	return true, in.endData()
}

// endData ends a DATA frame, and the stream's receiving side where the frame says so.
func (in *inbound) endData() error {
	s, end := in.data.stream, in.data.end
	in.data = dataFrame{}
	if s == nil {
		return nil
	}
	if pad := s.takePadding(); pad > 0 {
		in.c.mu.Lock()
		if s.state.canReceive() && !end {
			in.c.ctrl = appendWindowUpdate(in.c.ctrl, s.id, pad)
		}
		in.c.mu.Unlock()
	}
	if end {
		in.c.receivedEnd(s)
	}
	return nil
}

func (s *Stream) takePadding() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.padding
	s.padding = 0
	return n
}

// receivedEnd notes END_STREAM of the peer.
func (c *Conn) receivedEnd(s *Stream) {
	c.mu.Lock()
	c.ended(s, false)
	c.mu.Unlock()
	s.endReceive(io.EOF)
}

// sample feeds the estimate of the bandwidth-delay product and sends its PING.
func (in *inbound) sample(n int) {
	if !in.bdp.received(n, time.Now) {
		return
	}
	in.c.mu.Lock()
	in.c.queuePing(pingSample)
	in.c.mu.Unlock()
}
