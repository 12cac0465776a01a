package h2

import (
	"encoding/binary"
	"time"
)

// openBlock is the header block being received (RFC 9113, section 4.3).
type openBlock struct {
	open          bool
	kind          frameType // HEADERS or PUSH_PROMISE
	id            uint32    // stream of the frame
	promised      uint32    // PUSH_PROMISE: the promised stream
	endStream     bool
	selfDependent bool
	encoded       int // bytes of fragments
	continuations int
	decoded       int  // bytes of the list (section 6.5.2)
	count         int  // fields
	over          bool // more than is accepted: decoded on, but not kept
	headerBlock
}

// onField is called by the decoder for every field.
func (in *inbound) onField(f Field) {
	b := &in.block
	b.decoded += int(f.Size())
	b.count++
	if b.decoded > int(in.c.cfg.MaxHeaderListBytes) || b.count > in.c.cfg.MaxHeaderFields {
		b.over = true
		b.h.Fields = nil
		return
	}
	b.add(f)
}

// onHeaders begins the head of a message or its trailers (RFC 9113, section 6.2).
func (in *inbound) onHeaders(h frameHeader, p []byte) error {
	if h.streamID == 0 {
		return connError(ProtocolError, "HEADERS on stream 0")
	}
	p, cerr := unpad(h, p)
	if cerr != nil {
		return cerr
	}
	in.block = openBlock{open: true, kind: frameHeaders, id: h.streamID, endStream: h.has(flagEndStream)}
	if h.has(flagPriority) {
		if len(p) < 5 {
			return connError(FrameSizeError, "HEADERS too short for its priority")
		}
		in.block.selfDependent = binary.BigEndian.Uint32(p)&maxStreamID == h.streamID
		p = p[5:]
	}
	return in.fragment(h, p)
}

// onContinuation goes on with a header block (RFC 9113, section 6.10).
func (in *inbound) onContinuation(h frameHeader, p []byte) error {
	if !in.block.open { // that the stream is the same was checked by checkOrder
		return connError(ProtocolError, "CONTINUATION without HEADERS")
	}
	if in.block.continuations++; in.block.continuations > in.c.cfg.MaxContinuations {
		return connError(EnhanceYourCalm, "too many CONTINUATION frames")
	}
	return in.fragment(h, p)
}

// onPushPromise begins a promise (RFC 9113, section 6.6).
func (in *inbound) onPushPromise(h frameHeader, p []byte) error {
	if !in.c.mayAsk() || !in.c.cfg.EnablePush {
		return connError(ProtocolError, "PUSH_PROMISE that was not asked for")
	}
	p, cerr := unpad(h, p)
	if cerr != nil {
		return cerr
	}
	if len(p) < 4 {
		return connError(FrameSizeError, "PUSH_PROMISE too short")
	}
	in.block = openBlock{open: true, kind: framePushPromise, id: h.streamID,
		promised: binary.BigEndian.Uint32(p) & maxStreamID}
	return in.fragment(h, p[4:])
}

// fragment decodes a part of the block, and handles the message when it is the last.
func (in *inbound) fragment(h frameHeader, p []byte) error {
	b, cfg := &in.block, in.c.cfg
	if b.encoded += len(p); b.encoded > cfg.MaxHeaderBlockBytes {
		return connError(EnhanceYourCalm, "header block too long")
	}
	if _, err := in.dec.Write(p); err != nil {
		return &ConnError{Code: CompressionError, By: Local, Reason: "header block", Err: err}
	}
	if b.decoded > cfg.MaxDecodedBytes {
		return connError(EnhanceYourCalm, "header list too long")
	}
	if !h.has(flagEndHeaders) {
		in.startHeaderTimer()
		return nil
	}
	in.stopHeaderTimer()
	if err := in.dec.Close(); err != nil {
		return &ConnError{Code: CompressionError, By: Local, Reason: "header block", Err: err}
	}
	done := *b
	in.block = openBlock{}
	switch {
	case done.kind == framePushPromise:
		return in.c.promised(&done)
	case in.c.isOwnID(done.id):
		return in.c.answered(&done)
	}
	return in.c.requested(&done)
}

func (in *inbound) startHeaderTimer() {
	c := in.c
	if in.headerTimer == nil && c.cfg.HeaderTimeout > 0 {
		in.headerTimer = time.AfterFunc(c.cfg.HeaderTimeout, func() {
			c.fail(connError(EnhanceYourCalm, "frame or header block not complete in time"))
		})
	}
}

func (in *inbound) stopHeaderTimer() {
	if in.headerTimer != nil {
		in.headerTimer.Stop()
		in.headerTimer = nil
	}
}

