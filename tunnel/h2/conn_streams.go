package h2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// reservedIDs is how many stream ids are left unused at the end of their range, so that a connection is
// replaced well before it cannot open a stream (RFC 9113, section 5.1.1).
const reservedIDs = 1 << 16

// Open sends the head h of a request and, with endStream, nothing after it. It does not wait for the
// answer: see Stream.Response. It blocks while the peer's limit of concurrent streams is reached, until
// ctx ends. Errors: ErrDraining when the connection takes no more streams (the request was not sent), a
// *ConnError, ctx's, or what is wrong with h. Only the client role opens streams, unless Config.Bidirectional is set;
// a server pushes.
func (c *Conn) Open(ctx context.Context, h *Header, endStream bool) (*Stream, error) {
	return c.openWith(ctx, h, endStream, nil)
}

// OpenHeld is Open for a head that may go out together with the first bytes: nothing is sent before the next
// Write on the stream, or Flush, one of which must follow at once.
func (c *Conn) OpenHeld(ctx context.Context, h *Header) (*Stream, error) {
	return c.queueOpen(ctx, h, false, nil)
}

// Flush sends what is held; see OpenHeld. It waits for nothing but the connection.
func (s *Stream) Flush() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.flush()
}

// openWith is Open with hooks that stand before the peer can answer.
func (c *Conn) openWith(ctx context.Context, h *Header, endStream bool, hooks streamHooks) (*Stream, error) {
	s, err := c.queueOpen(ctx, h, endStream, hooks)
	if err == nil {
		s.Flush()
	}
	return s, err
}

// queueOpen makes a stream and queues its head.
func (c *Conn) queueOpen(ctx context.Context, h *Header, endStream bool, hooks streamHooks) (*Stream, error) {
	if !c.mayAsk() {
		return nil, errors.New("a server opens no stream (RFC 9113, section 5.1.1); use Stream.Push")
	}
	if h.Status != 0 {
		return nil, errors.New("request with a status")
	}
	if reason := h.check(); reason != "" {
		return nil, fmt.Errorf("malformed request: %s", reason)
	}
	if h.Protocol != "" {
		if err := c.WaitSettings(ctx); err != nil {
			return nil, err
		}
		if !c.PeerConnectProtocol() {
			return nil, ErrNoConnectProtocol
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := waitLocked(ctx, c.openCond, func() bool { return c.closedForOpen() != nil || c.slots() > 0 })
	if gone := c.closedForOpen(); gone != nil {
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("wait for a free stream: %w", err)
	}
	if limit := c.peer.maxHeaderList; h.listBytes() > int(min(limit, 1<<30)) {
		c.openCond.Signal() // the slot is another's
		return nil, fmt.Errorf("header list of %d bytes, the peer accepts %d", h.listBytes(), limit)
	}
	s := c.newStream(c.nextID, true, h)
	s.asks = true
	s.hooks, s.inUse = hooks, true
	c.nextID += 2
	s.state = stateIdle.sendHeaders()
	c.addStream(s)
	var flags uint8
	if endStream {
		flags = flagEndStream
		c.ended(s, true)
	}
	c.queueHeaders(frameHeaders, flags, s.id, nil, h.each)
	c.stats.opened.Add(1)
	return s, nil
}

// closedForOpen is why no stream can be opened any more, nil where one may. Called with mu held.
func (c *Conn) closedForOpen() error {
	switch {
	case c.err != nil:
		return c.err
	case c.sendErr != nil:
		return c.sendErr
	case c.draining || c.peerGoAway || c.nextID > maxStreamID-reservedIDs:
		return ErrDraining
	}
	return nil
}

// slots is how many more streams the peer's limit allows. Called with mu held.
func (c *Conn) slots() int { return int(min(c.peer.maxStreams, 1<<30)) - c.ownOpen }

// Slots returns how many more streams Open would open without waiting; 0 when draining or ended.
func (c *Conn) Slots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closedForOpen() != nil || !c.mayAsk() {
		return 0
	}
	return max(0, c.slots())
}

// PeerMaxStreams returns how many streams the peer allows at once, 0 until its SETTINGS are known.
func (c *Conn) PeerMaxStreams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.peerSettled {
		return 0
	}
	return int(min(c.peer.maxStreams, 1<<30))
}

