package h2

import "time"

// outgoing is what one stream waits to send: the payload of a Write, and how far it is. Guarded by
// Conn.mu; the bytes of p are read by the holder of the write role while inFlight.
type outgoing struct {
	p          []byte // payload not yet framed
	frame      []byte // where a header fits before p: frame[frameHeaderLen:] is p; nil: no room there
	active     bool   // a Write is under way
	end        bool   // END_STREAM goes with the last of p
	inFlight   bool   // a frame of p is being written
	queued     bool   // in the ring
	patience   patience
	next, prev *Stream
}

// patience is the wait for a larger window than a tiny one. Guarded by Conn.mu.
type patience struct {
	timer *time.Timer // nil until the first wait
	runs  bool
	over  bool // whatever window there is will do
}

// hold reports whether to go on waiting for window; each wait begins by starting the clock, which calls wake
// with no lock held.
func (p *patience) hold(wake func()) bool {
	if p.over {
		return false
	}
	if !p.runs {
		p.runs = true
		if p.timer == nil {
			p.timer = time.AfterFunc(tinyPatience, wake)
		} else {
			p.timer.Reset(tinyPatience)
		}
	}
	return true
}

// expire ends a wait by its clock, end because there is window.
func (p *patience) expire() { p.runs, p.over = false, true }

func (p *patience) end() {
	if p.runs {
		p.timer.Stop()
	}
	p.runs, p.over = false, false
}

// done reports whether nothing of the Write is left to send.
func (o *outgoing) done() bool { return len(o.p) == 0 && !o.inFlight }

// ring is the queue of streams that may send, served in turn. A stream enters at the tail when it has
// bytes and window, and leaves at the head for one quantum; if anything is left it enters again.
type ring struct {
	head, tail *Stream
}

func (r *ring) empty() bool { return r.head == nil }

func (r *ring) push(s *Stream) {
	if s.out.queued {
		return
	}
	s.out.queued = true
	s.out.prev, s.out.next = r.tail, nil
	if r.tail == nil {
		r.head = s
	} else {
		r.tail.out.next = s
	}
	r.tail = s
}

func (r *ring) remove(s *Stream) {
	if !s.out.queued {
		return
	}
	s.out.queued = false
	if s.out.prev == nil {
		r.head = s.out.next
	} else {
		s.out.prev.out.next = s.out.next
	}
	if s.out.next == nil {
		r.tail = s.out.prev
	} else {
		s.out.next.out.prev = s.out.prev
	}
	s.out.next, s.out.prev = nil, nil
}

// Sizes of what is written at once.
const (
	// quantumBytes is the most that a stream sends in its turn: with the header four whole TLS records.
	quantumBytes = largeBuffer - frameHeaderLen
	// batchBytes is how much is gathered for one write.
	batchBytes = largeBuffer
	// directBytes is the payload from which a frame with room is written from where it lies. Below it
	// a copy is cheaper than a write of its own.
	directBytes = 4 << 10
	// foreignBatches is how many batches the holder of the write role writes for others after its own
	// bytes are out, before it passes the role on.
	foreignBatches = 4
)

// A frame that the peer's window cuts to less than tinyFrame, though more waits, is held back for more window,
// at most for tinyPatience: a peer may want the rest before it opens the window.
const (
	tinyFrame    = 1 << 10
	tinyPatience = 100 * time.Millisecond
)

// windowUpdatesPerData is how many WINDOW_UPDATE frames a DATA frame of ours earns the peer before they
// count as oddities; maxAllowance bounds what can be saved up.
const (
	windowUpdatesPerData = 20
	earningBytes         = 64 // a frame cut shorter by the peer's window earns nothing
	maxAllowance         = 100_000
)

// batch is what one write carries: buf, and after it frame, a single large frame written from where
// it lies.
type batch struct {
	buf    []byte
	frame  []byte
	ctrl   []byte      // the slice that buf began as, to be used again
	pooled *buffer     // what buf lies in when payload was copied to it
	sent   [32]*Stream // streams with a frame in this batch
	n      int
}

// gather takes control frames and then one quantum of each stream in turn, until the batch is full.
// It reports whether there is anything to write. Called with mu held by the holder of the write role.
func (c *Conn) gather(b *batch) bool {
	c.gatherControl(b)
	for s := c.ring.head; s != nil && b.n < len(b.sent) && b.frame == nil; s = c.ring.head {
		if c.shut() {
			break
		}
		n := c.nextFrameLen(s)
		direct := s.out.frame != nil && n >= directBytes
		if !direct && len(b.buf) > 0 && len(b.buf)+frameHeaderLen+n > batchBytes {
			break
		}
		c.ring.remove(s)
		b.sent[b.n] = s
		b.n++
		c.takeFrame(b, s, n, direct)
	}
	return len(b.buf) > 0 || b.frame != nil
}

