//go:build unix

package capture

import (
	"errors"
	"net"
	"syscall"
)

// peek calls look with what has arrived at a socket, again each time that there is more, until look wants no more, the
// peer ends before it has sent anything, or the read deadline passes. It returns false, and has not called look, where nc is no socket.
func peek(nc net.Conn, buf []byte, look func([]byte) (more bool)) bool {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return false
	}
	seen := -1
	_ = raw.Read(func(fd uintptr) bool { // whatever ends it, the reader of the flow will find
		for {
			n, _, err := syscall.Recvfrom(int(fd), buf, syscall.MSG_PEEK)
			switch {
			case errors.Is(err, syscall.EINTR):
			case errors.Is(err, syscall.EAGAIN), err == nil && n == seen: // woken for something else
				return false
			case err != nil || n == 0:
				return true
			default:
				seen = n
				return !look(buf[:n])
			}
		}
	})
	return true
}
