package nowait

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// Watch waits for any number of silent sockets at once, so that none of them costs a goroutine. Safe for concurrent
// use.
type Watch struct {
	file *os.File // the epoll instance
	raw  syscall.RawConn
	done chan struct{} // closed when loop has ended

	mu   sync.Mutex
	wait []Sleeper // by descriptor; guarded by mu
}

// Sleeper is told when its socket has something to tell.
type Sleeper interface {
	// Wake is called without locks and must not block. The socket has bytes, an end or an error, or had and has
	// been closed since.
	Wake()
}

// watchEvents is how many events are taken with one system call.
const watchEvents = 64

// NewWatch returns a Watch, which must be closed.
func NewWatch() (*Watch, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // so that Go's own poller takes it
		_ = syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	w := &Watch{file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{})}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, err
	}
	go w.loop() // ends with Close
	return w, nil
}

// Close ends the waiting: nobody is woken any more. It waits for calls of Wake under way.
func (w *Watch) Close() {
	_ = w.file.Close() // it is open
	<-w.done
}

// Add has s woken once, when the socket of raw has something to tell. It returns the socket's descriptor, for
// Remove. A socket that is closed first must be removed.
func (w *Watch) Add(raw syscall.RawConn, s Sleeper) (fd int, err error) {
	cerr := raw.Control(func(sfd uintptr) {
		fd = int(sfd)
		w.set(fd, s)
		err = w.arm(fd)
	})
	if cerr != nil {
		return -1, cerr // closed
	}
	if err != nil {
		w.Remove(fd, s)
	}
	return fd, err
}

func (w *Watch) set(fd int, s Sleeper) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for fd >= len(w.wait) {
		w.wait = append(w.wait, nil)
	}
	w.wait[fd] = s
}

// arm has the system tell of fd once. What there is to tell already counts.
func (w *Watch) arm(fd int) error {
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(fd)}
	var err error
	if cerr := w.raw.Control(func(ep uintptr) {
		err = syscall.EpollCtl(int(ep), syscall.EPOLL_CTL_ADD, fd, &e)
		if errors.Is(err, syscall.EEXIST) { // it was added before
			err = syscall.EpollCtl(int(ep), syscall.EPOLL_CTL_MOD, fd, &e)
		}
	}); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("epoll_ctl", err)
}

// Remove has s no longer woken for the descriptor fd. A call of Wake may be under way.
func (w *Watch) Remove(fd int, s Sleeper) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fd >= 0 && fd < len(w.wait) && w.wait[fd] == s {
		w.wait[fd] = nil
	}
}

// take returns who waits for fd, and forgets it.
func (w *Watch) take(fd int) Sleeper {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.wait[fd]
	w.wait[fd] = nil
	return s
}

func (w *Watch) loop() {
	defer close(w.done)
	var events [watchEvents]syscall.EpollEvent
	var n int
	wait := func(ep uintptr) bool {
		n = epollWait(ep, events[:])
		return n > 0
	}
	for w.raw.Read(wait) == nil {
		for _, e := range events[:n] {
			// The descriptor may be another's by now, who is woken for nothing.
			if s := w.take(int(e.Fd)); s != nil {
				s.Wake()
			}
		}
	}
}

// epollWait takes the events that are there and returns how many.
func epollWait(ep uintptr, events []syscall.EpollEvent) int {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, ep, uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n)
		case syscall.EINTR:
		default:
			return 0 // closed
		}
	}
}
