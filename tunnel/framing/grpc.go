package framing

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	// grpcHeadBytes is the head of a message: whether it is compressed, and its length (gRPC over HTTP2, "Length-Prefixed-
	// Message").
	grpcHeadBytes = 5
	// maxMessageBytes is the greatest message that is taken. It is passed on as it comes; see maxFrameBytes.
	maxMessageBytes = 64 << 20
	// dataTag begins the only field of a message: number 1, of bytes.
	dataTag = 1<<3 | 2
)

// GRPCError is what is wrong with what the peer has sent in a call of gRPC.
type GRPCError struct{ Reason string }

// Error returns the reason.
func (e *GRPCError) Error() string { return "gRPC: " + e.Reason }

// GRPC carries bytes in the messages of a call that streams both ways. Each is of the form
//
//	message Bytes { bytes data = 1; }
//
// Read may run beside Write, Close and CloseWrite.
type GRPC struct {
	net.Conn
	end   func() error // ends what is sent
	atEnd func() error // says whether the peer's end was a good one

	// owned by who reads
	r    *bufio.Reader
	left int64 // bytes of the message that are still to come
	idle int   // messages without a byte, in a row
	rerr error

	wmu sync.Mutex
}

// NewGRPC returns bytes in messages on nc, on which heads were exchanged. end ends the direction that is sent, a server's with
// trailers; atEnd is asked after the peer's end what that means, nil for a good end.
func NewGRPC(nc net.Conn, end, atEnd func() error) *GRPC {
	return &GRPC{Conn: nc, end: end, atEnd: atEnd, r: bufio.NewReaderSize(nc, readBytes)}
}

// Read reads payload. It returns io.EOF at the peer's end between two messages; an end within one is io.ErrUnexpectedEOF,
// and what is no message a *GRPCError.
func (g *GRPC) Read(p []byte) (int, error) {
	if g.rerr != nil {
		return 0, g.rerr
	}
	for g.left == 0 {
		if err := g.nextMessage(); err != nil {
			return 0, g.fail(err)
		}
	}
	if int64(len(p)) > g.left {
		p = p[:g.left]
	}
	n, err := g.r.Read(p)
	if g.left -= int64(n); n > 0 {
		return n, nil
	}
	return 0, g.fail(noEnd(err))
}

// fail keeps why nothing more is read; a deadline that has passed is no reason.
func (g *GRPC) fail(err error) error {
	if !isTimeout(err) {
		g.rerr = err
	}
	return err
}

// nextMessage reads the head of the next message, and of the field in it.
func (g *GRPC) nextMessage() error {
	head, err := g.r.Peek(grpcHeadBytes)
	if errors.Is(err, io.EOF) && len(head) == 0 {
		if err := g.atEnd(); err != nil {
			return err
		}
		return io.EOF
	}
	if err != nil {
		return noEnd(err)
	}
	length := int64(binary.BigEndian.Uint32(head[1:]))
	switch {
	case head[0] == 1:
		return &GRPCError{"a message is compressed, and nothing was agreed on; turn compression off in the proxy"}
	case head[0] != 0:
		return &GRPCError{fmt.Sprintf("a message begins with %#x, which is neither plain nor compressed", head[0])}
	case length > maxMessageBytes:
		return &GRPCError{fmt.Sprintf("a message of %d bytes; 64 MiB are taken", length)}
	case length == 0:
		_, _ = g.r.Discard(grpcHeadBytes) // it was peeked at
		return g.quiet(true)
	}
	return g.field(length)
}

// field reads the head of the field that is all of a message of the given length.
func (g *GRPC) field(length int64) error {
	most := int(min(length, 1+binary.MaxVarintLen32))
	head, err := g.r.Peek(grpcHeadBytes + most)
	if err != nil {
		return noEnd(err)
	}
	head = head[grpcHeadBytes:]
	n, size := binary.Uvarint(head[1:])
	if head[0] != dataTag || size <= 0 || n != uint64(length-1-int64(size)) {
		return &GRPCError{"a message is something else than the one field that it should be of (bytes data = 1)"}
	}
	_, _ = g.r.Discard(grpcHeadBytes + 1 + size) // it was peeked at
	g.left = int64(n)
	return g.quiet(n == 0)
}

// quiet counts messages that bring the reader nothing.
func (g *GRPC) quiet(nothing bool) error {
	if !nothing {
		g.idle = 0
		return nil
	}
	if g.idle++; g.idle > maxIdleFrames {
		return &GRPCError{"too many messages without a byte"}
	}
	return nil
}

// Write sends p in messages.
func (g *GRPC) Write(p []byte) (n int, err error) {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	buf := frames.Get().(*[maxHeadBytes + chunkBytes]byte)
	defer frames.Put(buf)
	for len(p) > 0 {
		chunk := p[:min(len(p), chunkBytes)]
		if _, err := g.Conn.Write(appendMessage(buf[:0], chunk)); err != nil {
			return n, err
		}
		n, p = n+len(chunk), p[len(chunk):]
	}
	return n, nil
}

// Flush sends a message without a byte. Some proxies hold back the head of an answer until something follows it: nginx 1.22
// with TLS does so.
func (g *GRPC) Flush() error {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	_, err := g.Conn.Write(make([]byte, grpcHeadBytes))
	return err
}

// appendMessage appends a message with p.
func appendMessage(b, p []byte) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, 0, dataTag)
	b = binary.AppendUvarint(b, uint64(len(p)))
	b = append(b, p...)
	binary.BigEndian.PutUint32(b[at+1:], uint32(len(b)-at-grpcHeadBytes))
	return b
}

// CloseWrite ends what is sent.
func (g *GRPC) CloseWrite() error {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	return g.end()
}

// Close ends what is sent, unless a Write is under way, and closes the connection.
func (g *GRPC) Close() error {
	if g.wmu.TryLock() {
		_ = g.end() // it may have ended
		g.wmu.Unlock()
	}
	return g.Conn.Close()
}
