package tunnel

import (
	"net"
	"syscall"
)

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
