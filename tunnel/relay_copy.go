package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"culvert/tunnel/nowait"
)

const (
	// copyBytes is the size of the buffers between two sockets: what one read brings under load.
	copyBytes = 64 << 10
	// lingerTimeout is how long a socket is read on, into nothing, after its flow has ended towards it and
	// nobody takes its bytes any more: closing a socket with unread bytes makes the system reset it, and the
	// tail that the app has not read yet would be lost.
	lingerTimeout = 5 * time.Second
	// lingerBytes bounds what is read so from a destination: one that goes on sending is reset, as it would
	// be without a gateway between. Else a peer that opens and aborts flows would make us draw from it at
	// full speed, at no cost to the peer. An app pays for its bytes itself.
	lingerBytes = 256 << 10
	// watchHalfClosed is how long a stream may be half-closed before somebody waits for its reset. Most
	// flows are over before, and cost no goroutine for it.
	watchHalfClosed = time.Second
)

// errNotDelivered is why a flow has ended before its time where no other reason is known.
var errNotDelivered = errors.New("not all bytes were taken")

// errCut is what a socket's end means that was none.
var errCut = errors.New("connection reset by peer")

// copyBuffers holds *[]byte of copyBytes.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }}

// Write passes p on to the direction's destination.
func (d *direction) Write(p []byte) (int, error) {
	if d.flow.paced() {
		return d.writePaced(p)
	}
	return d.put(p)
}

// put is Write of what need not wait for a limit.
func (d *direction) put(p []byte) (int, error) {
	n, err := d.dst.Write(p)
	d.moved(n)
	return n, err
}

// TryWrite passes on what the destination takes without waiting; nothing where the flow's bytes are counted, as that may
// have to wait.
func (d *direction) TryWrite(p []byte) (int, error) {
	if d.flow.paced() {
		return 0, nil
	}
	var n int
	var err error
	switch dst := d.dst.(type) {
	case *socket:
		n, err = dst.tryWrite(p)
	case *packetEnd:
		n, err = dst.TryWrite(p)
	}
	d.moved(n)
	return n, err
}

// Interrupt ends a Write under way, when the source was reset while the destination takes nothing: the
// reset must not wait for it.
func (d *direction) Interrupt() {
	d.flow.endWaits()
	_ = d.dst.SetWriteDeadline(time.Unix(1, 0)) // an end that is closed needs none
}

// carried is how many bytes the destination has taken so far.
func (d *direction) carried() int64 {
	n := d.bytes.load()
	d.flow.mu.Lock()
	src, dst := d.src, d.dst // nil while the flow does not stand
	d.flow.mu.Unlock()
	if d.flow.UDP {
		if m, ok := d.payload(src, dst); ok {
			return m
		}
	}
	if s, ok := dst.(Stream); ok {
		return max(n, s.Sent()) // ReadFrom tells at its end only what it has carried
	}
	return n
}

// pump carries ahead and then what the source, a socket, delivers. It runs in a goroutine that may be
// replaced while the source is silent; see renew.
func (d *direction) pump(ahead []byte) {
	if len(ahead) > 0 {
		if _, err := d.Write(ahead); err != nil {
			d.over(nil, err)
			return
		}
	}
	var src, dst error
	if s, ok := d.dst.(Stream); ok {
		var n int64
		n, dst = s.ReadFrom(d.source())
		d.bytes.add(n)
		src, dst = whose(dst)
	} else {
		src, dst = d.copySockets()
	}
	if d.renewed(src) {
		if s, ok := d.src.(*socket); ok && d.park(s) {
			return
		}
		go d.pump(nil) // ends with its direction; the flow is over when both have ended, which Close waits for
		return
	}
	d.over(src, dst)
}

// whose tells an error of what a stream read from apart from one of the stream.
func whose(err error) (src, dst error) {
	var source *SourceError
	if errors.As(err, &source) {
		return source.Err, nil
	}
	return nil, err
}

// renew makes the goroutines that wait for silent sockets park, or hand over to new ones where the system cannot
// watch the socket: the stack of a goroutine grows to 8 KiB and more when it encrypts and shrinks to 4 KiB at best; a
// new one that only waits has 2 KiB. It is done when a flow falls silent, so that it costs nothing while there are
// bytes. From then on the system looks after the sockets.
func (f *Flow) renew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range []*direction{&f.in, &f.out} {
		if s, ok := d.src.(*socket); ok {
			s.watchPeer(f.plan.timeouts.KeepAlive)
			d.startAnew(s.asleep.Load() == nil)
		}
	}
}

