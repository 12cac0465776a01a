package memnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// bufferBytes is what one direction holds before a Write waits, as a socket's buffer does.
const bufferBytes = 64 << 10

// Conn is one end of a connection. All methods may be used concurrently.
type Conn struct {
	in, out       *half
	local, remote netip.AddrPort

	mu     sync.Mutex
	closed bool // guarded by mu
	linger int  // guarded by mu; 0: Close resets
}

// Pipe returns the two ends of a connection between the addresses a and b.
func Pipe(a, b netip.AddrPort) (*Conn, *Conn) {
	ab, ba := newHalf(), newHalf()
	return &Conn{in: ba, out: ab, local: a, remote: b, linger: -1}, &Conn{in: ab, out: ba, local: b, remote: a, linger: -1}
}

// Read reads what the other end has written. After all of it, it returns io.EOF when the other end has
// ended its side, and ECONNRESET when it has reset the connection.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write hands p to the other end. It waits while the connection is full.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p) }

// CloseWrite ends the direction to the other end, as a FIN does.
func (c *Conn) CloseWrite() error {
	c.out.end()
	return nil
}

// SetLinger decides what Close does: with 0 it resets.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec
	return nil
}

// Close ends both directions. The other end still reads what was written, unless SetLinger(0) was called or
// bytes from it were not read: then it is reset, as by the system, and reads to the end only if CloseWrite
// came before. Close may be called twice.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if unread := c.in.closeReader(); unread || c.linger == 0 {
		c.out.reset()
	}
	c.out.closeWriter()
	return nil
}

// LocalAddr returns the *net.TCPAddr of this end.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the *net.TCPAddr of the other end.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

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

// half is one direction.
type half struct {
	mu            sync.Mutex
	changed       *sync.Cond
	buf           []byte
	ended         bool // the writer has sent its FIN
	broken        bool // reset by either end
	writerClosed  bool // by Close of the writer
	readerClosed  bool // by Close of the reader
	readDeadline  deadline
	writeDeadline deadline
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newHalf() *half {
	h := &half{}
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readerClosed:
			return 0, net.ErrClosed
		case h.readDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			if h.buf = h.buf[n:]; len(h.buf) == 0 {
				h.buf = nil
			}
			h.changed.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		case h.broken:
			return 0, &net.OpError{Op: "read", Net: "mem", Err: syscall.ECONNRESET}
		}
		h.changed.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writerClosed:
			return n, net.ErrClosed
		case h.broken:
			return n, &net.OpError{Op: "write", Net: "mem", Err: syscall.ECONNRESET}
		case h.ended, h.readerClosed:
			return n, &net.OpError{Op: "write", Net: "mem", Err: syscall.EPIPE}
		case h.writeDeadline.passed():
			return n, os.ErrDeadlineExceeded
		}
		if room := bufferBytes - len(h.buf); room > 0 {
			part := p[n:min(len(p), n+room)]
			h.buf = append(h.buf, part...)
			n += len(part)
			h.changed.Broadcast()
		}
		if n == len(p) {
			return n, nil
		}
		h.changed.Wait()
	}
}

func (h *half) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.changed.Broadcast()
}

func (h *half) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writerClosed = true
	if !h.broken {
		h.ended = true
	}
	h.writeDeadline.stop()
	h.changed.Broadcast()
}

// closeReader reports whether there were bytes that nobody has read. A writer learns that nobody will.
func (h *half) closeReader() (unread bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	unread = len(h.buf) > 0
	h.readerClosed, h.buf = true, nil
	h.readDeadline.stop()
	if !h.ended {
		h.broken = unread
	}
	h.changed.Broadcast()
	return unread
}

// reset breaks the direction. After a FIN all bytes have arrived and can still be read, as on Linux; before
// it they may be lost, and are.
func (h *half) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = true
	if !h.ended {
		h.buf = nil
	}
	h.changed.Broadcast()
}

func (h *half) setDeadline(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d.stop()
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			h.mu.Lock()
			h.changed.Broadcast()
			h.mu.Unlock()
		})
	}
	h.changed.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
