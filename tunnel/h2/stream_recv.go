package h2

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// segment is a run of received bytes in a buffer that it holds.
type segment struct {
	buf      *buffer
	off, end int
	private  bool // no other segment and not the reader refers to buf: more may be copied behind end
}

func (g *segment) bytes() []byte { return g.buf.b[g.off:g.end] }

// recvQueue holds what was received and not read.
type recvQueue struct {
	segs []segment
	head int
}

func (q *recvQueue) empty() bool { return q.head == len(q.segs) }

// pinFraction bounds what a small piece may keep alive: a piece below this part of its buffer is copied.
const pinFraction = 8

// add appends buf.b[off:end]. Pieces of one frame that lie side by side become one segment, large ones
// are held by reference and small ones are copied, so that a stream that is not read pins little more
// than its bytes.
func (q *recvQueue) add(buf *buffer, off, end int, budget *Budget) {
	if q.head > keepSegments && q.head*2 >= len(q.segs) { // a queue that is never empty must not grow
		n := copy(q.segs, q.segs[q.head:])
		clear(q.segs[n:])
		q.head, q.segs = 0, q.segs[:n]
	}
	if n := len(q.segs); n > q.head {
		last := &q.segs[n-1]
		if last.buf == buf && last.end == off {
			last.end = end
			return
		}
		if room := len(last.buf.b) - last.end; last.private && room >= end-off {
			last.end += copy(last.buf.b[last.end:], buf.b[off:end])
			return
		}
	}
	if (end-off)*pinFraction >= len(buf.b) {
		buf.hold()
		q.segs = append(q.segs, segment{buf: buf, off: off, end: end})
		return
	}
	own := getBuffer(end-off, budget)
	copy(own.b, buf.b[off:end])
	q.segs = append(q.segs, segment{buf: own, end: end - off, private: true})
}

// pop removes the first segment; the caller releases its buffer.
func (q *recvQueue) pop() segment {
	g := q.segs[q.head]
	q.segs[q.head] = segment{}
	q.advance()
	return g
}

// keepSegments is the queue length that an empty queue keeps room for.
const keepSegments = 8

func (q *recvQueue) advance() {
	q.head++
	if q.head < len(q.segs) {
		return
	}
	q.head, q.segs = 0, q.segs[:0]
	if cap(q.segs) > keepSegments {
		q.segs = nil
	}
}

// read copies to p and releases what was used up.
func (q *recvQueue) read(p []byte) (n int) {
	for n < len(p) && !q.empty() {
		k := copy(p[n:], q.segs[q.head].bytes())
		n += k
		q.skip(k)
	}
	return n
}

// skip drops the first n bytes of the first segment.
func (q *recvQueue) skip(n int) {
	g := &q.segs[q.head]
	if g.off += n; g.off == g.end {
		g.buf.release()
		*g = segment{}
		q.advance()
	}
}

// drop releases everything and returns how many bytes that was.
func (q *recvQueue) drop() (n int) {
	for !q.empty() {
		g := q.pop()
		n += g.end - g.off
		g.buf.release()
	}
	q.segs = nil
	return n
}

// Read reads received bytes. It blocks until there are some, the peer has ended its side (io.EOF), the
// read deadline passes (os.ErrDeadlineExceeded), the stream is reset (*StreamError) or the connection
// ends (*ConnError). Bytes received before a reset by the peer are delivered first.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	for {
		if err := s.readErr(); err != nil {
			s.mu.Unlock()
			return 0, err
		}
		if len(p) == 0 || !s.queue.empty() {
			break
		}
		s.rcond.Wait()
	}
	n := s.queue.read(p)
	grant := s.consumed(n)
	s.mu.Unlock()
	s.c.credit(s, grant)
	return n, nil
}

// readErr is why Read returns no bytes, nil where it has some or must wait. Called with mu held.
func (s *Stream) readErr() error {
	switch {
	case s.rclosed:
		return net.ErrClosed
	case s.rdeadline.passed():
		return os.ErrDeadlineExceeded
	case !s.queue.empty():
		return nil
	case s.eof:
		return io.EOF
	}
	return s.rerr
}

// consumed notes that the user has taken n bytes and returns the credit to grant. A stream that used
// a quarter of its window in little more than a round trip gets a larger one, up to what the connection's
// estimate and the budget allow. Called with mu held.
func (s *Stream) consumed(n int) (grant uint32) {
	if s.queue.empty() {
		s.stalledAt = 0
	} else if n > 0 {
		s.stalledAt = s.c.lastRead.Load()
	}
	if s.eof || s.rerr != nil || n == 0 {
		return 0
	}
	grant = s.flow.consume(n)
	if grant == 0 {
		return 0
	}
	now := time.Now().UnixNano()
	goal := s.c.windowGoal.Load()
	fast := s.lastGrant == 0 || now-s.lastGrant < growWithin*max(s.c.rtt.Load(), int64(time.Millisecond))
	if goal > int64(s.flow.size) && fast && s.c.cfg.Budget.roomy() {
		more := int32(min(goal, int64(s.c.cfg.MaxStreamWindow))) - s.flow.size
		s.flow.size += more
		s.flow.window += more
		grant += uint32(more)
		s.c.stats.windowGrowth.Add(1)
	}
	s.lastGrant = now
	return grant
}

