package h2

import "fmt"

// wholeBytes is the most content that is sent in one piece with a header or END_STREAM: it is copied into
// the queue of control frames, whose buffer is to stay small.
const wholeBytes = smallBuffer - 1<<10

// respondWith sends the head of a final response, and with it p and, with end, END_STREAM, in one write.
// It reports false, and has sent nothing, where p is too long or would have to wait for a window or for
// other streams.
func (s *Stream) respondWith(h *Header, p []byte, end bool) (bool, error) {
	if reason := h.check(); reason != "" {
		return false, fmt.Errorf("malformed response: %s", reason)
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.asks || s.answered || h.Status < 200 || !s.fits(len(p)) {
		return false, nil // Respond says what is wrong
	}
	s.answer(h)
	c.queueHeaders(frameHeaders, 0, s.id, nil, h.each)
	s.queueData(p, end)
	c.flush()
	return true, nil
}

// hasWindow reports whether the next Write will send something: a header that is held goes with that.
func (s *Stream) hasWindow() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.send.window > 0 && s.werr == nil && !s.wdeadline.passed()
}

// sendWhole sends p and END_STREAM in one write, on the same terms.
func (s *Stream) sendWhole(p []byte) bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.fits(len(p)) || !s.state.canSend() {
		return false
	}
	s.queueData(p, true)
	c.flush()
	return true
}

// fits reports whether n bytes can go out before anything else of this and other streams. Called with
// c.mu held.
func (s *Stream) fits(n int) bool {
	c := s.c
	return n <= wholeBytes && len(c.ctrl) < batchBytes && n <= int(c.peer.maxFrame) && int64(n) <= s.send.window && int64(n) <= c.sendWindow.window &&
		c.ring.empty() && !s.out.active && s.werr == nil && !s.wdeadline.passed()
}

// queueData puts p, which fits, behind the control frames that are queued. Called with c.mu held.
func (s *Stream) queueData(p []byte, end bool) {
	c := s.c
	var flags uint8
	if end {
		flags = flagEndStream
	}
	c.ctrl = append(appendFrameHeader(c.ctrl, len(p), frameData, flags, s.id), p...)
	s.sent += int64(len(p))
	s.send.take(len(p))
	c.sendWindow.take(len(p))
	c.allowance = min(c.allowance+windowUpdatesPerData, maxAllowance)
	if end {
		c.ended(s, true)
	}
}
