package tunnel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
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

// makeTransparent lets a socket take connections, and have addresses, that are not this host's (ip(7), IP_TRANSPARENT).
// A socket of both families has one switch for both. The error names what it takes.
func makeTransparent(raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		if err != nil { // a system without IPv4
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1))
		}
	}); cerr != nil {
		return cerr
	}
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("a transparent socket takes root or the capability CAP_NET_ADMIN: %w", os.NewSyscallError("setsockopt", syscall.EPERM))
	case err != nil:
		return os.NewSyscallError("setsockopt", err)
	}
	return nil
}

// markOwn is the mark of sockets that this gateway connects with; see capture.MarkOwn. A process without the privilege
// leaves it, and then its own flows may come back, which is found out; see loops.
func markOwn(raw syscall.RawConn, mark int) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
	})
}

// portLater has a socket that is bound to an address get its port only when it connects, so that all destinations do
// not share the ports (ip(7), IP_BIND_ADDRESS_NO_PORT).
func portLater(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // without it there are fewer ports
	})
}

// sharePort lets the sockets of flows of datagrams be bound beside their listener's, by this user's processes only.
func sharePort(raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("setsockopt", err)
}
