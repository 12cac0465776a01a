package h2

import (
	"cmp"
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// Stream is one channel of a connection: a net.Conn with a request in front. Read and Write may run at
// the same time, and every method may be called from any goroutine. A Stream must be closed by its
// user; until then a stream of the peer that was reset keeps its slot.
type Stream struct {
	// immutable after newStream
	c             *Conn
	id            uint32
	own           bool    // opened or promised by us
	asks          bool    // we are the side that asked, or was promised: the response is the peer's
	connect, head bool    // the method of the request is CONNECT, extended or not, or HEAD
	req           *Header // the request that opened it, or the promise; nil after DropHeads

	// guarded by c.mu (conn_streams.go, stream_send.go)
	send      sendFlow
	out       outgoing
	wcond     sync.Cond // something about sending has changed
	wdeadline deadline
	werr      error       // why nothing more can be sent; nil while it can
	hooks     streamHooks // nil: nobody is told
	sent      int64       // payload bytes framed
	firstSent int64       // UnixNano of the first of them
	state     streamState
	answered  bool // final response headers were sent
	refused   bool // with a status of 300 or more
	userDone  bool // Close was called
	wireDone  bool // removed from c.streams
	wasReset  bool // ended by RST_STREAM of either side
	held      bool // counted in peerHeld or peerTail
	inUse     bool // somebody has it who will call Close

	// owned by readLoop
	tinyIn  uint32 // inbound.record with the last tiny DATA frame
	informs uint32 // interim responses received
	gotHead bool   // the request, or the final response, was received

	// guarded by mu (stream_recv.go)
	mu        sync.Mutex
	rcond     sync.Cond // something about receiving has changed
	queue     recvQueue
	flow      recvFlow
	length    int64 // content-length still to come; -1: not declared
	rerr      error // why nothing more will come; nil while it may
	resp      *Header
	trailer   []Field
	rdeadline deadline
	pipe      *pipe
	doneCh    chan struct{} // made by Done
	onHead    func()        // see OnResponse; nil after the call
	stalledAt int64         // UnixNano of the oldest unread byte's arrival or of the last read; 0: nothing unread
	lastGrant int64         // UnixNano of the last WINDOW_UPDATE
	padding   uint32        // of the frame under way, to be granted again
	eof       bool          // END_STREAM received
	rclosed   bool          // Close was called
	dead      bool          // reset by either side, or the connection failed
}

var _ net.Conn = (*Stream)(nil)

// newStream makes a stream in state idle. Called with c.mu held.
func (c *Conn) newStream(id uint32, own bool, req *Header) *Stream {
	s := &Stream{c: c, id: id, own: own, connect: req.Method == "CONNECT", head: req.Method == "HEAD", req: req, length: -1}
	s.send.grant(c.peer.initialWindow)
	size := c.cfg.StreamWindow
	s.flow = recvFlow{window: size, size: size}
	if !c.ownSettled && size < initialWindow {
		s.flow.window = initialWindow // the peer may not know our SETTINGS yet
	}
	s.wcond.L, s.rcond.L = &c.mu, &s.mu
	return s
}

// ID returns the stream identifier.
func (s *Stream) ID() uint32 { return s.id }

// Conn returns the connection that carries the stream.
func (s *Stream) Conn() *Conn { return s.c }

// Request returns the head that opened the stream: the peer's request, or the one given to Open or
// Push. It must not be changed.
func (s *Stream) Request() *Header { return s.req }

// DropHeads lets go of the heads of request and response, which take as much memory as the rest of a stream that
// is idle. Request returns nil then, and a Response that has come only its status. Not to be called at the same time
// as these.
func (s *Stream) DropHeads() {
	s.req = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.resp == nil:
	case s.resp.Status == okHead.Status:
		s.resp = okHead
	default:
		s.resp = &Header{Status: s.resp.Status}
	}
}

// okHead stands for every head that was dropped with this status. It is immutable.
var okHead = &Header{Status: 200}

// LocalAddr returns the local address of the connection below.
func (s *Stream) LocalAddr() net.Addr { return s.c.nc.LocalAddr() }

// RemoteAddr returns the remote address of the connection below.
func (s *Stream) RemoteAddr() net.Addr { return s.c.nc.RemoteAddr() }

// Response waits for the final response to a request that we opened and returns its head. Errors: ctx's,
// or why the stream ended first. 1xx answers go to Config.OnInform.
func (s *Stream) Response(ctx context.Context) (*Header, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := waitLocked(ctx, &s.rcond, func() bool { return s.resp != nil || s.rerr != nil || s.rclosed })
	switch {
	case s.resp != nil:
		return s.resp, nil
	case err != nil:
		return nil, err
	case s.rerr != nil:
		return nil, s.rerr
	}
	return nil, net.ErrClosed
}

// OnResponse has f called once when Response would no longer wait. f may be called before OnResponse returns,
// without locks of this package, and must not block.
func (s *Stream) OnResponse(f func()) {
	s.mu.Lock()
	over := s.resp != nil || s.rerr != nil || s.rclosed
	if !over {
		s.onHead = f
	}
	s.mu.Unlock()
	if over {
		f()
	}
}

// tellHead returns what OnResponse wants called. Called with mu held.
func (s *Stream) tellHead() func() {
	f := s.onHead
	s.onHead = nil
	return f
}

