package h2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Push promises a request on behalf of the peer (RFC 9113, section 8.4) and returns the stream on which
// it is answered, with Respond and Write. The stream it is called on must be open and the peer's; the
// promise must be safe and without content (GET or HEAD). Errors: ErrPushDisabled, what is wrong with
// the promise, that the peer has as many promises as it takes, or why the stream ended.
func (s *Stream) Push(promise *Header) (*Stream, error) {
	if promise.Method != "GET" && promise.Method != "HEAD" || promise.Status != 0 {
		return nil, fmt.Errorf("promise of method %q; only GET and HEAD can be pushed", promise.Method)
	}
	if promise.Authority == "" {
		return nil, errors.New("promise without authority")
	}
	if reason := promise.check(); reason != "" {
		return nil, fmt.Errorf("malformed promise: %s", reason)
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.asks || s.own || !c.peer.push:
		return nil, ErrPushDisabled
	case s.werr != nil:
		return nil, s.werr
	case !s.state.canSend():
		return nil, errWriteClosed
	case c.draining || c.peerGoAway || c.nextID > maxStreamID-reservedIDs:
		return nil, ErrDraining
	case c.slots() <= 0:
		return nil, ErrTooManyPromises
	}
	p := c.newStream(c.nextID, true, promise)
	p.state = stateReservedLocal
	p.inUse = true
	p.eof = true // nothing can come
	c.nextID += 2
	c.addStream(p)
	prefix := binary.BigEndian.AppendUint32(nil, p.id)
	c.queueHeaders(framePushPromise, 0, s.id, prefix, promise.each)
	c.stats.opened.Add(1)
	c.flush()
	return p, nil
}

// ErrTooManyPromises is returned by Stream.Push while the peer has as many promised streams as its
// SETTINGS_MAX_CONCURRENT_STREAMS allows.
var ErrTooManyPromises = errors.New("peer accepts no more promised streams now")

// promised handles a complete PUSH_PROMISE (RFC 9113, section 6.6).
func (c *Conn) promised(b *openBlock) error {
	c.mu.Lock()
	parent := c.streams[b.id]
	switch {
	case c.isOwnID(b.promised) || b.promised <= c.lastPeerID:
		c.mu.Unlock()
		return connError(ProtocolError, "promise of a stream id that cannot be promised")
	case parent == nil && !c.resetRecently(b.id) || !c.isOwnID(b.id):
		c.mu.Unlock()
		return connError(ProtocolError, "promise on a stream that we have not opened or that has ended")
	case parent != nil && !parent.state.canReceive():
		c.mu.Unlock()
		return connError(ProtocolError, "promise on a stream that the peer has ended")
	}
	c.lastPeerID = b.promised
	if parent != nil && parent.connect {
		defer c.mu.Unlock()
		c.queueReset(b.promised, Cancel)
		c.forgetReset(b.promised)
		return streamError(parent.id, ProtocolError, "promise on a tunnel") // RFC 9113, section 8.5
	}
	reason := b.checkKind(requestBlock)
	code := NoError
	switch {
	case b.over || reason != "" || b.h.Method != "GET" && b.h.Method != "HEAD" || b.h.Authority == "" || b.length > 0:
		c.mu.Unlock()
		// RFC 9113, section 8.4: a promise that is not safe, has content or has no :authority is a stream
		// error PROTOCOL_ERROR.
		return streamError(b.promised, ProtocolError, "promise that is malformed or not safe: "+reason)
	case parent == nil || parent.userDone || parent.hooks == nil && c.cfg.OnPush == nil:
		code = Cancel
	case !c.admit():
		code = RefusedStream
	}
	if code != NoError {
		c.queueReset(b.promised, code)
		c.forgetReset(b.promised)
		fits := c.queueAnswer()
		c.mu.Unlock()
		if !fits {
			return connError(EnhanceYourCalm, "too many promises that were not wanted")
		}
		return c.in.odd(controlFrame, 1)
	}
	h := b.h
	p := c.newStream(b.promised, false, &h)
	p.asks = true
	p.state = stateReservedRemote
	p.inUse = true
	c.addStream(p)
	c.stats.accepted.Add(1)
	hooks := parent.hooks
	c.mu.Unlock()
	if hooks != nil && (hooks.wantsPush() || c.cfg.OnPush == nil) {
		hooks.promised(&h, p)
	} else {
		c.cfg.OnPush(parent, &h, p)
	}
	return nil
}
