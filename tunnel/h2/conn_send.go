package h2

import (
	"bytes"
	"math"
	"runtime"
	"time"
)

// writeRounds takes the write role, which must be free, and writes what is there: first until the
// stream own, where one is given, has nothing left to send, then at most rounds batches for others. So
// many small writers need one system call and no hand-over, and none of them is kept for long. Called
// and returns with mu held; mu is free during I/O.
func (c *Conn) writeRounds(own *Stream, rounds int) {
	if c.finished {
		c.ctrl = c.ctrl[:0] // the socket is being closed
		return
	}
	c.busy = true
	if own == nil || len(own.out.p) < directBytes {
		c.letOthersAdd()
	}
	var b batch
	for c.err == nil || len(c.ctrl) > 0 {
		if own == nil || own.out.done() || !own.out.queued || own.werr != nil || own.wdeadline.passed() {
			if rounds--; rounds < 0 {
				break
			}
		}
		if !c.gather(&b) || !c.writeGathered(&b) {
			break
		}
	}
	c.leaveRole()
}

// letOthersAdd lets other goroutines queue what they have, where small writes follow each other closely: a TLS
// record and a system call then carry what many streams have to say. Called with mu held by the holder of the write
// role; mu is free meanwhile.
func (c *Conn) letOthersAdd() {
	now := time.Now()
	if len(c.streams) > 1 && now.Sub(c.lastSmall) < closeWrites {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.lastSmall = now
}

// closeWrites is how closely writes follow each other when it pays to gather.
const closeWrites = 100 * time.Microsecond

// writeAnswers writes queued control frames from readLoop, which must not wait: the write role is free and
// the socket has room. Called and returns with mu held.
func (c *Conn) writeAnswers() {
	c.busy = true
	var b batch
	c.gatherControl(&b)
	c.writeGathered(&b)
	c.leaveRole()
}

// writeGathered writes a batch and reports whether that went well; else nothing more can be written.
func (c *Conn) writeGathered(b *batch) bool {
	c.writeSince = time.Now()
	c.mu.Unlock()
	err := c.writeBatch(b)
	c.mu.Lock()
	c.writeSince = time.Time{}
	c.settle(b)
	if err != nil {
		c.sendFailed(err)
	}
	return err == nil
}

// leaveRole gives the write role up, and to whom has something to write. Called with mu held.
func (c *Conn) leaveRole() {
	c.busy = false
	if len(c.ctrl) == 0 && c.ring.empty() {
		c.trim()
	}
	if c.err != nil {
		c.finish()
	} else if c.sendable() {
		c.passRole()
	}
}

func (c *Conn) writeBatch(b *batch) error {
	if len(b.buf) > 0 {
		if err := c.writeRecords(b.buf, b.frame != nil); err != nil {
			return err
		}
	}
	if b.frame != nil {
		return c.writeRecords(b.frame, false)
	}
	return nil
}

// writeRecords writes p in pieces that are a TLS record each. more tells that another call follows.
func (c *Conn) writeRecords(p []byte, more bool) error {
	for len(p) > 0 {
		n := len(p)
		if c.gate != nil {
			n = min(n, recordBytes)
			c.gate.more = more || n < len(p)
		}
		if _, err := c.nc.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// maxAnswerBytes bounds what readLoop writes by itself.
const maxAnswerBytes = 2 << 10

// passRole wakes whoever should write next. The role is free until that goroutine runs; another that
// comes earlier may take it, and serves the same ring in the same order.
func (c *Conn) passRole() {
	if s := c.ring.head; s != nil && s.out.active {
		s.wcond.Broadcast()
		return
	}
	c.kick()
}

// kick makes sure that queued control frames get written without blocking the caller. Called with mu
// held. Streams need no kick: their writers wait and are woken.
func (c *Conn) kick() {
	if c.sendErr != nil {
		c.ctrl = c.ctrl[:0] // nobody can be told any more
	}
	if c.busy || c.flushing || len(c.ctrl) == 0 {
		return
	}
	c.flushing = true
	go c.flushLoop() // ends when everything queued is written or nc fails; Close closes nc
}

// flush writes what is queued, in the caller's goroutine where the role is free. Called with mu held.
func (c *Conn) flush() {
	if !c.busy && c.sendable() {
		c.writeRounds(nil, foreignBatches)
	}
}

// flushLoop writes until nothing is left; it exists only while somebody who must not block has queued
// something.
func (c *Conn) flushLoop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushing = false
	if !c.busy {
		c.writeRounds(nil, math.MaxInt)
	}
}

// trim drops buffers that an idle connection does not need.
func (c *Conn) trim() {
	if cap(c.ctrl) > smallBuffer {
		c.ctrl = nil
	}
	if cap(c.spare) > smallBuffer {
		c.spare = nil
	}
	if c.encBuf.Cap() > smallBuffer {
		c.encBuf = bytes.Buffer{}
	}
}

// queueAnswer counts a control frame that the peer has made us queue and reports whether it may still
// be queued (CVE-2019-9512). Called with mu held.
func (c *Conn) queueAnswer() bool {
	c.answers++
	return c.answers <= c.cfg.MaxQueuedControl
}

// queueHeaders encodes a header block and queues it; the order of encoding is the order on the wire
// (RFC 9113, section 4.3). Called with mu held.
func (c *Conn) queueHeaders(kind frameType, flags uint8, id uint32, prefix []byte, each func(func(Field))) {
	c.encBuf.Reset()
	each(func(f Field) { c.enc.WriteField(f) }) // writes to memory: no error
	c.ctrl = appendHeaderBlock(c.ctrl, kind, flags, id, prefix, c.encBuf.Bytes(), int(c.peer.maxFrame))
}

// queueReset queues RST_STREAM. Called with mu held.
func (c *Conn) queueReset(id uint32, code ErrCode) {
	c.stats.resetsOut.Add(1)
	c.ctrl = appendRSTStream(c.ctrl, id, code)
}

// grant gives receive credit back to the peer, for a stream or, with nil, for the connection.
func (c *Conn) grant(s *Stream, n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || n == 0 {
		return
	}
	id := uint32(0)
	if s != nil {
		if !s.state.canReceive() {
			return
		}
		id = s.id
	}
	c.ctrl = appendWindowUpdate(c.ctrl, id, n)
	c.flush()
}

// queueGrant is grant for readLoop, which writes nothing before it has parsed what it has read.
func (c *Conn) queueGrant(s *Stream, n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && s.state.canReceive() {
		c.ctrl = appendWindowUpdate(c.ctrl, s.id, n)
	}
}

// writeStall bounds how long a failing connection tries to get its GOAWAY out.
const writeStall = time.Second