// addStream enters a stream into the books. Called with mu held.
func (c *Conn) addStream(s *Stream) {
	c.streams[s.id] = s
	c.idleSince = time.Time{}
	if s.own {
		c.ownOpen++
	} else {
		c.peerOpen++
	}
}

// ended notes END_STREAM, sent or received. Called with mu held.
func (c *Conn) ended(s *Stream, sent bool) {
	if s.wireDone {
		return
	}
	if sent {
		s.state = s.state.sendEnd()
	} else {
		s.state = s.state.recvEnd()
	}
	if s.state == stateClosed {
		c.removeStream(s)
	}
}

// endReset ends both directions of a stream with err. Called with mu held.
func (c *Conn) endReset(s *Stream, err error) {
	if s.wireDone {
		return
	}
	s.wasReset = true
	if !s.inUse {
		s.userDone = true // it never gets a handler, see handle
	}
	s.state = s.state.reset()
	if s.werr == nil {
		s.werr = err
	}
	c.ring.remove(s)
	s.wcond.Broadcast()
	c.removeStream(s)
	s.endReceive(err)
	if s.hooks != nil {
		s.hooks.ended()
	}
}

// removeStream takes a closed stream off the books. The slot of a peer's stream stays taken until its
// user has called Close. Called with mu held.
func (c *Conn) removeStream(s *Stream) {
	s.wireDone = true
	c.lateResets = min(c.lateResets+1, recentPerStream*int(c.cfg.MaxStreams))
	if !s.userDone {
		if c.unread == nil {
			c.unread = make(map[*Stream]struct{})
		}
		c.unread[s] = struct{}{}
	}
	delete(c.streams, s.id)
	if s.own {
		c.ownOpen--
		c.openCond.Signal()
	} else {
		c.peerOpen--
		if !s.userDone {
			s.held = true
			if s.wasReset {
				c.peerHeld++
			} else {
				c.peerTail++
			}
		}
	}
	c.noteIdle()
}

// userClosed frees the slot of a stream whose user is done with it. Called with mu held.
func (c *Conn) userClosed(s *Stream) {
	delete(c.unread, s)
	c.leaveBudget()
	if !s.held {
		return
	}
	s.held = false
	if s.wasReset {
		c.peerHeld--
	} else {
		c.peerTail--
	}
	c.noteIdle()
}

func (c *Conn) noteIdle() {
	if len(c.streams)+c.peerHeld+c.peerTail == 0 {
		c.idleSince = time.Now()
		c.openCond.Broadcast() // Drain waits for this
	}
}

// admit decides about one more stream of the peer: a reset stream holds its slot until the work behind
// it has ended (CVE-2023-44487, CVE-2025-8671), one that ended cleanly may linger a moment.
func (c *Conn) admit() bool {
	limit := int(c.cfg.MaxStreams)
	return c.peerOpen+c.peerHeld < limit && c.peerOpen+c.peerHeld+c.peerTail < 2*limit
}

// forgetReset remembers that we have reset a stream. Called with mu held.
func (c *Conn) forgetReset(id uint32) {
	r := c.recentOf(id)
	if limit := recentPerStream * int(c.cfg.MaxStreams); len(r.ids) < limit {
		r.ids = append(r.ids, id)
		return
	}
	r.ids[r.next] = id
	r.next = (r.next + 1) % len(r.ids)
}

func (c *Conn) resetRecently(id uint32) bool { return slices.Contains(c.recentOf(id).ids, id) }

func (c *Conn) recentOf(id uint32) *recent {
	if c.isOwnID(id) {
		return &c.recentReset[1]
	}
	return &c.recentReset[0]
}

// idle reports whether the stream id was never used. Called with mu held.
func (c *Conn) idle(id uint32) bool {
	if c.isOwnID(id) {
		return id >= c.nextID
	}
	if c.draining && id > c.goAwayID {
		return false // it was ignored, as our GOAWAY says
	}
	return id > c.lastPeerID
}

