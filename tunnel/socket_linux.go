package tunnel

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// writeWouldFail reports whether nc is a TCP connection that takes no more writes. After a reset the
// system shuts both directions and reports the error to one call only, so that a read may return io.EOF
// although nothing ended well; write(2) of no bytes still fails then, and does nothing else. It does not
// wait for a Write under way.
func writeWouldFail(nc net.Conn) bool {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return false
	}
	failed := false
	if raw.Control(func(fd uintptr) {
		_, err := syscall.Write(int(fd), nil)
		failed = errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
	}) != nil {
		return false // closed by us
	}
	return failed
}

// reader reads a socket without holding a buffer while the socket is silent.
type reader struct {
	nc  net.Conn
	raw syscall.RawConn // nil: nc is no TCP connection, and a buffer waits in its Read
	buf *[]byte
	n   int
	err error
	try func(fd uintptr) bool // made once
}

func newReader(nc net.Conn) *reader {
	r := &reader{nc: nc}
	if tc, ok := nc.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			r.raw, r.try = raw, r.tryRead
		}
	}
	return r
}

// read returns a buffer from copyBuffers with n bytes, which the caller puts back where it is not nil.
func (r *reader) read() (buf *[]byte, n int, err error) {
	if r.raw == nil {
		return readBlocking(r.nc)
	}
	if err := r.raw.Read(r.try); err != nil {
		return nil, 0, err // closed, or the deadline has passed
	}
	return r.buf, r.n, r.err
}

// tryRead is called when the socket may be readable; false waits until it is.
func (r *reader) tryRead(fd uintptr) bool {
	r.buf = copyBuffers.Get().(*[]byte)
	for {
		r.n, r.err = syscall.Read(int(fd), *r.buf)
		if !errors.Is(r.err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(r.err, syscall.EAGAIN) {
		copyBuffers.Put(r.buf)
		r.buf = nil
		return false
	}
	if r.n = max(r.n, 0); r.n == 0 && r.err == nil {
		r.err = io.EOF
	}
	return true
}

// tcpNotSentLowat is TCP_NOTSENT_LOWAT, which package syscall does not have.
const tcpNotSentLowat = 0x19

// limitUnsent keeps little unsent below the scheduler of streams, so that a small stream does not wait
// behind what a bulk one has already handed to the system.
func limitUnsent(tc *net.TCPConn) {
	raw, err := tc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		// Without it the connection is only less fair.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, maxUnsentBytes)
	})
}
