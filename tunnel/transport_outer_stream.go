package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"

	"culvert/tunnel/framing"
	"culvert/tunnel/h2"
)

// outerStream is a tunnel's end in a request through a proxy of others, on either side. What runs on it is TLS, which
// reads and writes it as a net.Conn.
type outerStream struct {
	net.Conn // in the form that the proxy lets pass
	below    Conn
	form     string
	client   bool
	done     <-chan struct{} // closed when below breaks; nil: that cannot be seen
	answer   func() error    // waits for the answer to the request, owned by who reads; nil: it was yes

	received, sent atomic.Int64
}

// newOuterStream makes the end of a tunnel in a stream of HTTP/2 whose heads were exchanged.
func newOuterStream(s *h2Stream, form string, client bool) *outerStream {
	o := &outerStream{Conn: s, below: s, form: form, client: client, done: s.Done()}
	switch form {
	case tunWebSocket:
		o.Conn = framing.NewWebSocket(s, client)
	case tunGRPC:
		end := s.CloseWrite
		if !client {
			end = func() error { return s.SendTrailers([]h2.Field{{Name: "grpc-status", Value: "0"}}) }
		}
		o.Conn = framing.NewGRPC(s, end, func() error { return o.grpcEnd(s.Stream) })
	}
	return o
}

// grpcEnd says whether the end of a call was a good one: a server tells that in its trailers.
func (o *outerStream) grpcEnd(s *h2.Stream) error {
	if !o.client {
		return nil
	}
	for _, f := range s.Trailers() {
		if f.Name == "grpc-status" && f.Value == "0" {
			return nil
		} else if f.Name == "grpc-status" {
			return fmt.Errorf("the call has ended with status %q of gRPC", cut(f.Value))
		}
	}
	return errors.New("the call has ended without a status of gRPC")
}

// Read reads from the tunnel.
func (o *outerStream) Read(p []byte) (int, error) {
	if o.answer != nil {
		if err := o.answer(); err != nil {
			return 0, err
		}
		o.answer = nil
	}
	n, err := o.Conn.Read(p)
	o.received.Add(int64(n))
	return n, err
}

// Write writes to the tunnel.
func (o *outerStream) Write(p []byte) (int, error) {
	n, err := o.Conn.Write(p)
	o.sent.Add(int64(n))
	return n, err
}

// CloseWrite ends the direction that Write feeds.
func (o *outerStream) CloseWrite() error {
	return o.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// Reset ends both directions so that the peer sees them broken.
func (o *outerStream) Reset(cause error) { o.below.Reset(cause) }

// Done is closed when what is below has broken.
func (o *outerStream) Done() <-chan struct{} { return o.done }

// Sent is how many bytes were written.
func (o *outerStream) Sent() int64 { return o.sent.Load() }

// ReadFrom sends what r delivers.
func (o *outerStream) ReadFrom(r io.Reader) (total int64, err error) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			m, werr := o.Write(buf[:n])
			if total += int64(m); werr != nil {
				return total, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, &SourceError{Err: err}
		}
	}
}

// Pipe writes what comes to dst.
func (o *outerStream) Pipe(dst io.Writer, done func(n int64, err error)) {
	go func() { // ends with the stream, which who calls has to end
		var total int64
		buf := make([]byte, 16<<10)
		for {
			n, err := o.Read(buf)
			if n > 0 {
				m, werr := dst.Write(buf[:n])
				if total += int64(m); werr != nil {
					done(total, &SinkError{Err: werr})
					return
				}
			}
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				done(total, err)
				return
			}
		}
	}()
}

// throughProxy says, where nc leads through a proxy of others, what the proxy's part may be in a TLS handshake that has come
// to nothing.
func throughProxy(nc net.Conn, err error) error {
	if p, ok := nc.(*pooledStream); ok {
		nc = p.Stream
	}
	o, ok := nc.(*outerStream)
	if !ok {
		return err
	}
	e := &Error{Cause: CauseOf(err), Err: err}
	var own *Error
	if errors.As(err, &own) {
		e.Hop = own.Hop
	}
	if o.answer != nil && !late(err) {
		return err
	}
	if o.answer != nil {
		e.Reason = noAnswer(context.DeadlineExceeded, o.form)
		return e
	}
	silent := o.received.Load() == 0
	switch {
	case o.client && silent && (late(err) || e.Cause == CauseUnavailable):
		e.Reason = "the proxy took the request, and not a byte came back on it: either " + buffers(o.form) + ", or what is behind it is no listener that takes x-tun"
	case !o.client && silent && late(err):
		e.Reason = "the request came, and not a byte on it: " + buffers(o.form)
	case !o.client && late(err):
		e.Reason = "nothing came after what was answered: either the client has gone, or " + buffers(o.form)
	default:
		return err
	}
	return e
}

func late(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

var _ Stream = (*outerStream)(nil)
