package tunnel

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"culvert/tunnel/nowait"
)

const (
	// pipeBytes is the size of a pipe between two sockets, which has a place for each 4 KiB of it, however few bytes of a
	// packet are there. The system gives less to users with many pipes (pipe(7), /proc/sys/fs/pipe-user-pages-soft).
	pipeBytes = 1 << 20
	// leastPipe is the smallest pipe that is of use: with less, copying is faster.
	leastPipe = 64 << 10
	// gatherBytes is how much is drawn from the source at most before it is passed on, and gathered as long as more comes:
	// each time wakes somebody up. What is less than gatherFrom is passed on at once.
	gatherBytes = 256 << 10
	gatherFrom  = 16 << 10
)

// pipe is what bytes pass through that splice(2) moves from socket to socket: they are not copied, and do not come into
// this process. It is empty while it is in pipes.
type pipe struct {
	r, w      int
	collected runtime.Cleanup
}

// close closes the pipe and drops what is in it.
func (p *pipe) close() {
	p.collected.Stop()
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
	runtime.KeepAlive(p) // or it were collected before Stop
}

// pipes holds *pipe. A pipe that is collected is closed.
var pipes = sync.Pool{New: func() any {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return (*pipe)(nil)
	}
	size, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeBytes)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(fds[0]), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < leastPipe {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return (*pipe)(nil)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	p.collected = runtime.AddCleanup(p, func(fds [2]int) {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
	}, fds)
	return p
}}

// splicer moves what a TCP connection delivers to another one. While the source is silent it holds nothing.
type splicer struct {
	src, dst *socket
	in, out  syscall.RawConn

	p     *pipe // nil: there is nothing in one
	n     int   // bytes in p
	err   error // of the call under way
	fill  func(fd uintptr) bool
	drain func(fd uintptr) bool
}

// newSplicer returns nil where the system cannot do that between the two.
func newSplicer(src, dst Conn) *splicer {
	from, ok := src.(*socket)
	to, ok2 := dst.(*socket)
	if !ok || !ok2 {
		return nil
	}
	s := &splicer{src: from, dst: to, in: nowait.Raw(from.Conn), out: nowait.Raw(to.Conn)}
	if s.in == nil || s.out == nil {
		return nil
	}
	s.fill, s.drain = s.tryFill, s.tryDrain
	return s
}

// move moves what comes next, and waits for it. n is how much the destination has taken; at the source's end the error
// is io.EOF.
func (s *splicer) move() (n int, src, dst error) {
	s.err = nil
	if err := s.in.Read(s.fill); err != nil {
		return 0, err, nil // closed, or the deadline has passed
	}
	if s.err != nil {
		return 0, s.err, nil
	}
	if s.n == 0 {
		return 0, io.EOF, nil
	}
	want := s.n
	s.dst.wmu.Lock()
	err := s.out.Write(s.drain)
	if err == nil {
		err = s.err
	}
	if err != nil && swallowed(err) {
		s.dst.broken = true
	}
	s.dst.wmu.Unlock()
	if err == nil {
		pipes.Put(s.p)
	} else {
		s.p.close() // the bytes in it are nobody's
	}
	n, s.p, s.n = want-s.n, nil, 0
	return n, nil, err
}

// splice moves up to n bytes without waiting.
func splice(from, to uintptr, n int) (int, error) {
	for {
		m, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, from, 0, to, 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch errno {
		case 0:
			return int(m), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, syscall.EAGAIN // without an allocation
		default:
			return 0, errno
		}
	}
}

// tryFill is called when the source may be readable; false waits until it is.
func (s *splicer) tryFill(fd uintptr) bool {
	s.p = pipes.Get().(*pipe)
	if s.p == nil {
		s.err = syscall.EMFILE
		return true
	}
	s.n, s.err = splice(fd, uintptr(s.p.w), gatherBytes)
	for m := s.n; m > 0 && s.n >= gatherFrom && s.n < gatherBytes; {
		runtime.Gosched() // who sends it may have to be let
		if m, _ = splice(fd, uintptr(s.p.w), gatherBytes-s.n); m > 0 {
			s.n += m
		}
	}
	if s.n > 0 {
		return true
	}
	pipes.Put(s.p)
	s.p = nil
	if errors.Is(s.err, syscall.EAGAIN) {
		s.err = nil
		return false
	}
	return true
}

// tryDrain is called when the destination may have room; false waits until it has.
func (s *splicer) tryDrain(fd uintptr) bool {
	for s.n > 0 {
		m, err := splice(uintptr(s.p.r), fd, s.n)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil:
			s.err = err
			return true
		}
		s.n -= m
	}
	return true
}

// spliced carries what comes until one side fails or the source ends, without copying. ok is false where nothing was
// carried because it cannot be done.
func (d *direction) spliced() (src, dst error, ok bool) {
	s := newSplicer(d.src, d.dst)
	if s == nil {
		return nil, nil, false
	}
	for {
		n, src, dst := s.move()
		d.moved(n)
		switch {
		case errors.Is(src, syscall.EINVAL), errors.Is(src, syscall.EMFILE), errors.Is(src, syscall.ENFILE):
			return nil, nil, false // a kind of socket that it is not for, or no file for a pipe: nothing was taken
		case dst != nil:
			return nil, dst, true
		case src == io.EOF:
			return nil, nil, true
		case src != nil:
			return src, nil, true
		}
	}
}
