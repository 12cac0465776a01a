package nowait

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

// Raw returns the raw connection of a TCP or unix socket, whose descriptor is for the functions of this package.
// It is nil for anything else, and on other systems than Linux.
func Raw(c any) syscall.RawConn {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	if !Supported {
		return nil
	}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// Op is a call of one of this package's functions on a connection. It is made once and used again, by one
// goroutine at a time, as its parts would have to be allocated for each call.
type Op struct {
	call func(fd uintptr, p []byte) (int, error)
	p    []byte
	wait bool
	n    int
	err  error
	try  func(fd uintptr) bool
}

// NewOp returns an Op that calls Read, Peek, Write or WriteMore.
func NewOp(call func(fd uintptr, p []byte) (int, error)) *Op {
	o := &Op{call: call}
	o.try = func(fd uintptr) bool {
		o.n, o.err = o.call(fd, o.p)
		return !o.wait || !errors.Is(o.err, syscall.EAGAIN)
	}
	return o
}

// Do makes the call with p, by way of raw's method Read or Write. With wait it waits until something can be
// done, or the deadline passes; without, syscall.EAGAIN tells that nothing can be.
func (o *Op) Do(method func(func(fd uintptr) bool) error, p []byte, wait bool) (int, error) {
	o.p, o.wait = p, wait
	err := method(o.try)
	o.p = nil
	if err != nil {
		return 0, err // closed, or the deadline has passed
	}
	return o.n, o.err
}

// DoAll makes the call until all of p is used up. It waits as Do does.
func (o *Op) DoAll(method func(func(fd uintptr) bool) error, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = o.Do(method, p[n:], true)
		n += m
	}
	return n, err
}

// writes holds *Op of Write.
var writes = sync.Pool{New: func() any { return NewOp(Write) }}

// TryWrite writes what raw has room for, maybe nothing, and returns how much that was.
func TryWrite(raw syscall.RawConn, p []byte) (int, error) {
	o := writes.Get().(*Op)
	n, err := o.Do(raw.Write, p, false)
	writes.Put(o)
	if errors.Is(err, syscall.EAGAIN) {
		err = nil
	}
	return n, err
}

// WriteAll writes p to raw. It waits for room until the write deadline.
func WriteAll(raw syscall.RawConn, p []byte) (n int, err error) {
	o := writes.Get().(*Op)
	n, err = o.DoAll(raw.Write, p)
	writes.Put(o)
	return n, err
}