// requested handles a request, or the trailers of one.
func (c *Conn) requested(b *openBlock) error {
	c.mu.Lock()
	s := c.streams[b.id]
	if s != nil {
		c.mu.Unlock()
		if s.asks {
			return c.response(s, b) // the answer on a promised stream
		}
		return c.trailers(s, b)
	}
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil // a write has failed meanwhile: nobody would end the stream
	case !c.mayServe():
		if c.idle(b.id) {
			return connError(ProtocolError, "HEADERS on a stream that was not promised")
		}
		return c.lateHeaders(b)
	case b.id <= c.lastPeerID:
		return c.lateHeaders(b)
	case c.draining && b.id > c.goAwayID:
		return nil // RFC 9113, section 6.8: ignored, the block was decoded
	}
	c.lastPeerID = b.id
	if !c.admit() {
		c.stats.refused.Add(1)
		if c.peerOpen >= int(c.cfg.MaxStreams) { // else it keeps to the limit, and our work lags behind
			c.refusedNow++
		}
		if c.refusedNow > c.maxRefused() {
			return connError(EnhanceYourCalm, "streams opened beyond twice the limit")
		}
		c.queueReset(b.id, RefusedStream)
		c.forgetReset(b.id)
		return nil
	}
	c.refusedNow = 0
	return c.accept(b)
}

// maxRefused is how many streams in a row are refused for being too many before the connection ends. A peer that
// does not know our SETTINGS yet may open as many as we would. Called with mu held.
func (c *Conn) maxRefused() int {
	if !c.ownSettled {
		return int(max(c.cfg.MaxStreams, assumedMaxStreams))
	}
	return int(c.cfg.MaxStreams)
}

// lateHeaders is HEADERS on a stream that has ended (RFC 9113, section 5.1). Called with mu held.
func (c *Conn) lateHeaders(b *openBlock) error {
	if !c.resetRecently(b.id) {
		return connError(StreamClosed, "HEADERS on a closed stream")
	}
	return c.in.odd(controlFrame, 1)
}

// refusal is a request that was refused before the handler saw it.
type refusal struct {
	status int
	reason string
}

// refuse notes a refusal for Config.OnRefused.
func (in *inbound) refuse(status int, reason string) {
	if in.c.cfg.OnRefused != nil {
		in.refused = append(in.refused, refusal{status, reason})
	}
}

// refuseMalformed is the error of a request that is malformed.
func (c *Conn) refuseMalformed(b *openBlock, reason string) error {
	c.in.refuse(400, reason)
	return streamError(b.id, ProtocolError, reason)
}

// accept takes a new stream, which handOver gives to the handler. Called with mu held.
func (c *Conn) accept(b *openBlock) error {
	reason := b.checkKind(requestBlock)
	switch {
	case b.over:
		return c.refuseTooLarge(b)
	case reason != "":
		if b.badAuthority {
			// RFC 9113, section 8.1.1: "a server MAY send an HTTP response prior to closing or resetting the
			// stream"; who mistypes a destination gets an answer that says so.
			h := Header{Status: 400}
			c.queueHeaders(frameHeaders, flagEndStream, b.id, nil, h.each)
		}
		return c.refuseMalformed(b, reason)
	case b.selfDependent:
		return c.refuseMalformed(b, "stream depends on itself")
	case b.h.Protocol != "" && !c.cfg.EnableConnectProtocol:
		return c.refuseMalformed(b, ":protocol without SETTINGS_ENABLE_CONNECT_PROTOCOL")
	case b.hasLength && b.length > 0 && b.endStream && b.h.Method != "CONNECT":
		return c.refuseMalformed(b, "END_STREAM before the content-length announced")
	case c.cfg.Handler == nil:
		c.queueReset(b.id, RefusedStream)
		c.forgetReset(b.id)
		return nil
	}
	h := b.h
	s := c.newStream(b.id, false, &h)
	s.state = stateIdle.recvHeaders()
	s.gotHead = true
	if b.hasLength && h.Method != "CONNECT" {
		s.length = b.length
	}
	c.addStream(s)
	if b.endStream {
		c.ended(s, false)
		s.eof = true
	}
	c.in.fresh = append(c.in.fresh, s)
	if b.id > maxStreamID-reservedIDs && !c.draining {
		c.draining, c.goAwayID = true, maxStreamID
		c.ctrl = appendGoAway(c.ctrl, maxStreamID, NoError, "stream ids run out")
	}
	return nil
}

