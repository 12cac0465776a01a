package h2

import (
	"errors"
	"io"
	"net"
	"syscall"

	"culvert/tunnel/nowait"
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
	in     *nowait.Op

	// owned by who writes
	more      bool // more will be written at once: the system should not send small segments yet
	out, some *nowait.Op
	room      bool
	ask       func(fd uintptr) // sets room
}

// NewGate returns nc as a *Gate where it is a TCP connection of a system that has what that needs, and nc itself
// where it is not. TLS is to be spoken over the result; NewClient and NewServer find the Gate below it.
func NewGate(nc net.Conn) net.Conn {
	raw := nowait.Raw(nc)
	if raw == nil {
		return nc
	}
	g := &Gate{Conn: nc, raw: raw,
		in: nowait.NewOp(nowait.Read), out: nowait.NewOp(nowait.Write), some: nowait.NewOp(nowait.WriteMore)}
	g.ask = func(fd uintptr) { g.room = nowait.Writable(fd) }
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
func (g *Gate) Read(p []byte) (int, error) {
	if g.noWait && !g.filled {
		return 0, errDry // without asking the system: it was empty a moment ago
	}
	n, err := g.in.Do(g.raw.Read, p, !g.noWait)
	g.filled = n == len(p)
	switch {
	case errors.Is(err, syscall.EAGAIN):
		err = errDry
	case n == 0 && err == nil && len(p) > 0 && g.noWait:
		err = errDry // the end is left to the next Read that may wait
	case n == 0 && err == nil && len(p) > 0:
		err = io.EOF
	}
	return n, err
}

// Write writes to the connection. While more is to follow the system is told so, and builds full segments.
func (g *Gate) Write(p []byte) (n int, err error) {
	op := g.out
	if g.more {
		op = g.some
	}
	return op.DoAll(g.raw.Write, p)
}

// ReadOn is for who speaks TLS over the Gate without a Conn: it calls read, which is TLS's, for what can be had without
// waiting, until p is full. It reports the end of the connection as nothing.
func (g *Gate) ReadOn(read func([]byte) (int, error), p []byte) (int, error) {
	return g.readOn(read, p)
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
	g.room = false
	return g.raw.Control(g.ask) == nil && g.room
}
