//go:build unix

package capture

import (
	"errors"
	"io"
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
		if unixEnd, ok := end.(*net.UnixConn); ok && packets {
			end = &packetPairEnd{Conn: unixEnd, socket: unixEnd}
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

// packetPairEnd is an end of a pair for datagrams. A byte follows each payload, as a message of none is the end.
type packetPairEnd struct {
	net.Conn
	socket *net.UnixConn // the same
}

func (e *packetPairEnd) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, _, flags, _, err := e.socket.ReadMsgUnix(p, nil)
	switch {
	case errors.Is(err, io.EOF):
		return 0, io.EOF // as Read has it
	case n > 0 && flags&syscall.MSG_TRUNC == 0:
		n--
	}
	return n, err
}

func (e *packetPairEnd) Write(p []byte) (int, error) {
	n, err := e.socket.Write(append(p[:len(p):len(p)], 0))
	return max(n-1, 0), err
}

// TryWrite is Write that does not wait: where there is no room the error is syscall.EAGAIN.
func (e *packetPairEnd) TryWrite(p []byte) error {
	raw, err := e.socket.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	if err := raw.Write(func(fd uintptr) bool {
		werr = syscall.Sendto(int(fd), append(p[:len(p):len(p)], 0), syscall.MSG_DONTWAIT, nil)
		return true
	}); err != nil {
		return err
	}
	return werr
}

// SyscallConn returns the socket itself, for waiting.
func (e *packetPairEnd) SyscallConn() (syscall.RawConn, error) { return e.socket.SyscallConn() }