// Widen lets the peer send n bytes of the stream that are not read yet, where it may send less now.
func (s *Stream) Widen(n int32) {
	s.mu.Lock()
	more := max(0, n-s.flow.size)
	s.flow.size += more
	s.flow.window += more
	s.mu.Unlock()
	s.c.credit(s, uint32(more))
}

// growWithin is in how many round trips a stream must use a quarter of its window to get a larger one.
const growWithin = 4

// receive takes a piece of DATA: to a pipe's sink, where that takes it at once, else to the queue. Called by
// readLoop.
func (s *Stream) receive(buf *buffer, off, end int) {
	s.mu.Lock()
	var grant uint32
	if p := s.pipe; p != nil && p.at != nil && !p.running && s.queue.empty() {
		n := s.pipeAtOnce(p, buf.b[off:end])
		off += n
		grant = s.consumed(n)
	}
	if off < end && !s.rclosed && s.rerr == nil {
		if s.queue.empty() {
			s.stalledAt = s.c.lastRead.Load()
		}
		s.queue.add(buf, off, end, s.c.cfg.Budget)
		s.wakeReader()
	}
	s.mu.Unlock()
	if grant > 0 {
		s.c.queueGrant(s, grant)
	}
}

// pipeAtOnce gives b to the sink of an idle pipe and returns how much it took. Called with mu held, which is
// free meanwhile.
func (s *Stream) pipeAtOnce(p *pipe, b []byte) int {
	if s.rclosed || s.rerr != nil {
		return 0
	}
	p.running = true
	s.mu.Unlock()
	n, err := p.at.TryWrite(b)
	s.mu.Lock()
	p.n += int64(n)
	p.err = err
	p.running = false
	if err != nil || s.rclosed || s.rerr != nil {
		s.wakeReader() // who has changed that found the pipe running; done is not called from here
	}
	return n
}

// wakeReader tells whoever reads. Called with mu held.
func (s *Stream) wakeReader() {
	s.rcond.Broadcast()
	if p := s.pipe; p != nil {
		if !p.running {
			p.running = true
			go s.pipeLoop(p) // ends when nothing is left to write; the stream's end or a failing sink ends the pipe
		}
	}
}

// endReceive ends the receiving side: cleanly with io.EOF, or with the error of a reset.
func (s *Stream) endReceive(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.eof || s.rerr != nil {
		if err == io.EOF || s.rerr != nil {
			return
		}
	}
	if err == io.EOF {
		s.eof = true
	} else {
		if !s.eof {
			s.rerr = err
		}
		s.dead = true
		if tell := s.tellHead(); tell != nil {
			time.AfterFunc(0, tell) // locks are held here
		}
		s.interruptPipe()
		if s.doneCh != nil {
			select {
			case <-s.doneCh:
			default:
				close(s.doneCh)
			}
		}
	}
	s.wakeReader()
}

// dropReceived throws away what was received, for a stream that we reset or closed.
func (s *Stream) dropReceived(err error) {
	s.mu.Lock()
	if errors.Is(err, net.ErrClosed) {
		s.rclosed = true
		s.onHead = nil
		s.rdeadline.stop()
	}
	if s.queue.drop() > 0 && s.eof && !s.rclosed {
		s.eof, s.rerr = false, err // the end would look clean, and bytes before it are gone
	}
	s.stalledAt = 0
	s.wakeReader()
	s.mu.Unlock()
	s.c.credit(nil, 0)
}

// WriteTo writes received bytes to w until io.EOF, each from the buffer in which it arrived. It returns
// how much that was; an error of w comes back as *SinkError.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		s.mu.Lock()
		for s.queue.empty() {
			if err := s.readErr(); err != nil {
				s.mu.Unlock()
				if err == io.EOF {
					err = nil
				}
				return total, err
			}
			s.rcond.Wait()
		}
		n, err := s.writeSegment(w)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// writeSegment takes the first segment off the queue and writes it to w. Called with mu held, returns
