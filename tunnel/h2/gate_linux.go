package h2

import (
	"errors"
	"syscall"
)

// Write writes to the connection. While more is to follow the system is told so, and builds full segments.
func (g *Gate) Write(p []byte) (n int, err error) {
	if !g.more {
		return g.Conn.Write(p)
	}
	for n < len(p) {
		m, err := g.out.run(g.raw.Write, p[n:])
		if n += m; errors.Is(err, syscall.EAGAIN) {
			m, err = g.Conn.Write(p[n:]) // waits
			return n + m, err
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a *attempt) write(fd uintptr) bool {
	a.n, a.err = ignoringEINTR(sendMore, fd, a.p)
	return true
}

func sendMore(fd int, p []byte) (int, error) {
	return syscall.SendmsgN(fd, p, nil, nil, syscall.MSG_MORE|syscall.MSG_NOSIGNAL)
}
