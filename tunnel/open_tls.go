package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"culvert/tunnel/h2"
)

// protoHTTP1 is what servers speak that know nothing of ALPN.
const protoHTTP1 = "http/1.1"

// addTLS speaks TLS with the destination of f over end, which leads there, for an app that speaks plain. After an error
// end is closed.
func (g *Gateway) addTLS(ctx context.Context, f *Flow, end Conn) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.plan.timeouts.Handshake)
	defer cancel()
	conf, err := g.originTLS(f.via.tls, f.Target)
	if err != nil {
		err = &Error{Cause: CauseConfiguration, Reason: "tls of " + f.via.name, Err: err}
		end.Reset(err)
		return nil, err
	}
	defer f.times.since(phaseTLS, time.Now())
	te := newTLSEnd(plainConn(end), conf)
	if err = te.HandshakeContext(ctx); err == nil {
		err = agreed(te.ConnectionState().NegotiatedProtocol, conf.NextProtos)
	}
	if err != nil {
		err = originError(timedOut(ctx, err), conf.ServerName)
		end.Reset(err)
		return nil, err
	}
	return newSocket(te), nil
}

// originTLS is how c wants TLS to be spoken with t.
func (g *Gateway) originTLS(c *TLSConfig, t Target) (*tls.Config, error) {
	files, err := g.env.OriginTLS(c)
	if err != nil {
		return nil, err
	}
	conf := files.Clone()
	conf.ServerName, conf.NextProtos, conf.MinVersion = c.ServerName, c.ALPN, tls.VersionTLS12
	conf.DynamicRecordSizingDisabled = true
	if v := tlsVersion(c.MinVersion); v != 0 {
		conf.MinVersion = v
	}
	if conf.ServerName == "" && t.IsName() {
		conf.ServerName = t.Host
	} else if conf.ServerName == "" && t.Addr.IsValid() {
		conf.ServerName = t.Addr.String()
	}
	if conf.ServerName == "" {
		return nil, errors.New("a unix socket has no name that its certificate could be for; write serverName")
	}
	return conf, nil
}

// tlsVersion reads MinVersion, 0 for none.
func tlsVersion(text string) uint16 {
	switch text {
	case "1.2":
		return tls.VersionTLS12
	case "1.3":
		return tls.VersionTLS13
	}
	return 0
}

// errNoProtocol is why a destination is refused that has agreed on no protocol.
var errNoProtocol = errors.New("it agreed on no protocol")

// agreed checks what was agreed on: an app that speaks HTTP/2 must not be led to a server that does not.
func agreed(got string, offered []string) error {
	if len(offered) == 0 || got != "" || slices.Contains(offered, protoHTTP1) {
		return nil
	}
	return errNoProtocol
}

// originError says why TLS with the destination failed, and which field of tls mends it.
func originError(err error, name string) error {
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	e := &Error{Cause: networkCause(err), Reason: "TLS handshake", Err: err}
	switch {
	case errors.As(err, &host):
		e.Cause, e.Reason = CauseTLSCertificate, fmt.Sprintf("its certificate is not for %s; if it is the right server, write the name that it is for in tls.serverName", name)
	case errors.As(err, &authority):
		e.Cause, e.Reason = CauseTLSCertificate, "its certificate was signed by none of the CAs that are believed; name the right one in tls.roots"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Cause, e.Reason = CauseTLSCertificate, "its certificate is not valid now; the server needs a new one, or this host's clock is wrong"
	case errors.As(err, &certificate):
		e.Cause, e.Reason = CauseTLSCertificate, "its certificate is refused"
	case errors.Is(err, errNoProtocol):
		e.Cause, e.Reason, e.Err = CauseTLS, "the server agreed on none of the protocols of tls.alpn", nil
	case errors.As(err, &record):
		e.Cause, e.Reason = CauseTLS, "the server does not speak TLS on this port; remove tls from the route, or use another port"
	case e.Cause == CauseHopAlert:
		e.Cause, e.Reason = CauseTLSAlert, alertReason(err)
	case e.Cause == CauseUnavailable:
		e.Cause, e.Reason = CauseTLS, "the server ended the connection in the TLS handshake"
	case e.Cause == CauseInternal:
		e.Cause = CauseTLS
	}
	return e
}

