package h2

import (
	"encoding/binary"
	"errors"
	"net"
	"time"

	"golang.org/x/net/http2/hpack"
)

// inbound is the state of readLoop. Owned by it.
type inbound struct {
	c        *Conn
	buf      *buffer // what the connection is read into; bytes r to w are not parsed yet
	r, w     int
	preface  int  // bytes of the client preface still to come (server)
	settings bool // the first SETTINGS came
	quiet    int  // reads in a row that would have fitted a small buffer

	data   dataFrame
	whole  []byte      // a frame that did not fit the buffer, as far as it is there
	wholeH frameHeader // and its header
	waits  bool        // whole is being collected

	dec         *hpack.Decoder
	block       openBlock
	headerTimer *time.Timer

	now       time.Time // of the last bytes received
	odds      oddCount
	leave     bool // the count is above softShare
	emptyData int  // consecutive empty DATA frames

	record  uint32 // counts TLS records
	ends    []int  // where in buf the records end that were read together
	crossed int    // of these, how many ends parsing has passed
	readOne func([]byte) (int, error)

	fresh   []*Stream // streams of the peer that came with the last bytes
	refused []refusal // requests of the peer that were refused with the last bytes, where somebody wants to know
	bdp     bdp       // its sample is started by readLoop and finished under Conn.mu, by readLoop too
}

// dataFrame is a DATA frame, or one that is skipped, of which left payload bytes are still to come.
type dataFrame struct {
	left, pad int
	stream    *Stream // nil: discard
	end       bool
}

func (in *inbound) init(c *Conn) {
	in.c = c
	if !c.client {
		in.preface = len(clientPreface)
	}
	in.buf = getBuffer(smallBuffer, c.cfg.Budget)
	in.dec = hpack.NewDecoder(maxEncoderTable, in.onField)
	in.dec.SetMaxStringLength(c.cfg.MaxDecodedBytes)
	in.bdp.estimate = int64(c.cfg.StreamWindow)
	in.odds.rates = c.cfg.rates()
	in.readOne = in.readRecord
}

// readLoop reads and parses until the connection fails. It never waits for a stream or for a write.
func (c *Conn) readLoop() {
	defer close(c.readDone)
	in := &c.in
	for {
		in.makeRoom()
		n, err := in.read(in.buf.b[in.w:])
		if n > 0 {
			in.now = time.Now()
			c.lastRead.Store(in.now.UnixNano())
			in.w += n
			if perr := in.parse(); perr != nil {
				c.fail(perr)
			}
		}
		if err != nil {
			c.fail(c.readFailed(err))
		}
		more := c.endOfInput()
		in.handOver()
		if !more {
			break
		}
	}
	if c.parting() {
		in.discard()
	}
	in.stopHeaderTimer()
	in.buf.release()
	in.whole, in.ends = nil, nil
	if err := c.offence(); err != nil && c.cfg.OnOffence != nil {
		c.cfg.OnOffence(c, err)
	}
}

// read reads what is there, and waits only for the first of it: what has arrived together is passed on
// together.
func (in *inbound) read(p []byte) (int, error) {
	c := in.c
	in.ends, in.crossed = in.ends[:0], 0
	in.record++
	n, err := in.readRecord(p)
	if c.gate == nil || err != nil || n == len(p) {
		return n, err
	}
	more, err := c.gate.readOn(in.readOne, p[n:])
	return n + more, err
}

// readRecord reads the next TLS record, or a part of it, and notes where it ends.
func (in *inbound) readRecord(p []byte) (int, error) {
	if len(in.ends) == maxEnds {
		return 0, errDry // the rest comes with the next read
	}
	n, err := in.c.nc.Read(p)
	if n == 0 {
		return 0, err
	}
	at := in.w
	if len(in.ends) > 0 {
		at = in.ends[len(in.ends)-1]
	}
	in.ends = append(in.ends, at+n)
	return n, err
}

// crossTo counts the records that end before the offset at of the buffer, or there.
func (in *inbound) crossTo(at int) {
	for in.crossed < len(in.ends) && in.ends[in.crossed] <= at {
		in.crossed++
		in.record++
	}
}

const (
	// keepEnds is how many ends of records a connection keeps room for.
	keepEnds = 64
	// maxEnds is how many records are read together: a peer may put one byte in each, and the budget does not know
	// what is noted of them.
	maxEnds = 512
)

// discard reads what comes after a good end, until the peer's; see Conn.part.
func (in *inbound) discard() {
	in.makeRoom()
	for {
		if _, err := in.c.nc.Read(in.buf.b[in.w:]); err != nil {
			return
		}
	}
}