// restart makes the directions that read a socket begin anew: in another way, as the flow's limits have changed.
func (f *Flow) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range []*direction{&f.in, &f.out} {
		switch s := d.src.(type) {
		case *socket:
			d.startAnew(s.asleep.Load() == nil)
		case *packetEnd:
			d.startAnew(true)
		}
	}
}

// startAnew has pump begin anew if the direction is awake and runs. Called with flow.mu held.
func (d *direction) startAnew(awake bool) {
	if awake && !d.ended && !d.discarding && d.lost == nil {
		d.renewing = true
		_ = d.src.SetReadDeadline(wakeNow) // a socket that is closed need not begin
	}
}

// wakeNow is a deadline that has passed: who reads returns.
var wakeNow = time.Unix(1, 0)

// renewed reports whether err is a call of renew, and readies the source to be read again.
func (d *direction) renewed(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.flow.mu.Lock()
	defer d.flow.mu.Unlock()
	again := d.renewing && d.lost == nil
	d.renewing = false
	return again && d.src.SetReadDeadline(time.Time{}) == nil
}

// piped is called when the source, a stream, has piped its last byte.
func (d *direction) piped(_ int64, err error) {
	var sink *SinkError
	if errors.As(err, &sink) {
		d.over(nil, sink.Err)
		return
	}
	d.over(err, nil)
}

// below returns the connection inside of a socket, whose descriptor a stream may read without a stop
// between.
func below(c Conn) net.Conn {
	if s, ok := c.(*socket); ok {
		return s.Conn
	}
	return c
}

// copySockets carries what comes until one side fails or the source ends. No buffer is held while the
// source is silent, where the system can tell; where it can move the bytes by itself, there is none at all.
func (d *direction) copySockets() (src, dst error) {
	source := d.source()
	if source == below(d.src) {
		if src, dst, ok := d.spliced(); ok {
			return src, dst
		}
	}
	r := newReader(source)
	for {
		buf, n, err := r.read()
		if n > 0 {
			_, dst = d.put((*buf)[:n])
		}
		if buf != nil {
			copyBuffers.Put(buf)
		}
		switch {
		case dst != nil:
			return nil, dst
		case err == io.EOF:
			return nil, nil
		case err != nil:
			return err, nil
		}
	}
}

// over ends a direction, once. src or dst is the error of that end; with neither, the source has ended
// its side. Who ends the second direction ends the flow.
func (d *direction) over(src, dst error) {
	f := d.flow
	if gone := d.gone(); gone != nil && errors.Is(src, os.ErrDeadlineExceeded) {
		src, dst = nil, gone // woken by giveUp
	}
	if s, ok := d.src.(*socket); ok && src == nil && dst == nil && s.cut() {
		src = errCut
	}
	switch {
	case src != nil:
		// Both directions of a broken end are dead. The other direction finds that out by itself.
		why := f.fail(relayCause(src, d.broke))
		d.dst.Reset(why)
		d.src.Reset(why)
		f.endWaits()
	case dst != nil:
		// The destination takes nothing more. That does not end its own direction: an answer may be
		// complete before the request is (RFC 9113, section 8.1), and its tail is still on the way.
		if s, ok := d.src.(*socket); ok {
			d.discard(s, dst)
		}
	default:
		_, app := d.dst.(*socket)
		if app && d.other().deliveredAll() {
			break // it is closed at once, which tells the same with a system call less
		}
		dst = d.dst.CloseWrite()
		d.left = app && errors.Is(dst, syscall.ENOTCONN)
	}
	f.mu.Lock()
	d.ended = true
	if d == &f.out && f.lease != nil && !f.in.ended {
		f.marks.Or(markHungUp)
	}
	if d.lost == nil {
		d.lost = dst
	}
	d.delivered = src == nil && d.lost == nil
	if d.delivered {
		d.watchStream()
	}
	if d.other().discarding {
		_ = d.dst.SetReadDeadline(time.Now().Add(lingerTimeout)) // a closed socket is not read for long
	}
	f.mu.Unlock()
	if f.left.Add(-1) == 0 {
		f.settle()
		f.g.record(f, f.reason())
	}
}

// deliveredAll reports whether the direction has ended well.
func (d *direction) deliveredAll() bool {
	d.flow.mu.Lock()
	defer d.flow.mu.Unlock()
	return d.delivered
}

// discard reads what nobody takes, because of lost, until the source ends, or until lingerTimeout (of a
// destination also lingerBytes) after the other direction has ended.
func (d *direction) discard(s *socket, lost error) {
	d.flow.mu.Lock()
	d.discarding, d.lost = true, lost
	deadline := time.Time{}
	if d.other().ended {
		deadline = time.Now().Add(lingerTimeout)
	}
	_ = s.SetReadDeadline(deadline) // a closed socket is not read for long
	d.flow.mu.Unlock()
	lingered := 0
	for r := newReader(s.Conn); ; {
		buf, n, err := r.read()
		if buf != nil {
			copyBuffers.Put(buf)
		}
		if d == &d.flow.out && d.lingers() {
			lingered += n
		}
		if err != nil || lingered > lingerBytes {
			return
		}
	}
}