// alertReason is what to do about an alert of the server; crypto/tls exports no more of it than its text.
func alertReason(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "certificate") || strings.Contains(text, "access denied"):
		return "it wants a certificate of this gateway, or another one; name it in tls.cert and tls.key"
	case strings.Contains(text, "handshake failure"):
		return "it takes none of the versions and ciphers that are offered, or wants a certificate of this gateway (tls.cert and tls.key)"
	case strings.Contains(text, "protocol version"):
		return "it speaks no version of TLS that is spoken here; see tls.minVersion"
	case strings.Contains(text, "application protocol"):
		return "it speaks none of the protocols of tls.alpn"
	case strings.Contains(text, "unrecognized name"):
		return "it does not know the name that it was asked for; see tls.serverName"
	}
	return "TLS handshake"
}

// tlsEnd is a connection with TLS above it, as a client. While it is silent it holds no buffer of its reader, where the
// system can tell what has arrived; and the end of a direction waits for room as any byte does.
type tlsEnd struct {
	*tls.Conn
	below *belowTLS
	gate  *h2.Gate // below all; nil: it cannot be asked

	// owned by who reads
	first [1]byte // of what Read will return
	has   bool
}

func newTLSEnd(nc net.Conn, conf *tls.Config) *tlsEnd {
	e := &tlsEnd{below: &belowTLS{Conn: h2.NewGate(nc)}}
	e.gate, _ = e.below.Conn.(*h2.Gate)
	e.Conn = tls.Client(e.below, conf)
	return e
}

// belowTLS is the connection as crypto/tls sees it, which would otherwise do two things that lose bytes.
type belowTLS struct {
	net.Conn
	ended bool // the other end has; owned by who reads
}

// Read notes the end of the connection: crypto/tls takes one for the end of what was said, though nobody has said so.
func (b *belowTLS) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}

// SetWriteDeadline does nothing: crypto/tls would give up the alert that ends a direction after five seconds, and all
// that was written before it with the connection. Whoever must not wait calls that of tlsEnd.
func (*belowTLS) SetWriteDeadline(time.Time) error { return nil }

// NetConn returns the connection below.
func (e *tlsEnd) NetConn() net.Conn { return e.below.Conn }

// SetDeadline sets both deadlines of the connection below.
func (e *tlsEnd) SetDeadline(t time.Time) error { return e.below.Conn.SetDeadline(t) }

// SetReadDeadline sets that of the connection below.
func (e *tlsEnd) SetReadDeadline(t time.Time) error { return e.below.Conn.SetReadDeadline(t) }

// SetWriteDeadline sets that of the connection below.
func (e *tlsEnd) SetWriteDeadline(t time.Time) error { return e.below.Conn.SetWriteDeadline(t) }

// Await blocks until Read has something to return, or would fail. It takes one byte and keeps it: TLS has no other
// way to tell.
func (e *tlsEnd) Await() error {
	for !e.has {
		n, err := e.read(e.first[:])
		e.has = n == 1
		if err != nil && !e.has {
			return err
		}
	}
	return nil
}

// Read reads all that has arrived, in as many records as fit.
func (e *tlsEnd) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if e.gate == nil && !e.has {
		return e.read(p)
	}
	if err := e.Await(); err != nil {
		return 0, err
	}
	p[0], e.has = e.first[0], false
	if e.gate == nil {
		return 1, nil
	}
	n, err = e.gate.ReadOn(e.read, p[1:])
	return n + 1, err
}

// read is Read of TLS that tells a connection that was cut from one that has ended.
func (e *tlsEnd) read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if err == io.EOF && e.below.ended {
		err = errTruncated
	}
	return n, err
}

// errTruncated is the end of a connection on which the server has not said that it ends.
var errTruncated = fmt.Errorf("the server has ended the connection without a close_notify: %w", io.ErrUnexpectedEOF)

// streamUnder is the stream that c is made of, where TLS is spoken over one; else c.
func streamUnder(c Conn) Conn {
	if s, ok := c.(*socket); ok {
		if under, ok := innermost(s.Conn).(*streamConn); ok {
			return under.Stream
		}
	}
	return c
}

// plainConn is what TLS is spoken over: the connection of a socket, or a stream that is made to look like one.
func plainConn(c Conn) net.Conn {
	switch c := c.(type) {
	case *socket:
		return c.Conn
	case Stream:
		return &streamConn{Stream: c}
	}
	return c
}

// streamConn is a stream below TLS. It can be reset as a socket is: with SetLinger(0) and Close.
type streamConn struct {
	Stream
	reset atomic.Bool
}

// SetLinger has Close reset the stream if sec is 0.
func (s *streamConn) SetLinger(sec int) error {
	s.reset.Store(sec == 0)
	return nil
}

// Close closes the stream, or resets it.
func (s *streamConn) Close() error {
	if s.reset.Load() {
		s.Reset(errNotDelivered)
		return nil
	}
	return s.Stream.Close()
}
