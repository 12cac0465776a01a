package h2

import (
	"errors"
	"io"
	"os"
	"syscall"

	"culvert/tunnel/nowait"
)

// errWriteClosed is what Write returns after CloseWrite.
var errWriteClosed = errors.New("write after CloseWrite")

// Write sends p as DATA frames and returns how many bytes went out. It blocks while the peer's windows
// are empty (RFC 9113, section 5.2) or other streams have their turn, until the write deadline passes
// (os.ErrDeadlineExceeded), the stream is reset (*StreamError) or the connection ends (*ConnError). p is
// not kept. Several Writes at a time take turns.
func (s *Stream) Write(p []byte) (int, error) { return s.transmit(p, nil, false) }

// CloseWrite sends END_STREAM: the peer reads io.EOF after what was written before. Reading goes on. It
// waits for a Write under way.
func (s *Stream) CloseWrite() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.awaitTurn(); errors.Is(err, errWriteClosed) {
		return nil
	} else if err != nil {
		return err
	}
	// RFC 9113, section 6.9.1: frames "with zero length with the END_STREAM flag set (that is, an empty DATA
	// frame) MAY be sent if there is no available space in either flow-control window".
	c.ctrl = appendFrameHeader(c.ctrl, 0, frameData, flagEndStream, s.id)
	c.ended(s, true)
	c.flush()
	return nil
}

// awaitTurn waits for a Write under way and returns why nothing can be sent then. Called with c.mu held.
func (s *Stream) awaitTurn() error {
	for s.out.active && s.werr == nil && !s.wdeadline.passed() {
		s.wcond.Wait()
	}
	return s.sendErr()
}

// transmit sends p, which is frame[frameHeaderLen:] where frame is given, and with end END_STREAM in the
// last frame.
func (s *Stream) transmit(p, frame []byte, end bool) (n int, err error) {
	if len(p) == 0 && end {
		return 0, s.CloseWrite()
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.awaitTurn(); err != nil || len(p) == 0 {
		return 0, err
	}
	o := &s.out
	o.active, o.p, o.frame, o.end = true, p, frame, end
	c.enqueue(s)
	if !o.queued {
		c.flush() // a header may be held for these bytes, which must wait for window
	}
	for {
		if o.done() {
			break
		}
		if !o.inFlight {
			if err = s.sendErr(); err != nil {
				break
			}
			if !c.busy && o.queued && c.sendable() {
				c.writeRounds(s, foreignBatches)
				continue
			}
		}
		s.wcond.Wait()
	}
	n = len(p) - len(o.p)
	c.ring.remove(s)
	o.active, o.p, o.frame, o.end = false, nil, nil, false
	s.wcond.Broadcast() // another Write may wait for its turn, or CloseWrite
	if err != nil && !c.busy && c.sendable() {
		c.passRole() // it may have been passed to this Write
	}
	return n, err
}

// sendErr is why nothing can be sent now. Called with c.mu held.
func (s *Stream) sendErr() error {
	switch {
	case s.werr != nil:
		return s.werr
	case s.wdeadline.passed():
		return os.ErrDeadlineExceeded
	case s.c.err != nil:
		return s.c.err
	case s.c.sendErr != nil:
		return s.c.sendErr
	case !s.state.canSend():
		return errWriteClosed
	}
	return nil
}

// window returns how much the stream may send, at most limit bytes. With wait it waits until that is
// something, and for tinyPatience until it is more than a little.
func (s *Stream) window(limit int, wait bool) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for {
		if err := s.sendErr(); err != nil {
			return 0, err
		}
		if !wait || s.send.window > 0 && !(s.send.tiny(limit) && s.out.patience.hold(s.windowStays)) {
			return int(max(0, min(int64(limit), s.send.window))), nil
		}
		s.wcond.Wait()
	}
}

// ReadFrom sends what r delivers until io.EOF, and returns how much that was; it does not send
// END_STREAM. Bytes are read straight into a pooled buffer with room for the frame header. No buffer is
// held while the peer's window is empty, nor, where r is a socket (syscall.Conn), while r is silent.
// Errors of r are returned as *SourceError, others are the stream's.
func (s *Stream) ReadFrom(r io.Reader) (total int64, err error) {
	src := newSource(r)
	for {
		window, err := s.windowFor(src)
		if err != nil {
			return total, err
		}
		buf, n, err := src.read(window, s.c.cfg.Budget)
		if n > 0 {
			frame := buf.b[:frameHeaderLen+n]
			var sent int
			var werr error
			sent, werr = s.transmit(frame[frameHeaderLen:], frame, false)
			total += int64(sent)
			if werr != nil {
				buf.release()
				return total, werr
			}
		}
		if buf != nil {
			buf.release()
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, &SourceError{err}
		}
	}
}

