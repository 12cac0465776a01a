package ingress

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"culvert/tunnel"
)

// protocol is what the first bytes of a connection are of.
type protocol uint8

const (
	isUnknown protocol = iota
	isNothing          // the client has gone, or says nothing
	isTLS
	isHTTP1
	isHTTP2
	isTCP
	isMore // more bytes have to be seen
)

const (
	// preface begins a connection of HTTP/2 (RFC 9113, section 3.4).
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// maxMethod is how long a method may be.
	maxMethod = 20
	// tlsHandshake is the type of the first record of TLS (RFC 8446, section 5.1).
	tlsHandshake = 22
)

// sniff reads the first bytes of a connection, beside those that came already, until they tell what it speaks.
func (s *Server) sniff(nc net.Conn, ahead []byte) ([]byte, protocol) {
	wait := s.conf.HeadTimeout
	if s.speaks(tunnel.IngressTCP) {
		wait = s.conf.Sniff
	}
	if nc.SetReadDeadline(time.Now().Add(wait)) != nil {
		return nil, isNothing
	}
	if cap(ahead)-len(ahead) < sniffBytes {
		ahead = append(make([]byte, 0, len(ahead)+sniffBytes), ahead...)
	}
	for {
		what := s.protocolOf(ahead)
		if what != isMore {
			_ = nc.SetReadDeadline(time.Time{}) // what is closed shows soon
			return ahead, what
		}
		n, err := nc.Read(ahead[len(ahead):cap(ahead)])
		ahead = ahead[:len(ahead)+n]
		if err == nil || n > 0 {
			continue
		}
		_ = nc.SetReadDeadline(time.Time{}) // as above
		switch {
		case s.speaks(tunnel.IngressTCP) && (errors.Is(err, os.ErrDeadlineExceeded) || err == io.EOF):
			return ahead, isTCP // it waits for the server
		case len(ahead) == 0:
			return nil, isNothing
		case s.speaks(tunnel.IngressHTTP):
			return ahead, isHTTP1 // where it is answered
		}
		return ahead, isUnknown
	}
}

// sniffBytes is how much is read at once: mostly all that comes first.
const sniffBytes = 2 << 10

// protocolOf tells what b begins.
func (s *Server) protocolOf(b []byte) protocol {
	if len(b) == 0 {
		return isMore
	}
	if b[0] == tlsHandshake && s.speaks(tunnel.IngressTLS) {
		return isTLS
	}
	other := isUnknown
	switch {
	case s.speaks(tunnel.IngressTCP):
		other = isTCP
	case s.speaks(tunnel.IngressHTTP):
		other = isHTTP1 // which says what is wrong
	}
	if n := min(len(b), len(preface)); s.speaks(tunnel.IngressH2C) && string(b[:n]) == preface[:n] {
		if n == len(preface) {
			return isHTTP2
		}
		return isMore
	}
	if !s.speaks(tunnel.IngressHTTP) {
		return other
	}
	for i, c := range b {
		switch {
		case c == ' ' && i > 0:
			return isHTTP1
		case i >= maxMethod || !isTokenByte(c):
			return other
		}
	}
	return isMore
}

// isTokenByte reports whether c may be in a token (RFC 9110, section 5.6.2).
func isTokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	ahead []byte
}

// Read returns what was read already, then what comes.
func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.ahead) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.ahead)
	if p.ahead = p.ahead[n:]; len(p.ahead) == 0 {
		p.ahead = nil
	}
	return n, nil
}

// NetConn returns the connection below.
func (p *prefixed) NetConn() net.Conn { return p.Conn }

// CloseWrite ends the direction to the client.
func (p *prefixed) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