func (c *Conn) parting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parts()
}

// endOfInput writes what parsing has queued and reports whether to read on.
func (c *Conn) endOfInput() bool {
	if b := c.cfg.Budget; b.Full() {
		b.relieve()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ctrl) > c.cfg.MaxQueuedBytes {
		c.failLocked(connError(EnhanceYourCalm, "too many answers wait to be read"))
	}
	if c.in.leave {
		c.takeLeave()
	}
	if !c.busy && c.err == nil && len(c.ctrl) > 0 && len(c.ctrl) <= maxAnswerBytes && c.gate != nil && c.gate.roomy() {
		c.writeAnswers()
	}
	c.kick()
	return c.err == nil
}

// handOver gives the streams that came with the last bytes to the handler, unless the same bytes have reset
// them again (CVE-2023-44487). Those of a peer that has reset many get a moment to be reset.
func (in *inbound) handOver() {
	delay := in.odds.level[peerReset] > trustedResets
	for i, s := range in.fresh {
		if delay {
			time.AfterFunc(handlerDelay, s.handle)
		} else {
			s.handle()
		}
		in.fresh[i] = nil
	}
	in.fresh = in.fresh[:0]
	for _, r := range in.refused {
		in.c.cfg.OnRefused(in.c, r.status, r.reason)
	}
	in.refused = in.refused[:0]
}

// handle starts the handler, for which a stream that has been reset is nothing.
func (s *Stream) handle() {
	c := s.c
	c.mu.Lock()
	if s.wasReset {
		c.mu.Unlock()
		s.dropReceived(net.ErrClosed)
		return
	}
	s.inUse = true
	c.stats.accepted.Add(1)
	c.mu.Unlock()
	go c.cfg.Handler(s) // ends with the work on the stream, which is reset when the connection ends
}

// offence is what the peer did to make us end the connection, nil where it ended otherwise.
func (c *Conn) offence() *ConnError {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil && c.err.By == Local && c.err.Code != NoError {
		return c.err
	}
	return nil
}

const (
	// quietReads is after how many small reads a large buffer is exchanged for a small one.
	quietReads = 4
	// recordBytes is the greatest payload of a TLS record (RFC 8446, section 5.1).
	recordBytes = 16 << 10
)

// makeRoom provides a buffer with room to read into: a large one after a read that has filled a buffer, a
// small one where little comes. Bytes that are not parsed, always few, move along.
func (in *inbound) makeRoom() {
	size := len(in.buf.b)
	room := size - in.w
	switch {
	case room == 0:
		in.quiet, size = 0, largeBuffer
	case in.w-in.r > 0:
	case in.w >= smallBuffer/2:
		in.quiet = 0
	default:
		if in.quiet++; in.quiet >= quietReads {
			size = smallBuffer
			if cap(in.ends) > keepEnds {
				in.ends = nil
			}
		}
	}
	switch {
	case in.r == in.w && in.buf.alone():
		in.r, in.w = 0, 0
		if size == len(in.buf.b) {
			return
		}
	case room >= min(recordBytes, len(in.buf.b)/2):
		return // a whole record fits behind what is there
	}
	old := in.buf
	in.buf = getBuffer(size, in.c.cfg.Budget)
	in.w = copy(in.buf.b, old.b[in.r:in.w])
	in.r = 0
	old.release()
}

// parse takes frames from the buffer until a part of one is left.
func (in *inbound) parse() *ConnError {
	for {
		more, err := in.step()
		if err != nil {
			if cerr := in.c.judge(err); cerr != nil {
				return cerr
			}
		}
		if !more {
			return nil
		}
	}
}

// step parses one thing; more reports whether there may be another in the buffer.
func (in *inbound) step() (more bool, err error) {
	p := in.buf.b[in.r:in.w]
	switch {
	case len(p) == 0 && in.data.left+in.data.pad == 0:
		return false, nil
	case in.preface > 0:
		return in.readPreface(p)
	case in.data.left > 0 || in.data.pad > 0:
		return in.readData(p)
	case in.waits:
		return in.readWhole(p)
	case len(p) < frameHeaderLen:
		return false, nil
	}
	h := parseFrameHeader(p)
	if err := in.checkOrder(h); err != nil {
		return false, err
	}
	if h.kind == frameData {
		need := frameHeaderLen
		if h.has(flagPadded) && h.length > 0 {
			need++
		}
		if len(p) < need {
			return false, nil
		}
		in.crossTo(in.r)
		in.r += need
		return true, in.beginData(h, p[frameHeaderLen:need])
	}
	if err := in.checkLength(h); err != nil {
		return false, err
	}
	in.r += frameHeaderLen
	if h.kind > frameContinuation {
		in.data = dataFrame{left: int(h.length)}
		return true, in.onUnknown()
	}
	if p = p[frameHeaderLen:]; len(p) < int(h.length) {
		in.waits, in.wholeH = true, h
		in.startHeaderTimer()
		in.whole = append(in.whole[:0], p...)
		in.r = in.w
		return false, nil
	}
	in.r += int(h.length)
	return true, in.onFrame(h, p[:h.length])
}