// mayAsk reports whether this end may open streams with requests, and be promised some.
func (c *Conn) mayAsk() bool { return c.client || c.cfg.Bidirectional }

// mayServe reports whether the peer may.
func (c *Conn) mayServe() bool { return !c.client || c.cfg.Bidirectional }

// isOwnID reports whether streams with this id are opened by us: clients use odd ids (RFC 9113,
// section 5.1.1).
func (c *Conn) isOwnID(id uint32) bool { return id%2 == 1 == c.client }

// longestStalled returns the stream whose reader has let bytes lie for longest, and since when (UnixNano);
// nil where none has done so since before.
func (c *Conn) longestStalled(before int64) (victim *Stream, since int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	look := func(s *Stream) {
		s.mu.Lock()
		at := s.stalledAt
		s.mu.Unlock()
		if at != 0 && at <= before && (victim == nil || at < since) {
			victim, since = s, at
		}
	}
	for _, s := range c.streams {
		look(s)
	}
	for s := range c.unread {
		look(s)
	}
	return victim, since
}

// leaveBudget ends the watch over a connection that has ended and holds no unread bytes. Called with mu
// held.
func (c *Conn) leaveBudget() {
	if c.err != nil && len(c.unread) == 0 {
		c.cfg.Budget.leave(c)
	}
}

// Respond sends the head of the final response to a stream of the peer, or to a promise of ours; with
// endStream nothing follows. It may be called once.
func (s *Stream) Respond(h *Header, endStream bool) error {
	if h.Status < 200 {
		return fmt.Errorf("final response with status %d", h.Status)
	}
	return s.sendHead(h, endStream, false)
}

// respondHeld is Respond for a head that goes out with the bytes written next, which must follow.
func (s *Stream) respondHeld(h *Header) error { return s.sendHead(h, false, true) }

// Inform sends an interim (1xx) response, before Respond. 101 does not exist in HTTP/2 (RFC 9113,
// section 8.6).
func (s *Stream) Inform(h *Header) error {
	if h.Status < 100 || h.Status > 199 || h.Status == 101 {
		return fmt.Errorf("interim response with status %d", h.Status)
	}
	return s.sendHead(h, false, false)
}

func (s *Stream) sendHead(h *Header, endStream, hold bool) error {
	if reason := h.check(); reason != "" {
		return fmt.Errorf("malformed response: %s", reason)
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.asks:
		return errors.New("response sent by the side that asked")
	case s.werr != nil:
		return s.werr
	case s.answered:
		return errors.New("second final response")
	}
	if h.Status >= 200 {
		s.answer(h)
	}
	var flags uint8
	if endStream {
		flags = flagEndStream
		c.ended(s, true)
	}
	c.queueHeaders(frameHeaders, flags, s.id, nil, h.each)
	if !hold {
		c.flush()
	}
	return nil
}

// answer notes the head of the final response. Called with c.mu held.
func (s *Stream) answer(h *Header) {
	s.answered = true
	s.refused = h.Status >= 300
	s.state = s.state.sendHeaders()
}

// SendTrailers ends the sending side with trailer fields (RFC 9113, section 8.1). It waits for a Write
// under way. A tunnel (CONNECT) has no trailers.
func (s *Stream) SendTrailers(fields []Field) error {
	var b headerBlock
	for _, f := range fields {
		b.add(f)
	}
	if reason := b.checkKind(trailerBlock); reason != "" {
		return fmt.Errorf("malformed trailers: %s", reason)
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.connect && !s.refused {
		return errors.New("a tunnel has no trailers (RFC 9113, section 8.5)")
	}
	if err := s.awaitTurn(); err != nil {
		return err
	}
	c.ended(s, true)
	c.queueHeaders(frameHeaders, flagEndStream, s.id, nil, func(f func(Field)) {
		for _, x := range fields {
			f(x)
		}
	})
	c.flush()
	return nil
}