// windowFor returns how much to read from src: what the peer's window holds. While that is empty it waits,
// for the source first: its end needs no window (RFC 9113, section 6.9.1). Of a source that cannot be looked
// at without reading, a little is read, and waits then. So it is with a tiny window, unless the source has
// no more than that.
func (s *Stream) windowFor(src *source) (int, error) {
	window, err := s.window(quantumBytes, false)
	if window >= tinyFrame || err != nil {
		return window, err
	}
	if src.raw == nil {
		return smallBuffer - frameHeaderLen, nil
	}
	switch n := src.peek(window + 1); {
	case n == 0 && window == 0:
		return smallBuffer - frameHeaderLen, nil
	case n <= window:
		return window, nil
	}
	return s.window(quantumBytes, true)
}

// SourceError is returned by Stream.ReadFrom when its source failed, as opposed to the stream.
type SourceError struct{ Err error }

// Error is the text of the source's error.
func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap returns the source's error.
func (e *SourceError) Unwrap() error { return e.Err }

// awaiter is a reader that can be waited for without a buffer.
type awaiter interface {
	// Await blocks until Read would not, or would fail.
	Await() error
}

// source reads into buffers that are taken when there is something to read.
type source struct {
	r    io.Reader
	raw  syscall.RawConn // nil: r is no socket
	wait awaiter         // nil: r is waited for by reading
	size int             // of the next buffer: grows with what one read brings

	// of the read under way; fields, so that the function given to raw.Read is made once
	buf    *buffer
	budget *Budget
	limit  int
	n      int
	err    error
	try    func(fd uintptr) bool
}

func newSource(r io.Reader) *source {
	src := &source{r: r, size: smallBuffer, raw: nowait.Raw(r)}
	src.wait, _ = r.(awaiter)
	src.try = src.tryRead
	return src
}

// read returns a buffer with n bytes after the room for a frame header, at most limit. The caller
// releases the buffer where it is not nil.
func (s *source) read(limit int, budget *Budget) (buf *buffer, n int, err error) {
	s.limit, s.budget = limit, budget
	if s.raw == nil {
		if s.wait != nil {
			if err := s.wait.Await(); err != nil {
				return nil, 0, err
			}
			s.size = largeBuffer // it brings what has come together
		}
		s.take()
		s.n, s.err = s.r.Read(s.buf.b[frameHeaderLen:min(len(s.buf.b), frameHeaderLen+limit)])
	} else if err := s.raw.Read(s.try); err != nil {
		s.n, s.err = 0, err
	}
	buf, n, err = s.buf, s.n, s.err
	s.buf = nil
	if n+frameHeaderLen >= s.size && s.size < largeBuffer {
		s.size *= 4
	} else if n < smallBuffer/2 {
		s.size = smallBuffer
	}
	return buf, n, err
}

func (s *source) take() { s.buf = getBuffer(min(s.size, frameHeaderLen+s.limit), s.budget) }

// tryRead is called by the runtime when the socket may be readable; false waits for that.
func (s *source) tryRead(fd uintptr) bool {
	s.take()
	s.n, s.err = nowait.Read(fd, s.buf.b[frameHeaderLen:min(len(s.buf.b), frameHeaderLen+s.limit)])
	if s.err == syscall.EAGAIN {
		s.buf.release()
		s.buf = nil
		return false
	}
	if s.n == 0 && s.err == nil {
		s.err = io.EOF
	}
	return true
}

// peek waits until the socket has something to tell and returns how many bytes there are, n at most; they are
// left there. 0 is the source's end, or an error, which reading will tell.
func (s *source) peek(n int) (got int) {
	probe := make([]byte, n)
	err := s.raw.Read(func(fd uintptr) bool {
		var err error
		got, err = nowait.Peek(fd, probe)
		return !errors.Is(err, syscall.EAGAIN)
	})
	if err != nil {
		return 0
	}
	return got
}
