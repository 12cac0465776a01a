package h2test

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeBytes is what each direction of Pipe holds: more than any script sends or provokes while one end is
// not reading, except where a script wants the other end to feel a peer that does not read (PipeSize).
const pipeBytes = 4 << 20

// ErrBroken is what both ends of a connection return after Conn.Break.
var ErrBroken = errors.New("h2test: connection broken")

// Pipe returns the two ends of an in-memory connection with room for 4 MiB in each direction.
func Pipe() (a, b *Conn) { return PipeSize(pipeBytes) }

// PipeSize returns the two ends of an in-memory connection with room for limitBytes in each direction: a
// Write that finds no room waits for the other end's Read, for its deadline or for a Close.
func PipeSize(limitBytes int) (a, b *Conn) {
	ab, ba := newHalf(limitBytes), newHalf(limitBytes)
	return &Conn{in: ba, out: ab, local: "a", remote: "b"}, &Conn{in: ab, out: ba, local: "b", remote: "a"}
}

// Conn is one end of a Pipe. It behaves like a TCP connection: deadlines unblock and
// can be moved, and what was written before Close can still be read. All methods may be used concurrently.
type Conn struct {
	in, out       *half
	local, remote addr
}

// Read reads what the other end wrote. It returns io.EOF when the other end has closed and all was read.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write hands p to the other end. It blocks while the pipe is full.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close ends both directions: this end's calls return net.ErrClosed, the other end reads what is left and
// then io.EOF, and its writes return io.ErrClosedPipe. It may be called twice.
func (c *Conn) Close() error {
	c.in.closeReader()
	c.out.closeWriter()
	return nil
}

// CloseWrite ends the writing side: the other end reads io.EOF after what was written before.
func (c *Conn) CloseWrite() error {
	c.out.closeWriter()
	return nil
}

// Break cuts the connection like a TCP reset: what is under way is lost and both ends return ErrBroken.
func (c *Conn) Break() {
	c.in.cut()
	c.out.cut()
}

// Buffered says how many bytes wait to be read at this end.
func (c *Conn) Buffered() int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return len(c.in.buf)
}

// LocalAddr is an address of network "h2test".
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is an address of network "h2test".
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readDeadline, t)
	c.out.setDeadline(&c.out.writeDeadline, t)
	return nil
}

// SetReadDeadline sets the time after which Read returns os.ErrDeadlineExceeded.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readDeadline, t)
	return nil
}

// SetWriteDeadline sets the time after which Write returns os.ErrDeadlineExceeded.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeDeadline, t)
	return nil
}

type addr string

func (addr) Network() string  { return "h2test" }
func (a addr) String() string { return string(a) }

// half is one direction. Waiting is done on channels only: whoever changes something closes changed and
// puts a new channel in its place.
type half struct {
	limitBytes int // immutable

	mu            sync.Mutex
	buf           []byte        // guarded by mu
	writerClosed  bool          // guarded by mu
	readerClosed  bool          // guarded by mu
	broken        bool          // guarded by mu
	readDeadline  deadline      // guarded by mu
	writeDeadline deadline      // guarded by mu
	changed       chan struct{} // guarded by mu
}

// deadline is a moment and the channel that is closed when it has passed; nil channel: none set.
type deadline struct {
	timer  *time.Timer
	passed chan struct{}
}

func (d *deadline) expired() bool {
	select {
	case <-d.passed:
		return true
	default:
		return false
	}
}

func newHalf(limitBytes int) *half {
	return &half{limitBytes: limitBytes, changed: make(chan struct{})}
}

// wake is called with mu held.
func (h *half) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) read(p []byte) (int, error) {
	for {
		h.mu.Lock()
		switch {
		case h.readerClosed:
			h.mu.Unlock()
			return 0, net.ErrClosed
		case h.broken:
			h.mu.Unlock()
			return 0, ErrBroken
		case h.readDeadline.expired():
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > 0 || len(p) == 0:
			n := copy(p, h.buf)
			if h.buf = h.buf[n:]; len(h.buf) == 0 {
				h.buf = nil
			}
			h.wake()
			h.mu.Unlock()
			return n, nil
		case h.writerClosed:
			h.mu.Unlock()
			return 0, io.EOF
		}
		h.wait(&h.readDeadline)
	}
}

func (h *half) write(p []byte) (n int, err error) {
	for {
		h.mu.Lock()
		switch {
		case h.writerClosed:
			h.mu.Unlock()
			return n, net.ErrClosed
		case h.broken:
			h.mu.Unlock()
			return n, ErrBroken
		case h.readerClosed:
			h.mu.Unlock()
			return n, io.ErrClosedPipe
		case h.writeDeadline.expired():
			h.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		}
		if room := h.limitBytes - len(h.buf); room > 0 {
			part := p[n:min(len(p), n+room)]
			h.buf = append(h.buf, part...)
			n += len(part)
			h.wake()
		}
		if n == len(p) {
			h.mu.Unlock()
			return n, nil
		}
		h.wait(&h.writeDeadline)
	}
}

// wait is called with mu held, gives it up and returns when something has changed or d has passed.
func (h *half) wait(d *deadline) {
	changed, passed := h.changed, d.passed
	h.mu.Unlock()
	select {
	case <-changed:
	case <-passed:
	}
}

func (h *half) setDeadline(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	*d = deadline{}
	if !t.IsZero() {
		passed := make(chan struct{})
		d.passed = passed
		if left := time.Until(t); left <= 0 {
			close(passed)
		} else {
			d.timer = time.AfterFunc(left, func() { close(passed) })
		}
	}
	h.wake()
}

func (h *half) closeReader() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readerClosed, h.buf = true, nil
	h.stopTimers()
	h.wake()
}

func (h *half) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writerClosed = true
	if h.writeDeadline.timer != nil {
		h.writeDeadline.timer.Stop()
	}
	h.wake()
}

func (h *half) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken, h.buf = true, nil
	h.wake()
}

// stopTimers is called with mu held.
func (h *half) stopTimers() {
	if h.readDeadline.timer != nil {
		h.readDeadline.timer.Stop()
	}
}