// lingers reports whether the source is read for the sake of a direction that has ended.
func (d *direction) lingers() bool {
	d.flow.mu.Lock()
	defer d.flow.mu.Unlock()
	return d.other().ended
}

// watchStream looks after a stream that has ended its side while the other direction still runs: a reset
// of it would be noticed only by the next byte that goes there. Called with flow.mu held.
func (d *direction) watchStream() {
	f := d.flow
	s, ok := d.src.(Stream)
	if !ok || d.other().ended {
		return
	}
	if f.over == nil {
		f.over = make(chan struct{})
	}
	over := f.over
	d.watch = time.AfterFunc(watchHalfClosed, func() {
		select { // ended with the flow at the latest
		case <-s.Done():
			d.other().giveUp(errNotDelivered)
		case <-over:
		}
	})
}

// giveUp ends a direction whose destination is gone while its source is silent.
func (d *direction) giveUp(why error) {
	s, ok := d.src.(*socket)
	if !ok {
		d.src.Reset(d.flow.fail(&Error{Cause: d.other().broke, Err: why}))
		return
	}
	d.flow.mu.Lock()
	if !d.discarding && !d.ended {
		d.lost = why
		_ = s.SetReadDeadline(wakeNow) // pump goes on to discard
	}
	d.flow.mu.Unlock()
	s.Wake()
}

// gone is why the destination was given up, nil while it was not.
func (d *direction) gone() error {
	d.flow.mu.Lock()
	defer d.flow.mu.Unlock()
	return d.lost
}

// settle closes both ends when both directions have ended: an end that was told of the other's end is
// closed, one that was not is reset, so that nobody takes a cut flow for a complete one.
func (f *Flow) settle() {
	f.mu.Lock()
	if f.over != nil {
		close(f.over)
	}
	for _, d := range []*direction{&f.in, &f.out} {
		if d.watch != nil {
			d.watch.Stop()
		}
	}
	f.mu.Unlock()
	for _, d := range []*direction{&f.in, &f.out} {
		if d.delivered || d.left && d.other().delivered {
			_ = d.dst.Close() // it has ended, and there is nobody to tell
			continue
		}
		why := d.lost
		if why == nil {
			why = errNotDelivered
		}
		d.dst.Reset(f.fail(&Error{Cause: d.other().broke, Err: why}))
	}
}

// reader reads a connection without holding a buffer while it is silent, where the system can tell.
type reader struct {
	nc  net.Conn
	raw syscall.RawConn // nil: a buffer waits in the Read of nc

	limit int  // the most that one read brings
	now   bool // the read under way waits for nothing
	buf   *[]byte
	n     int
	err   error
	try   func(fd uintptr) bool // made once
}

func newReader(nc net.Conn) *reader {
	r := &reader{nc: nc, raw: nowait.Raw(nc), limit: copyBytes}
	r.try = r.tryRead
	return r
}

// read returns a buffer from copyBuffers with n bytes, which the caller puts back where it is not nil.
func (r *reader) read() (buf *[]byte, n int, err error) {
	if r.raw == nil {
		if w, ok := r.nc.(interface{ Await() error }); ok {
			if err := w.Await(); err != nil {
				return nil, 0, err
			}
		}
		buf = copyBuffers.Get().(*[]byte)
		n, err = r.nc.Read((*buf)[:r.limit])
		return buf, n, err
	}
	if err := r.raw.Read(r.try); err != nil {
		return nil, 0, err // closed, or the deadline has passed
	}
	return r.buf, r.n, r.err
}

// readNow is read that does not wait; with n 0 and no error nothing has come, or the system cannot tell.
func (r *reader) readNow() (buf *[]byte, n int, err error) {
	if r.raw == nil {
		return nil, 0, nil
	}
	r.now = true
	buf, n, err = r.read()
	r.now = false
	if errors.Is(err, syscall.EAGAIN) {
		err = nil
	}
	return buf, n, err
}

// tryRead is called when the socket may be readable; false waits until it is.
func (r *reader) tryRead(fd uintptr) bool {
	r.buf = copyBuffers.Get().(*[]byte)
	r.n, r.err = nowait.Read(fd, (*r.buf)[:r.limit])
	if errors.Is(r.err, syscall.EAGAIN) {
		copyBuffers.Put(r.buf)
		r.buf = nil
		return r.now
	}
	if r.n == 0 && r.err == nil {
		r.err = io.EOF
	}
	return true
}