// readPreface checks the client preface (RFC 9113, section 3.4).
func (in *inbound) readPreface(p []byte) (bool, error) {
	n := min(in.preface, len(p))
	at := len(clientPreface) - in.preface
	if string(p[:n]) != clientPreface[at:at+n] {
		return false, connError(ProtocolError, "no HTTP/2 client preface")
	}
	in.preface -= n
	in.r += n
	return in.preface == 0, nil
}

// readWhole collects a frame that is spread over buffers.
func (in *inbound) readWhole(p []byte) (bool, error) {
	n := min(int(in.wholeH.length)-len(in.whole), len(p))
	in.whole = append(in.whole, p[:n]...)
	in.r += n
	if len(in.whole) < int(in.wholeH.length) {
		return false, nil
	}
	in.waits = false
	if !in.block.open {
		in.stopHeaderTimer()
	}
	err := in.onFrame(in.wholeH, in.whole)
	if cap(in.whole) > smallBuffer {
		in.whole = nil
	}
	return true, err
}

// checkOrder checks what must hold for any frame before its payload is looked at.
func (in *inbound) checkOrder(h frameHeader) error {
	switch {
	case h.length > in.c.cfg.MaxFrameBytes:
		return connError(FrameSizeError, "frame larger than SETTINGS_MAX_FRAME_SIZE")
	case !in.settings && (h.kind != frameSettings || h.has(flagAck)):
		return connError(ProtocolError, "first frame is not SETTINGS") // RFC 9113, section 3.4
	case in.block.open && (h.kind != frameContinuation || h.streamID != in.block.id):
		return connError(ProtocolError, "header block interrupted by another frame") // section 4.3
	}
	in.settings = true
	return nil
}

// maxGoAwayBytes bounds what is collected of a GOAWAY: its debug data is for people.
const maxGoAwayBytes = 16 << 10

// checkLength bounds what is collected for a frame that is not DATA.
func (in *inbound) checkLength(h frameHeader) error {
	switch h.kind {
	case frameHeaders, framePushPromise, frameContinuation:
		const around = 256 + 6 // padding, its length, priority
		if int(h.length) > in.c.cfg.MaxHeaderBlockBytes+around {
			return connError(EnhanceYourCalm, "header block too long")
		}
	case framePing, framePriority, frameRSTStream, frameWindowUpdate:
		if h.length > 16 {
			return connError(FrameSizeError, "frame of a fixed size with another length")
		}
	case frameSettings:
		if int(h.length)/6 > in.c.cfg.MaxSettings && h.length%6 == 0 {
			return connError(EnhanceYourCalm, "too many settings in one frame")
		}
	case frameGoAway:
		if h.length > maxGoAwayBytes {
			return connError(EnhanceYourCalm, "GOAWAY with too much debug data")
		}
	}
	return nil
}

// onFrame handles a complete frame other than DATA.
func (in *inbound) onFrame(h frameHeader, p []byte) error {
	switch c := in.c; h.kind {
	case frameHeaders:
		return in.onHeaders(h, p)
	case frameContinuation:
		return in.onContinuation(h, p)
	case framePushPromise:
		return in.onPushPromise(h, p)
	case framePriority:
		return in.onPriority(h, p)
	case frameRSTStream:
		return c.onRSTStream(h, p)
	case frameSettings:
		return c.onSettings(h, p)
	case framePing:
		return c.onPing(h, p)
	case frameGoAway:
		return c.onGoAway(h, p)
	case frameWindowUpdate:
		return c.onWindowUpdate(h, p)
	}
	panic("BUG: frame type without a method")
}

// onUnknown counts a frame of an unknown type, whose payload is skipped. RFC 9113, section 5.5:
// "Implementations MUST discard frames that have unknown or unsupported types."
func (in *inbound) onUnknown() error {
	return in.odd(controlFrame, 1)
}

