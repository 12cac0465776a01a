//go:build unix

package capture

import (
	"net"
	"os"
	"syscall"
)

// Pair returns both ends of a connection within this process: of bytes, each with CloseWrite, or of datagrams.
func Pair(packets bool) (a, b net.Conn, err error) {
	kind := syscall.SOCK_STREAM
	if packets {
		kind = syscall.SOCK_SEQPACKET // as with SOCK_DGRAM nobody would see the end
	}
	syscall.ForkLock.RLock() // or a child that is started now would keep them
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "flow")
		end, err2 := net.FileConn(f) // a second handle
		_ = f.Close()
		if err2 != nil {
			err = err2
		}
		ends[i] = end
	}
	if err != nil {
		for _, end := range ends {
			if end != nil {
				_ = end.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