// gatherControl begins a batch with the control frames that are queued. Called with mu held by the holder
// of the write role.
func (c *Conn) gatherControl(b *batch) {
	b.buf, b.ctrl, b.frame, b.n = c.ctrl, c.ctrl, nil, 0
	c.ctrl, c.answers = c.spare[:0], 0
	c.spare = nil
}

// nextFrameLen is how much of the stream's payload its next frame carries.
func (c *Conn) nextFrameLen(s *Stream) int {
	n := min(len(s.out.p), quantumBytes, int(c.peer.maxFrame))
	return int(min(int64(n), s.send.window, c.sendWindow.window))
}

// takeFrame moves the next n bytes of the stream's payload into the batch.
func (c *Conn) takeFrame(b *batch, s *Stream, n int, direct bool) {
	o := &s.out
	var flags uint8
	if o.end && n == len(o.p) {
		flags = flagEndStream
	}
	if direct {
		b.frame = o.frame[:frameHeaderLen+n]
		putFrameHeader(b.frame, n, frameData, flags, s.id)
	} else {
		b.reserve(frameHeaderLen+n, c.cfg.Budget)
		b.buf = append(appendFrameHeader(b.buf, n, frameData, flags, s.id), o.p[:n]...)
	}
	o.p = o.p[n:]
	if o.frame != nil {
		o.frame = o.frame[n:]
	}
	o.inFlight = true
	if s.sent == 0 && n > 0 {
		s.firstSent = time.Now().UnixNano()
	}
	s.sent += int64(n)
	s.send.take(n)
	c.sendWindow.take(n)
	o.patience.end()
	c.patience.end()
	if flags == flagEndStream {
		c.ended(s, true)
	}
	if n >= earningBytes || len(o.p) == 0 { // a peer earns nothing by windows that cut DATA to pieces
		c.allowance = min(c.allowance+windowUpdatesPerData, maxAllowance)
	}
}

// reserve moves the batch to a pooled buffer when n more bytes would make it a large one.
func (b *batch) reserve(n int, budget *Budget) {
	if len(b.buf)+n <= smallBuffer || b.pooled != nil || len(b.buf)+n > largeBuffer {
		return
	}
	b.pooled = getBuffer(largeBuffer, budget)
	b.buf = append(b.pooled.b[:0], b.buf...)
}

// settle notes that a batch was written: streams with more enter the ring again, others wake.
func (c *Conn) settle(b *batch) {
	for _, s := range b.sent[:b.n] {
		s.out.inFlight = false
		c.enqueue(s)
		s.wcond.Broadcast()
	}
	clear(b.sent[:b.n])
	if b.pooled != nil {
		b.pooled.release()
		b.pooled = nil
	} else {
		b.ctrl = b.buf
	}
	c.spare = b.ctrl[:0]
}

// enqueue puts a stream that has something to send, and the window for it, into the ring.
func (c *Conn) enqueue(s *Stream) {
	if s.out.inFlight || len(s.out.p) == 0 || s.send.window <= 0 || s.werr != nil {
		return
	}
	if s.send.tiny(len(s.out.p)) && s.out.patience.hold(s.windowStays) {
		return
	}
	c.ring.push(s)
}

// windowStays sends what the stream's window holds, tiny as it is. Called by the timer.
func (s *Stream) windowStays() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.out.patience.expire()
	s.c.maySend(s)
}

// shut reports whether the connection's window lets nothing through for now. The ring must not be empty.
func (c *Conn) shut() bool {
	if c.sendWindow.window <= 0 {
		return true
	}
	return c.sendWindow.tiny(len(c.ring.head.out.p)) && c.patience.hold(c.windowStays)
}

// windowStays sends what the connection's window holds, tiny as it is. Called by the timer.
func (c *Conn) windowStays() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.patience.expire()
	if !c.busy && c.sendable() {
		c.passRole()
	}
}

// sendable reports whether gather would find anything.
func (c *Conn) sendable() bool {
	if c.sendErr != nil {
		return false
	}
	if len(c.ctrl) > 0 {
		return true
	}
	return !c.ring.empty() && !c.shut()
}