// onPriority checks PRIORITY and drops it (RFC 9113, section 5.3.2).
func (in *inbound) onPriority(h frameHeader, p []byte) error {
	switch {
	case h.streamID == 0:
		return connError(ProtocolError, "PRIORITY on stream 0")
	case len(p) != 5:
		return streamError(h.streamID, FrameSizeError, "PRIORITY length not 5")
	case binary.BigEndian.Uint32(p)&maxStreamID == h.streamID:
		return streamError(h.streamID, ProtocolError, "stream depends on itself")
	}
	return in.odd(controlFrame, 1)
}

// onRSTStream ends a stream at the peer's wish (RFC 9113, section 6.4).
func (c *Conn) onRSTStream(h frameHeader, p []byte) error {
	if h.streamID == 0 {
		return connError(ProtocolError, "RST_STREAM on stream 0")
	}
	if len(p) != 4 {
		return connError(FrameSizeError, "RST_STREAM length not 4")
	}
	c.stats.resetsIn.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle(h.streamID) {
		return connError(ProtocolError, "RST_STREAM on an idle stream")
	}
	s := c.streams[h.streamID]
	if s == nil {
		if c.lateResets > 0 { // it was on its way when the stream ended
			c.lateResets--
			return nil
		}
		return c.in.odd(controlFrame, 1)
	}
	early := !s.own && !s.answered
	c.endReset(s, &StreamError{StreamID: s.id, Code: ErrCode(binary.BigEndian.Uint32(p)), By: Peer})
	if early {
		return c.in.odd(peerReset, 1)
	}
	return nil
}

// onWindowUpdate adds send credit (RFC 9113, section 6.9).
func (c *Conn) onWindowUpdate(h frameHeader, p []byte) error {
	if len(p) != 4 {
		return connError(FrameSizeError, "WINDOW_UPDATE length not 4")
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.allowance > 0 {
		c.allowance--
	} else if err := c.in.odd(windowUpdate, 1); err != nil {
		return err
	}
	if h.streamID == 0 {
		if n == 0 {
			return connError(ProtocolError, "WINDOW_UPDATE of 0 on the connection")
		}
		if !c.sendWindow.grant(n) {
			return connError(FlowControlError, "connection window above 2^31-1")
		}
		if !c.busy && c.sendable() {
			c.passRole()
		}
		return nil
	}
	if c.idle(h.streamID) {
		return connError(ProtocolError, "WINDOW_UPDATE on an idle stream")
	}
	s := c.streams[h.streamID]
	if s == nil {
		return nil // it may have been on its way when the stream ended (section 5.1)
	}
	if s.state == stateReservedRemote {
		return connError(ProtocolError, "WINDOW_UPDATE on a promised stream")
	}
	if n == 0 {
		return streamError(s.id, ProtocolError, "WINDOW_UPDATE of 0")
	}
	if !s.send.grant(n) {
		return streamError(s.id, FlowControlError, "stream window above 2^31-1")
	}
	c.maySend(s)
	return nil
}

// judge ends what an error of parsing ends: the stream, or by returning it the connection.
func (c *Conn) judge(err error) *ConnError {
	var serr *StreamError
	var cerr *ConnError
	switch {
	case errors.As(err, &serr):
		return c.resetOffender(serr)
	case errors.As(err, &cerr):
		return cerr
	}
	panic("BUG: parsing returned an error of no kind")
}

// resetOffender answers a stream error with RST_STREAM, and counts it: a peer that makes us reset many
// streams is up to no good (CVE-2019-9514, CVE-2025-8671).
func (c *Conn) resetOffender(err *StreamError) *ConnError {
	c.mu.Lock()
	cost := 1.0
	if err.Code == StreamClosed {
		cost = closedResetCost
	}
	if s := c.streams[err.StreamID]; s != nil {
		switch {
		case !s.own && s.inUse:
			cost = handlerResetCost
		case !s.own && !s.wasReset:
			c.in.refuse(400, err.Reason)
		}
		s.abort(err)
		defer s.dropReceived(err)
	} else {
		c.queueReset(err.StreamID, err.Code)
		c.forgetReset(err.StreamID)
	}
	if c.in.data.stream != nil && c.in.data.stream.id == err.StreamID {
		c.in.data.stream = nil
	}
	fits := c.queueAnswer()
	c.mu.Unlock()
	c.log.Debug("stream reset", "conn", c.nc.RemoteAddr(), "stream", err.StreamID, "err", err)
	if !fits {
		return connError(EnhanceYourCalm, "too many answers queued")
	}
	if c.in.odd(ownReset, cost) != nil {
		return connError(EnhanceYourCalm, "too many stream errors; last: "+err.Reason)
	}
	return nil
}
