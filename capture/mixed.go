package capture

import (
	"net"
	"time"
)

// Mixed catches what clients of SOCKS and of an HTTP proxy ask for on the same port: their first byte tells them apart.
// SOCKS begins with its version, a request of HTTP with a letter.
type Mixed struct {
	socks *Socks5
	http  *HTTPProxy
}

var _ Server = (*Mixed)(nil)

// NewMixed makes a way of both, which it owns.
func NewMixed(socks *Socks5, http *HTTPProxy) *Mixed {
	http.pac = "PROXY %s; SOCKS5 %s"
	return &Mixed{socks: socks, http: http}
}

// Warnings returns what works, but should be known to an operator; nil is usual.
func (m *Mixed) Warnings() []string { return append(m.socks.Warnings(), m.http.Warnings()...) }

// Serve waits for the first byte, as long as the handshake of SOCKS may take.
func (m *Mixed) Serve(nc net.Conn, carry func(*Conn), over func()) error {
	p := &prefixedConn{Conn: nc}
	if m.socks.timeout > 0 {
		_ = nc.SetReadDeadline(time.Now().Add(m.socks.timeout)) // a connection that is closed will tell
	}
	n, err := nc.Read(p.first[:])
	if n == 0 {
		h := &handshake{way: m.socks, nc: nc, err: err}
		_ = nc.Close() // it has failed already
		over()
		return h.broken("greeting")
	}
	_ = nc.SetReadDeadline(time.Time{}) // as before
	p.left = true
	if p.first[0] != socksVersion && p.first[0] != socks4Version {
		m.http.serve(&httpConn{Conn: p, raw: nc, carry: carry, done: over})
		return nil
	}
	return m.socks.Serve(p, func(c *Conn) {
		if c.Conn == net.Conn(p) {
			c.Conn = nc // the first byte was read
		}
		carry(c)
	}, over)
}

// Close closes the connections on which no request is under way.
func (m *Mixed) Close() {
	m.socks.Close()
	m.http.Close()
}

// prefixedConn is a connection whose first byte was read.
type prefixedConn struct {
	net.Conn
	first [1]byte
	left  bool // first is still to be served; owned by the reader
}

func (c *prefixedConn) Read(p []byte) (int, error) {
	if !c.left || len(p) == 0 {
		return c.Conn.Read(p)
	}
	c.left = false
	return copy(p, c.first[:]), nil
}

// CloseWrite ends the direction towards the app; see linger.
func (c *prefixedConn) CloseWrite() error { return (&Conn{Conn: c.Conn}).CloseWrite() }
