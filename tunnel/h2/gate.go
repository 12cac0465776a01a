package h2

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Gate is a TCP connection with TLS above it. It lets a Conn do what TLS has no words for: take what has
// arrived without waiting for more, say before a write that more will follow, and ask whether a small write
// would have to wait. TLS itself needs to know nothing of it.
type Gate struct {
	net.Conn
	raw syscall.RawConn

	// owned by who reads
	noWait bool // Read returns errDry where it would have to wait
	filled bool // the last read has filled its buffer: there may be more
	in     attempt

	// owned by who writes
	more  bool // more will be written at once: the system should not send small segments yet
	out   attempt
	poll  [1]unix.PollFd
	ready bool
	ask   func(fd uintptr) // sets ready
}

// attempt is one try to read or write a socket without waiting. Its function is made once.
type attempt struct {
	p   []byte
	n   int
	err error
	try func(fd uintptr) bool
}

// NewGate returns nc as a *Gate where it is a TCP connection, and nc itself where it is not. TLS is to be
// spoken over the result; NewClient and NewServer find the Gate below it.
func NewGate(nc net.Conn) net.Conn {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return nc
	}
	g := &Gate{Conn: nc, raw: raw}
	g.in.try = g.in.read
	g.out.try = g.out.write
	g.ask = func(fd uintptr) {
		g.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
		n, err := unix.Poll(g.poll[:], 0)
		g.ready = err == nil && n == 1 && g.poll[0].Revents == unix.POLLOUT
	}
	return g
}

// gateOf finds the gate below a connection, nil where there is none.
func gateOf(nc net.Conn) *Gate {
	if c, ok := nc.(interface{ NetConn() net.Conn }); ok {
		g, _ := c.NetConn().(*Gate)
		return g
	}
	return nil
}

// NetConn returns the TCP connection.
func (g *Gate) NetConn() net.Conn { return g.Conn }

// errDry is what Read returns instead of waiting. It is temporary, so that TLS goes on after it.
var errDry net.Error = dryError{}

type dryError struct{}

func (dryError) Error() string   { return "nothing more has arrived" }
func (dryError) Timeout() bool   { return false }
func (dryError) Temporary() bool { return true }

// Read reads from the connection; between a Conn's calls of readOn it does not wait.
func (g *Gate) Read(p []byte) (n int, err error) {
	switch {
	case !g.noWait:
		n, err = g.Conn.Read(p)
	case !g.filled:
		return 0, errDry // without asking the system: it was empty a moment ago
	default:
		n, err = g.in.run(g.raw.Read, p)
		if errors.Is(err, syscall.EAGAIN) {
			err = errDry
		}
	}
	g.filled = n == len(p)
	return n, err
}

// run makes the attempt with p, by way of the methods Read or Write of a syscall.RawConn.
func (a *attempt) run(raw func(func(uintptr) bool) error, p []byte) (int, error) {
	a.p = p
	err := raw(a.try)
	a.p = nil
	if err != nil {
		return 0, err
	}
	return a.n, a.err
}

// read leaves the end of the input, which read(2) tells as 0 bytes, to the next Read that may wait.
func (a *attempt) read(fd uintptr) bool {
	a.n, a.err = ignoringEINTR(syscall.Read, fd, a.p)
	if a.n == 0 && a.err == nil {
		a.err = syscall.EAGAIN
	}
	return true
}

func ignoringEINTR(call func(int, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		n, err := call(int(fd), p)
		if !errors.Is(err, syscall.EINTR) {
			return max(n, 0), err
		}
	}
}

// readOn reads with read what can be had without waiting, until p is full.
func (g *Gate) readOn(read func([]byte) (int, error), p []byte) (n int, err error) {
	g.noWait = true
	for n < len(p) && err == nil {
		var m int
		m, err = read(p[n:])
		n += m
	}
	g.noWait = false
	if errors.Is(err, errDry) {
		err = nil
	}
	return n, err
}

// roomy reports whether a small write would find room in the system's buffer.
func (g *Gate) roomy() bool {
	g.ready = false
	return g.raw.Control(g.ask) == nil && g.ready
}
