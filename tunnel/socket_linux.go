package tunnel

import (
	"errors"
	"net"
	"syscall"

	"culvert/tunnel/nowait"
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
	raw := nowait.Raw(tc)
	failed := false
	if raw == nil || raw.Control(func(fd uintptr) {
		_, err := nowait.Write(fd, nil)
		failed = errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
	}) != nil {
		return false // closed by us
	}
	return failed
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