// Trailers returns the peer's trailer fields once Read has returned io.EOF, nil where there were none.
func (s *Stream) Trailers() []Field {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trailer
}

// Sent returns how many bytes of payload were handed to the connection so far.
func (s *Stream) Sent() int64 {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.sent
}

// FirstSent is when the first payload byte was taken for sending; zero while none was.
func (s *Stream) FirstSent() time.Time {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.firstSent == 0 {
		return time.Time{}
	}
	return time.Unix(0, s.firstSent)
}

// Done is closed when the stream was reset by either side or its connection failed. A stream that ends
// cleanly does not close it.
func (s *Stream) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doneCh == nil {
		s.doneCh = make(chan struct{})
		if s.dead {
			close(s.doneCh)
		}
	}
	return s.doneCh
}

// watch sets the hooks of a stream; ended is called at once where the stream was reset already.
func (s *Stream) watch(h streamHooks) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.hooks = h
	if s.wasReset {
		h.ended()
	}
}

// Err returns why the stream ended before its time: a *StreamError after a reset, a *ConnError after
// the connection failed, nil otherwise.
func (s *Stream) Err() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.wasReset || s.c.err != nil {
		return s.werr
	}
	return nil
}

// Close ends the stream and gives its slot back. What was written before reaches the peer: a side that
// has not sent END_STREAM sends it, and a peer that has not is told by RST_STREAM(CANCEL), or NO_ERROR
// after a complete response (RFC 9113, section 8.1), that nobody listens. A Write or Read under way
// returns net.ErrClosed, and a Write cut short makes it a reset. Close may be called again.
func (s *Stream) Close() error {
	c := s.c
	c.mu.Lock()
	if s.userDone {
		c.mu.Unlock()
		return nil
	}
	s.userDone = true
	if !s.wireDone && c.err == nil {
		s.closeWire()
	}
	if s.werr == nil {
		s.werr = net.ErrClosed
	}
	s.wdeadline.stop()
	s.wcond.Broadcast()
	c.userClosed(s)
	c.flush()
	c.mu.Unlock()
	s.dropReceived(net.ErrClosed)
	return nil
}

// closeWire sends what tells the peer that we are gone. Called with c.mu held.
func (s *Stream) closeWire() {
	c := s.c
	code := Cancel
	if s.out.active || !s.own && !s.answered && s.state != stateReservedLocal {
		s.abort(streamError(s.id, code, "closed"))
		return
	}
	if s.state.canSend() {
		c.ctrl = appendFrameHeader(c.ctrl, 0, frameData, flagEndStream, s.id)
		c.ended(s, true)
	}
	if !s.own && (!s.connect || s.refused) {
		code = NoError
	}
	if !s.wireDone {
		s.abort(streamError(s.id, code, "closed"))
	}
}

// Reset ends the stream at once with RST_STREAM(code) (RFC 9113, section 6.4). Bytes that were not
// sent or not read are dropped. Close must still be called.
func (s *Stream) Reset(code ErrCode) {
	s.resetFor(&StreamError{StreamID: s.id, Code: code, By: Local})
}

// resetFor resets the stream with the code of err, which Read and Write return from now on.
func (s *Stream) resetFor(err *StreamError) {
	c := s.c
	c.mu.Lock()
	if !s.wireDone && c.err == nil {
		s.abort(err)
		c.kick()
	}
	c.mu.Unlock()
	s.dropReceived(err)
}

// abort sends RST_STREAM and ends both directions. Called with c.mu held.
func (s *Stream) abort(err *StreamError) {
	s.c.queueReset(s.id, err.Code)
	s.c.forgetReset(s.id)
	s.c.endReset(s, err)
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline makes Read return os.ErrDeadlineExceeded after t; zero: never.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rclosed {
		return net.ErrClosed
	}
	s.rdeadline.set(t, &s.rcond)
	return nil
}

// SetWriteDeadline makes Write return os.ErrDeadlineExceeded after t; zero: never. It bounds the wait
// for the peer's window and for other streams, not a frame that is being handed to the connection:
// that is bounded by the keep-alive.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.userDone {
		return net.ErrClosed
	}
	s.wdeadline.set(t, &s.wcond)
	return nil
}

// deadline is a point in time after which waiting on a condition ends. Guarded by the condition's lock.
type deadline struct {
	at    time.Duration // since epoch; 0: never
	timer *time.Timer   // wakes cond at that time; nil until the first deadline in the future
}

// epoch is what deadlines are counted from, which takes a third of the room of a time.Time. It is immutable.
var epoch = time.Now()

// farAway is never.
const farAway = 100 * 365 * 24 * time.Hour

func (d *deadline) set(t time.Time, cond *sync.Cond) {
	d.stop()
	d.at = 0
	wait := time.Until(t)
	if !t.IsZero() {
		d.at = cmp.Or(time.Since(epoch)+min(max(wait, 0), farAway), -1)
	}
	if d.at != 0 && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			cond.L.Lock()
			cond.Broadcast()
			cond.L.Unlock()
		})
	}
	cond.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) passed() bool { return d.at != 0 && time.Since(epoch) >= d.at }

var (
	_ io.ReaderFrom = (*Stream)(nil)
	_ io.WriterTo   = (*Stream)(nil)
)
