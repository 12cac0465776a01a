package h2

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"sync/atomic"
	"time"
)

// errBodyClosed is what reading a closed body returns. grpc-go knows the text from net/http's server.
var errBodyClosed = fmt.Errorf("body closed by handler: %w", http.ErrBodyReadAfterClose)

// errSurplus is what reading a body returns that is longer than its content-length.
var errSurplus = errors.New("content is longer than its content-length")

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// httpBody is the content of a message that is being received. Read (or WriteTo) and Close may run at
// the same time.
type httpBody struct {
	st *Stream

	// owned by the reader
	left int64 // declared and not yet read; -1: not declared
	err  error // what every further Read returns

	ended  atomic.Bool // read to its end
	closed atomic.Bool // Close was called
}

func (b *httpBody) read(p []byte) (int, error) {
	if err := b.readable(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.st.Read(p)
	took, err := b.took(int64(n), err)
	return int(took), err
}

// writeTo lets the stream hand its buffers to dst, without a copy.
func (b *httpBody) writeTo(dst io.Writer) (int64, error) {
	if err := b.readable(); err == io.EOF {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	if b.left >= 0 {
		dst = &bodySink{dst, b.left}
	}
	n, err := b.st.WriteTo(dst)
	var sink *SinkError
	if errors.As(err, &sink) && !errors.Is(err, errSurplus) {
		b.err = sink.Err // what dst did not take is lost
		return n, sink.Err
	}
	if err == nil {
		err = io.EOF
	}
	if n, err = b.took(n, err); err == io.EOF {
		err = nil
	}
	return n, err
}

// readable returns why nothing can be read, nil where something may.
func (b *httpBody) readable() error {
	if b.closed.Load() {
		return errBodyClosed
	}
	return b.err
}

// took judges what came of reading: against the declared length (RFC 9113, section 8.1.1), and whether
// Close interrupted it.
func (b *httpBody) took(n int64, err error) (int64, error) {
	switch {
	case b.left >= 0 && n > b.left || errors.Is(err, errSurplus):
		n = min(n, max(b.left, 0))
		err = errSurplus
		b.st.Reset(ProtocolError)
	case b.left >= 0:
		b.left -= n
		if err == io.EOF && b.left > 0 {
			err = io.ErrUnexpectedEOF
			b.st.Reset(ProtocolError)
		}
	}
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		b.ended.Store(true)
	} else if b.closed.Load() {
		err = errBodyClosed
	}
	b.err = err
	return n, err
}

// bodySink stops a writeTo at the declared length.
type bodySink struct {
	dst  io.Writer
	left int64
}

func (s *bodySink) Write(p []byte) (int, error) {
	if int64(len(p)) > s.left {
		return 0, errSurplus
	}
	s.left -= int64(len(p))
	return s.dst.Write(p)
}

// interrupt makes a Read under way return, and every later one; the stream goes on.
func (b *httpBody) interrupt() {
	if !b.closed.Swap(true) && !b.ended.Load() {
		b.st.SetReadDeadline(longAgo)
	}
}

// What of a request nobody has read is thrown away after the response was sent, so that a client whose
// last bytes are on their way is not told NO_ERROR for nothing. What is longer or slower gets it
// (RFC 9113, section 8.1).
const (
	discardBytes = 64 << 10
	discardWait  = 20 * time.Millisecond
)

// discard reads up to the end of a closed body within the bounds above and reports whether it got
// there.
func (b *httpBody) discard() bool {
	if b.ended.Load() || nothingFollows(b.st) {
		return true
	}
	if b.st.SetReadDeadline(time.Now().Add(discardWait)) != nil {
		return false
	}
	n, err := b.st.WriteTo(&discardSink{discardBytes})
	return n <= discardBytes && err == nil
}

// discardSink takes so many bytes and then fails.
type discardSink struct{ room int }

func (d *discardSink) Write(p []byte) (int, error) {
	if d.room -= len(p); d.room < 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return len(p), nil
}

// fillTrailer copies received trailers to those that were announced or, with all, to any. RFC 9110,
// section 6.5.1 leaves out what frames, routes or authenticates.
func fillTrailer(t http.Header, fields []Field, all bool) http.Header {
	for _, f := range fields {
		if isForbiddenTrailer(f.Name) {
			continue
		}
		name := canonicalName(f.Name)
		old, ok := t[name]
		if !ok && !all {
			continue
		}
		if t == nil {
			t = make(http.Header, len(fields))
		}
		t[name] = append(old, f.Value)
	}
	return t
}

// As lets errors.As fill the StreamError of another HTTP/2 package, known by its shape: a struct with
// the fields StreamID, Code and Cause. net/http's errors do the same; grpc-go uses it to give a call
// that was reset the status that fits the code.
func (e *StreamError) As(target any) bool {
	v := reflect.ValueOf(target)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct || v.Elem().NumField() != 3 {
		return false
	}
	v = v.Elem()
	id, code, cause := v.FieldByName("StreamID"), v.FieldByName("Code"), v.FieldByName("Cause")
	errorType := reflect.TypeFor[error]()
	if !id.IsValid() || id.Kind() != reflect.Uint32 || !code.IsValid() || code.Kind() != reflect.Uint32 ||
		!cause.IsValid() || cause.Type() != errorType {
		return false
	}
	id.SetUint(uint64(e.StreamID))
	code.SetUint(uint64(e.Code))
	if e.Err != nil {
		cause.Set(reflect.ValueOf(e.Err))
	} else {
		cause.SetZero()
	}
	return true
}
