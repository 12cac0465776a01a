package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/nowait"
)

// Conn is one end of a flow: a socket, or a stream of a transport. Each direction ends by itself, and an
// end that breaks shows as broken on the other side, never as ended.
type Conn interface {
	net.Conn

	// CloseWrite ends the direction that Write feeds, after all that was written: TCP FIN, END_STREAM.
	CloseWrite() error

	// Reset ends both directions at once, so that the other side sees a broken connection and not an
	// end: TCP RST, RST_STREAM. What was written and is not yet sent may be lost. cause tells why; a
	// transport sends the code that the table in status.go has for it. Calls on the Conn that are under
	// way return, and no Close is needed after it. Reset may be called twice, at any time and from any
	// goroutine.
	Reset(cause error)
}

// socket makes a Conn of a net.Conn that is no stream of a transport: a TCP connection, something with
// TLS around it, or an end in memory.
type socket struct {
	net.Conn
	wmu     sync.Mutex                // held while writing
	broken  bool                      // a write has taken the error of a broken connection; guarded by wmu
	watched bool                      // watchPeer was called; owned by sweepLoop
	fd      atomic.Int32              // the descriptor by which asleep is watched
	asleep  atomic.Pointer[direction] // what reads the socket and is parked; nil: nothing is
	raw     syscall.RawConn           // of a TCP connection that was written with tryWrite; guarded by wmu
}

// NewConn makes a Conn of a connection, such as an accepted TCP connection or one with TLS around it, or of a stream of
// HTTP/2. To half-close and to reset, what is no stream, or what its NetConn method returns, needs the methods CloseWrite
// and SetLinger of *net.TCPConn.
func NewConn(nc net.Conn) Conn {
	if s, ok := nc.(*h2.Stream); ok {
		return &h2Stream{s}
	}
	return newSocket(nc)
}

// newSocket wraps nc, whose bytes must all be still to be read from it.
func newSocket(nc net.Conn) *socket { return &socket{Conn: nc} }

// Write writes p to the connection.
func (s *socket) Write(p []byte) (int, error) {
	s.wmu.Lock()
	var n int
	var err error
	if s.findRaw() {
		n, err = nowait.WriteAll(s.raw, p)
	} else {
		n, err = s.Conn.Write(p)
	}
	if err != nil && swallowed(err) {
		s.broken = true
	}
	s.wmu.Unlock()
	return n, err
}

// tryWrite writes what there is room for, where the system can tell, and does not wait.
func (s *socket) tryWrite(p []byte) (int, error) {
	if !s.wmu.TryLock() {
		return 0, nil
	}
	defer s.wmu.Unlock()
	if !s.findRaw() {
		return 0, nil
	}
	n, err := nowait.TryWrite(s.raw, p)
	if err != nil && swallowed(err) {
		s.broken = true
	}
	return n, err
}

// findRaw reports whether the connection can be written by itself. Called with wmu held.
func (s *socket) findRaw() bool {
	if s.raw == nil {
		s.raw = nowait.Raw(s.Conn)
	}
	return s.raw != nil
}

// CloseWrite ends the writing direction. A connection that cannot do that is left as it is: Close will
// end it.
func (s *socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Reset closes so that the system sends RST and drops what is queued.
func (s *socket) Reset(error) {
	c := innermost(s.Conn)
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // a closed socket needs no linger
	}
	_ = c.Close()
	if c != s.Conn {
		_ = s.Conn.Close()
	}
	s.Wake()
}

// Close closes the connection.
func (s *socket) Close() error {
	err := s.Conn.Close()
	s.Wake()
	return err
}

// cut reports whether a read that returned io.EOF did so although the peer has not ended its side. The
// system tells the error of a broken connection to one call only; when a write has taken it, a read finds
// nothing but the end. Only a FIN is an end, also one that was followed by a reset.
func (s *socket) cut() bool {
	tc, ok := s.Conn.(*net.TCPConn)
	if !ok {
		return false // TLS has seen the peer say that it ends, whatever became of the connection then
	}
	if !s.wmu.TryLock() {
		if !writeWouldFail(tc) {
			return false // the write under way waits for room, and has taken no error
		}
		s.wmu.Lock() // it fails at once, and its error counts
	}
	defer s.wmu.Unlock()
	return s.broken
}

// writeWouldFail reports whether a connection takes no more writes, where the system can tell. After a reset the
// system shuts both directions and reports the error to one call only, so that a read may return io.EOF
// although nothing ended well; a write of no bytes still fails then, and does nothing else. It does not
// wait for a Write under way.
func writeWouldFail(tc *net.TCPConn) (failed bool) {
	raw := nowait.Raw(tc)
	if raw == nil || raw.Control(func(fd uintptr) {
		_, err := nowait.Write(fd, nil)
		failed = errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
	}) != nil {
		return false // closed by us
	}
	return failed
}

// swallowed reports whether the error of a write was the news that the connection is broken. EPIPE is
// none: the system returns it where the news is taken already, and for a reset that came after a FIN
// (tcp_reset in Linux), when all that the peer sent can still be read.
func swallowed(err error) bool {
	return !errors.Is(err, syscall.EPIPE) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// innermost follows NetConn to the connection that the system knows.
func innermost(nc net.Conn) net.Conn {
	for {
		c, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		inner := c.NetConn()
		if inner == nil || inner == nc {
			return nc
		}
		nc = inner
	}
}

// addrPort returns the address of a for records and policy, IPv4-mapped forms unmapped; the zero value
// where a is no IP address and port, as in memory.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case nil:
		return netip.AddrPort{}
	case *net.TCPAddr:
		ap = a.AddrPort()
	case interface{ AddrPort() netip.AddrPort }:
		ap = a.AddrPort()
	default:
		var err error
		if ap, err = netip.ParseAddrPort(a.String()); err != nil {
			return netip.AddrPort{}
		}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// maxUnsentBytes is how much a connection that carries streams hands to the system before it can be sent:
// twice what one write of the streams' scheduler brings.
const maxUnsentBytes = 256 << 10

// tuneTransport sets the options of a connection that carries streams, where it is TCP.
func tuneTransport(nc net.Conn) {
	if tc, ok := innermost(nc).(*net.TCPConn); ok {
		limitUnsent(tc)
	}
}

// watchPeer has the system ask whether the other end still lives, each time it was silent for so long. It is
// called when a flow falls silent: the many that are over before need no such calls to the system. silence 0 is the
// default, negative off. Called by sweepLoop only.
func (s *socket) watchPeer(silence time.Duration) {
	tc, ok := innermost(s.Conn).(*net.TCPConn)
	if s.watched || silence < 0 || !ok {
		return
	}
	s.watched = true
	// Without it dead ends are found later.
	_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: silence, Interval: silence, Count: keepAliveProbes})
}