// refuseTooLarge answers 431 without having kept the request (RFC 6585, section 5). Called with mu held.
func (c *Conn) refuseTooLarge(b *openBlock) error {
	if !c.queueAnswer() {
		return connError(EnhanceYourCalm, "too many answers queued")
	}
	c.in.refuse(431, "header list too long")
	h := Header{Status: 431}
	c.queueHeaders(frameHeaders, flagEndStream, b.id, nil, h.each)
	if !b.endStream {
		c.queueReset(b.id, NoError)
		c.forgetReset(b.id)
	}
	return c.in.odd(glitch, 1)
}

// answered handles HEADERS on a stream that we opened.
func (c *Conn) answered(b *openBlock) error {
	c.mu.Lock()
	s := c.streams[b.id]
	if s == nil {
		defer c.mu.Unlock()
		if c.idle(b.id) {
			return connError(ProtocolError, "HEADERS on an idle stream")
		}
		return c.lateHeaders(b)
	}
	c.mu.Unlock()
	if !s.asks {
		return connError(ProtocolError, "HEADERS on a promise of ours")
	}
	return c.response(s, b)
}

// response handles an interim or final response, or its trailers (RFC 9113, section 8.1).
func (c *Conn) response(s *Stream, b *openBlock) error {
	if s.gotHead {
		return c.trailers(s, b)
	}
	if b.over {
		return streamError(s.id, ProtocolError, "response header list too long")
	}
	if reason := b.checkKind(responseBlock); reason != "" {
		return streamError(s.id, ProtocolError, reason)
	}
	h := b.h
	if h.Status < 200 {
		return c.informed(s, b, &h)
	}
	s.gotHead = true
	s.mu.Lock()
	if noBody := s.head || h.Status == 204 || h.Status == 304; b.hasLength && !noBody &&
		!(s.connect && h.Status < 300) {
		s.length = b.length
	}
	missing := s.length > 0 && b.endStream
	s.mu.Unlock()
	if missing {
		return streamError(s.id, ProtocolError, "END_STREAM before the content-length announced")
	}
	c.mu.Lock()
	s.state = s.state.recvHeaders()
	if b.endStream {
		c.ended(s, false)
	}
	c.mu.Unlock()
	s.mu.Lock()
	s.resp = &h
	s.eof = s.eof || b.endStream // together, so that whoever waits for the response sees the end as well
	s.rcond.Broadcast()
	s.wakeReader()
	tell := s.tellHead()
	s.mu.Unlock()
	if tell != nil {
		tell()
	}
	return nil
}

// informed handles a 1xx response.
func (c *Conn) informed(s *Stream, b *openBlock, h *Header) error {
	switch s.informs++; {
	case h.Status == 101:
		return streamError(s.id, ProtocolError, "101 does not exist in HTTP/2") // RFC 9113, section 8.6
	case b.endStream:
		return streamError(s.id, ProtocolError, "interim response with END_STREAM")
	case int(s.informs) > c.cfg.MaxInform:
		return streamError(s.id, EnhanceYourCalm, "too many interim responses")
	}
	if c.cfg.OnInform != nil {
		c.cfg.OnInform(s, h)
	}
	if hooks := c.hooksOf(s); hooks != nil {
		hooks.informed(h)
	}
	return nil
}

func (c *Conn) hooksOf(s *Stream) streamHooks {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.hooks
}

// trailers handles the second header block of a message.
func (c *Conn) trailers(s *Stream, b *openBlock) error {
	c.mu.Lock()
	state := s.state
	c.mu.Unlock()
	reason := b.checkKind(trailerBlock)
	s.mu.Lock()
	missing := s.length > 0
	s.mu.Unlock()
	switch {
	case !state.canReceive():
		return streamError(s.id, StreamClosed, "HEADERS after END_STREAM")
	case !b.endStream:
		return streamError(s.id, ProtocolError, "trailers without END_STREAM")
	case s.connected():
		// RFC 9113, section 8.5: "Frame types other than DATA or stream management frames MUST NOT be sent
		// on a connected stream and MUST be treated as a stream error if received."
		return streamError(s.id, ProtocolError, "trailers on a tunnel")
	case reason != "":
		return streamError(s.id, ProtocolError, reason)
	case missing:
		return streamError(s.id, ProtocolError, "DATA and content-length differ")
	}
	if !b.over {
		s.mu.Lock()
		s.trailer = b.h.Fields
		s.mu.Unlock()
	}
	c.receivedEnd(s)
	return nil
}

// connected reports whether the stream is a tunnel that was not refused.
func (s *Stream) connected() bool {
	if !s.connect {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resp == nil || s.resp.Status < 300
}
