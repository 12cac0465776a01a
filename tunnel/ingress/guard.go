package ingress

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"culvert/tunnel"
)

// guard is a connection that HTTP/1.1 is read from by net/http. It looks at the bytes first, and lets nothing through that two
// readers could take for two things. It knows where each message ends, and gives net/http one message at a time. In the place
// of a head that is refused it gives one that net/http can read, so that the refusal is answered and recorded in its turn.
//
// One goroutine reads at a time.
type guard struct {
	net.Conn
	conn *conn
	max  int // bytes of a head

	// owned by who reads
	buf   []byte // was read and not given yet: buf[r:w]
	r, w  int
	give  int // how much of that is a head that may be given
	state guardState
	next  guardState // after the head
	left  int64      // bytes of the body, or of the chunk
	chunk chunkScanner
	heads int64 // that were let through, refused ones included
	ended error // why nothing more is given

	aborted  atomic.Bool           // net/http wants a read to end that is under way
	switchAt atomic.Int64          // the number of the head that asks for another protocol; 0: none
	broken   atomic.Bool           // the answer is: the client must not take it for complete
	lingers  atomic.Bool           // the client may still send what nobody reads
	body     atomic.Pointer[error] // what is wrong with a body; nil: nothing
	faultAt  atomic.Int64          // the number of the head that was refused; 0: none
	fault    atomic.Pointer[error] // why
}

// guardState is what comes next from the client.
type guardState uint8

const (
	guardHead    guardState = iota
	guardGive               // a head is given to net/http
	guardLength             // a body of a known length
	guardChunked            // a body in chunks
	guardRaw                // another protocol
	guardEnded              // nothing
)

// guardBytes is how much is read at once.
const guardBytes = 4 << 10

func newGuard(c *conn, nc net.Conn, ahead []byte) *guard {
	g := &guard{Conn: nc, conn: c, max: c.s.conf.MaxHeadBytes}
	g.buf, g.w = ahead[:cap(ahead)], len(ahead)
	return g
}

// NetConn returns the connection below.
func (g *guard) NetConn() net.Conn { return g.Conn }

// SetReadDeadline notes when net/http ends a read.
func (g *guard) SetReadDeadline(t time.Time) error {
	g.aborted.Store(!t.IsZero() && t.Before(time.Now()))
	return g.Conn.SetReadDeadline(t)
}

// CloseWrite ends the direction to the client.
func (g *guard) CloseWrite() error {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close closes the connection, so that the client sees the end of the answer, or that there is none.
func (g *guard) Close() error {
	switch {
	case g.broken.Load():
		tunnel.NewConn(g.Conn).Reset(nil)
		return nil
	case g.lingers.Load():
		farewell(g.Conn)
	}
	return g.Conn.Close()
}

// Read gives net/http what it may read.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch g.state {
		case guardHead:
			if err := g.readHead(); err != nil {
				return 0, err
			}
		case guardGive:
			n := copy(p, g.buf[g.r:g.r+g.give])
			g.r += n
			if g.give -= n; g.give == 0 {
				g.state = g.next
				g.settle()
			}
			return n, nil
		case guardLength:
			return g.readLength(p)
		case guardChunked:
			n, err := g.readChunked(p)
			if n > 0 || err != nil {
				return n, err
			}
		case guardRaw:
			if g.r < g.w {
				n := copy(p, g.buf[g.r:g.w])
				g.r += n
				return n, nil
			}
			return g.Conn.Read(p)
		default:
			return 0, g.ended
		}
	}
}

// settle goes on to the next message where the one before has no body.
func (g *guard) settle() {
	if g.state == guardLength && g.left == 0 {
		g.state = guardHead
	}
}

// end gives nothing more.
func (g *guard) end(err error) error {
	g.state, g.ended = guardEnded, err
	return err
}

// fill reads more behind what is there.
func (g *guard) fill() error {
	if g.r == g.w {
		g.r, g.w = 0, 0
		if cap(g.buf) < guardBytes {
			g.buf = make([]byte, guardBytes)
		}
		g.buf = g.buf[:cap(g.buf)]
	}
	if g.w == len(g.buf) {
		if g.r > 0 {
			g.w = copy(g.buf, g.buf[g.r:g.w])
			g.r = 0
		} else {
			g.buf = append(g.buf, make([]byte, len(g.buf))...)
		}
	}
	n, err := g.Conn.Read(g.buf[g.w:])
	g.w += n
	if n > 0 {
		return nil
	}
	return err
}

