package nowait

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supported tells whether the functions that take a descriptor work on this system.
const Supported = true

// Read reads what has arrived at the socket fd, at most p. 0 and no error is the peer's end, EAGAIN that nothing
// has arrived.
func Read(fd uintptr, p []byte) (int, error) { return call(unix.SYS_RECVFROM, fd, p, 0) }

// Peek is Read that leaves the bytes where they are.
func Peek(fd uintptr, p []byte) (int, error) {
	return call(unix.SYS_RECVFROM, fd, p, syscall.MSG_PEEK)
}

// Write writes what the socket fd has room for and returns how much that was; EAGAIN: there is none.
func Write(fd uintptr, p []byte) (int, error) { return call(unix.SYS_SENDTO, fd, p, 0) }

// WriteMore is Write that announces another one at once: the system sends no small segment before that.
func WriteMore(fd uintptr, p []byte) (int, error) {
	return call(unix.SYS_SENDTO, fd, p, syscall.MSG_MORE)
}

func call(trap, fd uintptr, p []byte, flags uintptr) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			flags|syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, syscall.EAGAIN // without an allocation
		default:
			return 0, errno
		}
	}
}

// Readable reports whether the socket fd has something to read, an end or an error.
func Readable(fd uintptr) bool { return poll(fd, unix.POLLIN) != 0 }

// Writable reports whether the socket fd has room for a small write and is not broken.
func Writable(fd uintptr) bool { return poll(fd, unix.POLLOUT) == unix.POLLOUT }

// poll returns what of events, and of errors, is there now.
func poll(fd uintptr, events int16) int16 {
	p := unix.PollFd{Fd: int32(fd), Events: events}
	timeout := unix.Timespec{}
	n, _, errno := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1,
		uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	if errno != 0 || n != 1 {
		return 0
	}
	return p.Revents
}