// without.
func (s *Stream) writeSegment(w io.Writer) (int, error) {
	g := s.queue.pop()
	s.mu.Unlock()
	n, err := w.Write(g.bytes())
	g.buf.release()
	s.mu.Lock()
	grant := s.consumed(g.end - g.off)
	s.mu.Unlock()
	s.c.credit(s, grant)
	if err != nil {
		return n, &SinkError{err}
	}
	return n, nil
}

// SinkError is returned by Stream.WriteTo, and given to the done function of Stream.Pipe, when the
// writer failed, as opposed to the stream.
type SinkError struct{ Err error }

// Error is the text of the writer's error.
func (e *SinkError) Error() string { return e.Err.Error() }

// Unwrap returns the writer's error.
func (e *SinkError) Unwrap() error { return e.Err }

// pipe is where received bytes go by themselves. Guarded by Stream.mu, except dst and done.
type pipe struct {
	dst     io.Writer
	at      TryWriter // dst, where it is one
	done    func(n int64, err error)
	n       int64
	err     error // of TryWrite
	running bool  // pipeLoop runs, or done was called
	over    bool  // done is called
}

// Pipe writes received bytes to dst from a goroutine that exists only while there are bytes, so an idle
// stream costs none. done is called once, without locks: with nil after the peer's END_STREAM and the
// last byte, else with why the stream ended, or with a *SinkError. After Pipe the stream must not be
// read otherwise. Where dst is a TryWriter, what it takes without waiting is written by the reader of the
// connection, and only the rest by that goroutine. Pipe returns at once.
func (s *Stream) Pipe(dst io.Writer, done func(n int64, err error)) {
	s.mu.Lock()
	s.pipe = &pipe{dst: dst, done: done}
	s.pipe.at, _ = dst.(TryWriter)
	var grant uint32
	if s.pipe.at != nil {
		grant = s.pipeQueued(s.pipe)
	}
	if !s.queue.empty() || s.eof || s.rerr != nil || s.rclosed {
		s.wakeReader()
	}
	s.mu.Unlock()
	s.c.credit(s, grant)
}

// pipeQueued gives what is queued to the sink of a new pipe, as far as it takes that at once, and returns the
// credit to grant. Called with mu held, which is free meanwhile.
func (s *Stream) pipeQueued(p *pipe) (grant uint32) {
	for !s.queue.empty() && p.err == nil {
		g := s.queue.segs[s.queue.head]
		g.buf.hold() // the stream may be closed meanwhile
		n := s.pipeAtOnce(p, g.bytes())
		g.buf.release()
		if s.queue.empty() {
			break // it was closed, or reset
		}
		s.queue.skip(n)
		grant += s.consumed(n)
		if n < g.end-g.off {
			break
		}
	}
	return grant
}

// TryWriter is a destination of Stream.Pipe that can take bytes without waiting.
type TryWriter interface {
	// TryWrite writes what there is room for, maybe nothing, and returns how much that was. It must not
	// block. An error ends the pipe, as one of Write does.
	TryWrite(p []byte) (n int, err error)
}

// Interrupter is a destination of Stream.Pipe whose Write can be ended from outside.
type Interrupter interface {
	// Interrupt makes a Write under way, and those to come, fail. It must not block.
	Interrupt()
}

// resetGrace is how long after a reset a pipe may still write what came before it.
const resetGrace = time.Second

// interruptPipe sees to it that a sink that takes nothing does not keep the reset of the stream from being
// noticed: after resetGrace it is interrupted, where it is an Interrupter. Called with mu held.
func (s *Stream) interruptPipe() {
	p := s.pipe
	if p == nil || !p.running {
		return
	}
	if dst, ok := p.dst.(Interrupter); ok {
		time.AfterFunc(resetGrace, func() {
			s.mu.Lock()
			over := p.over
			s.mu.Unlock()
			if !over {
				dst.Interrupt()
			}
		})
	}
}

// pipeLoop writes what is there and ends; receive starts it again.
func (s *Stream) pipeLoop(p *pipe) {
	for {
		s.mu.Lock()
		if s.queue.empty() || s.rclosed || p.err != nil {
			var err error
			switch {
			case p.err != nil && s.rerr == nil:
				err = &SinkError{p.err}
			case s.rclosed:
				err = net.ErrClosed
			case !s.eof:
				err = s.rerr
			}
			ended := s.rclosed || s.eof || s.rerr != nil || p.err != nil
			p.running, p.over = ended, ended
			s.mu.Unlock()
			if ended {
				p.done(p.n, err) // running stays set: no other loop starts
			}
			return
		}
		n, err := s.writeSegment(p.dst)
		p.n += int64(n)
		if err != nil {
			s.mu.Lock()
			if s.rerr != nil {
				err = s.rerr // it came first; the sink was interrupted
			}
			p.over = true
			s.mu.Unlock()
			p.done(p.n, err) // running stays set: no other loop starts
			return
		}
	}
}