// crlf2 ends a head. It is immutable.
var crlf2 = []byte("\r\n\r\n")

// readHead reads the next head, to its end, and judges it. An error is of the connection.
func (g *guard) readHead() error {
	seen := 0
	for {
		for g.w-g.r >= 2 && g.buf[g.r] == '\r' && g.buf[g.r+1] == '\n' && seen == 0 {
			g.r += 2 // RFC 9112, section 2.2: empty lines before a request are skipped
		}
		b := g.buf[g.r:g.w]
		if i := bytes.Index(b[max(seen-3, 0):], crlf2); i >= 0 {
			n := max(seen-3, 0) + i + len(crlf2)
			g.letThrough(b[:n])
			return nil
		}
		seen = len(b)
		switch {
		case seen > g.max:
			g.refuse(&tunnel.Error{Cause: tunnel.CauseHeadTooLong, Reason: "the head of the request has no end"})
			return nil
		case bytes.IndexByte(b, 0) >= 0:
			g.refuse(malformed("the head of the request holds a NUL"))
			return nil
		}
		err := g.fill()
		if err == nil {
			continue
		}
		if g.aborted.Load() {
			return err
		}
		switch {
		case seen == 0:
			return g.end(err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			g.refuse(&tunnel.Error{Cause: tunnel.CauseSlow, Reason: "the head of a request did not come to its end"})
		default:
			g.refuse(malformed("the head of the request has no empty line at its end"))
		}
		return nil
	}
}

// letThrough gives net/http a head, if it can be read in one way only.
func (g *guard) letThrough(head []byte) {
	if len(head) > g.max {
		g.refuse(&tunnel.Error{Cause: tunnel.CauseHeadTooLong, Reason: "the head of the request is too long"})
		return
	}
	h, err := checkHead(head)
	if err != nil {
		g.refuse(err)
		return
	}
	g.heads++
	g.give, g.state = len(head), guardGive
	switch {
	case h.upgrade:
		g.next = guardRaw
		g.switchAt.Store(g.heads)
	case h.chunked:
		g.next, g.chunk = guardChunked, chunkScanner{}
	default:
		g.next, g.left = guardLength, h.length
	}
}

// refused is the head that net/http reads in the place of one that was refused.
const refused = "GET / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n"

// refuse has the handler answer with err. Nothing is read after that.
func (g *guard) refuse(err error) {
	g.heads++
	g.lingers.Store(true)
	g.fault.Store(&err)
	g.faultAt.Store(g.heads)
	g.buf, g.r, g.w = []byte(refused), 0, len(refused)
	g.give, g.state, g.next, g.ended = len(refused), guardGive, guardEnded, io.EOF
}

// faultOf returns why the request with a number was refused, nil if it was not.
func (g *guard) faultOf(number int64) error {
	if g.faultAt.Load() != number {
		return nil
	}
	return *g.fault.Load()
}

// readLength gives what comes of a body.
func (g *guard) readLength(p []byte) (n int, err error) {
	p = p[:min(int64(len(p)), g.left)]
	if g.r < g.w {
		n = copy(p, g.buf[g.r:g.w])
		g.r += n
	} else {
		n, err = g.Conn.Read(p)
	}
	g.left -= int64(n)
	g.settle()
	return n, err
}

// readChunked gives what comes of a body in chunks, of which it checks the form.
func (g *guard) readChunked(p []byte) (int, error) {
	if g.r == g.w {
		if g.chunk.state == chunkData && len(p) > 512 { // not through the buffer
			n, err := g.Conn.Read(p[:min(int64(len(p)), g.chunk.data)])
			g.chunk.passed(int64(n))
			return n, err
		}
		if err := g.fill(); err != nil {
			return 0, err
		}
	}
	b := g.buf[g.r:min(g.w, g.r+len(p))]
	n, err := g.chunk.scan(b)
	copy(p, b[:n])
	g.r += n
	switch {
	case err != nil:
		g.lingers.Store(true)
		g.body.Store(&err)
		_ = g.end(err) // it is given after what came before
		if n == 0 {
			return 0, err
		}
	case g.chunk.state == chunkDone:
		g.state = guardHead
	}
	return n, nil
}
