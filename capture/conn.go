package capture

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

const (
	// replyTimeout bounds the sending of a refusal. RFC 1928, section 6: the connection is to be ended
	// "no more than 10 seconds after detecting the condition that caused a failure".
	replyTimeout = 10 * time.Second
	// lingerTimeout and lingerBytes bound how long, and how much of what a refused app had already
	// sent, is read before its connection is closed.
	lingerTimeout = time.Second
	lingerBytes   = 64 << 10
)

// A Way is how connections are caught. Its methods may be called concurrently.
type Way interface {
	// Catch learns from nc where it is meant to go. It runs in the caller's goroutine and blocks until
	// that is known or nc failed, for no longer than the way's own timeout (and a second after it has
	// said no) and reading no more than a bounded number of bytes; closing nc ends it too. It uses the
	// deadlines of nc and clears them when it succeeds. When it fails it has answered in the way's
	// protocol and closed nc, and the error is a *HandshakeError.
	Catch(nc net.Conn) (*Conn, error)
}

// Conn is one caught connection and its original destination. Read serves what was read ahead of the
// end of the handshake before anything else. Exactly one of Accepted and Refused should be called
// before bytes are relayed. The fields do not change after Catch.
//
// A Conn made without a way (a literal with its exported fields) behaves as one caught by Forward.
type Conn struct {
	// Conn is the accepted connection itself, for writing and for options of the socket. Reading from
	// it directly loses what was read ahead: see NetConn and TakeAhead.
	net.Conn
	// Way is the name of the way that caught the connection, such as "socks5" or "forward".
	Way string
	// Host is the destination's DNS name in lower case and without a final dot, or "" if the app named
	// an address. It has not been resolved.
	Host string
	// Addr is the destination's address, never an IPv4 address mapped to IPv6 and never with a zone; it
	// is the zero Addr if Host is set.
	Addr netip.Addr
	// Port is the destination's port, 1 to 65535; 0 of a Socket.
	Port uint16
	// Socket is the path of a unix socket on this host that is the destination, in place of the fields above.
	Socket string
	// User is the name that the app logged in with, "" if it did not.
	User string
	// Packets tells that the flow is of datagrams: each Read and Write of the connection is one. It has no words for
	// its app, and no CloseWrite.
	Packets bool

	answer answerer // nil: the app is told nothing
	ahead  []byte   // read before the end of the handshake, not yet served; nil when there is nothing
	rare   *rare    // nil: nothing of it
	state  answerState
}

// rare is what few Conns have.
type rare struct {
	first     [][]byte // of datagrams, those with which the flow began
	associate bool     // the app asks for UDP; see Socks5.Serve
}

// answerer is how a way tells its app what became of the flow.
type answerer interface {
	accepted(nc net.Conn) error
	refused(nc net.Conn, r Refusal) error
}

// answerState is what the app has been told.
type answerState uint8

const (
	unanswered answerState = iota
	answeredYes
	answeredNo
)

// errAnswered is returned for a second answer, which would be taken for payload.
var errAnswered = errors.New("the app has already been answered")

// Awaited reports whether the app waits for an answer before it sends, or may have sent ahead of it.
func (c *Conn) Awaited() bool { return c.answer != nil || len(c.ahead) > 0 }

// Accepted tells the app that its flow stands. It is to be called once, after the destination was
// reached and before anything is written; a second call is an error and writes nothing. It blocks for
// as long as a write to the app does, which is never for a socket. Not to be called at the same time
// as Refused or Write.
func (c *Conn) Accepted() error {
	if c.state != unanswered {
		return fmt.Errorf("accept %s flow: %w", c.Way, errAnswered)
	}
	c.state = answeredYes
	if c.answer == nil {
		return nil
	}
	if err := c.answer.accepted(c.Conn); err != nil {
		return fmt.Errorf("accept %s flow: %w", c.Way, err)
	}
	return nil
}

// Refused tells the app that its flow does not stand and why, as far as the way has words for it. The
// caller closes the connection afterwards. A way without words (Forward) resets the connection, so that
// the app does not take it for one that was served and ended well; so does Refused after Accepted,
// when it is too late for words. It blocks for at most 11 seconds, and that only if the app does not
// read. A second call is an error and writes nothing.
func (c *Conn) Refused(r Refusal) error {
	was := c.state
	if was == answeredNo {
		return fmt.Errorf("refuse %s flow: %w", c.Way, errAnswered)
	}
	c.state = answeredNo
	if c.answer == nil || was == answeredYes {
		return reset(c.Conn)
	}
	if err := c.Conn.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return fmt.Errorf("refuse %s flow: %w", c.Way, err)
	}
	if err := c.answer.refused(c.Conn, r); err != nil {
		return fmt.Errorf("refuse %s flow: %w", c.Way, err)
	}
	if len(c.ahead) > 0 {
		linger(c.Conn) // an app that talks ahead may have more on its way
	}
	return nil
}

// Read reads what was read ahead of the end of the handshake, then from the connection. One Read at a
// time.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.ahead)
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.ahead = nil // an idle flow holds no buffer
	}
	return n, nil
}

// NetConn returns the connection to read from: the accepted connection itself (a *net.TCPConn, whose
// SyscallConn a relay may use) when nothing is left that was read ahead, and c itself as long as there
// is. TakeAhead makes it the former. Not to be called at the same time as Read.
func (c *Conn) NetConn() net.Conn {
	if len(c.ahead) > 0 {
		return c
	}
	return c.Conn
}

// TakeAhead returns the bytes that were read ahead of the end of the handshake and not yet served by
// Read, nil if there are none, which is usual. They are the caller's from then on: Read does not serve
// them, and NetConn is the accepted connection. Not to be called at the same time as Read.
func (c *Conn) TakeAhead() []byte {
	b := c.ahead
	c.ahead = nil
	return b
}

// TakeFirst returns the datagrams with which the flow began, which Read does not serve.
func (c *Conn) TakeFirst() [][]byte {
	if c.rare == nil {
		return nil
	}
	first := c.rare.first
	c.rare.first = nil
	return first
}

// CloseWrite ends the direction towards the app and leaves the other one open. The error is
// errors.ErrUnsupported if the accepted connection has no such thing.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return fmt.Errorf("close write of %T: %w", c.Conn, errors.ErrUnsupported)
}

// SetLinger passes on to the accepted connection, as (*net.TCPConn).SetLinger: after SetLinger(0),
// Close resets. The error is errors.ErrUnsupported if the accepted connection has no such thing.
func (c *Conn) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return fmt.Errorf("set linger of %T: %w", c.Conn, errors.ErrUnsupported)
}

// reset closes nc so that a TCP peer sees a reset and not a clean end.
func reset(nc net.Conn) error {
	if l, ok := nc.(interface{ SetLinger(int) error }); ok {
		if err := l.SetLinger(0); err != nil && !errors.Is(err, net.ErrClosed) {
			_ = nc.Close()
			return fmt.Errorf("reset: %w", err)
		}
	}
	return nc.Close()
}

// linger sends FIN and waits a little for the app's. A socket that is closed with unread bytes sends a
// reset, and a reset may make the app's system throw away a reply that the app has not read yet (Linux
// keeps it, others do not). An app that has read its reply and closed ends the wait at once.
func linger(nc net.Conn) {
	w, ok := nc.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil {
		return
	}
	if nc.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, nc, lingerBytes) // whatever ends it, Close is next
}
