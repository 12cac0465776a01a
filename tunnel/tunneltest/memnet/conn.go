package memnet

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Conn is one end of a connection. All methods may be used concurrently.
type Conn struct {
	in, out       *half
	local, remote netip.AddrPort
	net           *Net // in whose books it is; nil for a Pipe

	mu     sync.Mutex
	closed bool // guarded by mu
	linger int  // guarded by mu; 0: Close resets
}

// Pipe returns the two ends of a connection between the addresses a and b, without delay or fault.
func Pipe(a, b netip.AddrPort) (*Conn, *Conn) { return PipeOver(a, b, Link{}, Link{}) }

// PipeOver is Pipe over the link ab from a to b, and ba back.
func PipeOver(a, b netip.AddrPort, ab, ba Link) (*Conn, *Conn) {
	out, back := newHalf(ab), newHalf(ba)
	out.other, back.other = back, out
	return &Conn{in: back, out: out, local: a, remote: b, linger: -1}, &Conn{in: out, out: back, local: b, remote: a, linger: -1}
}

// Read reads what the other end has written. After all of it, it returns io.EOF when the other end has
// ended its side, and ECONNRESET when it has reset the connection.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write hands p to the other end. It waits while the connection is full.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Cut breaks the connection for both ends, as a network does that forgets it: what has arrived can be read, and
// what is on its way is lost.
func (c *Conn) Cut() {
	c.in.cut()
	c.out.cut()
}

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
	c.net.forget(c)
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
