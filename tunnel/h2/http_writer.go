package h2

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// errHandlerReturned is what writing to a ResponseWriter returns when its handler has returned.
var errHandlerReturned = errors.New("write to the response of a handler that has returned")

// responseWriter is the [http.ResponseWriter] of one stream. Its lock is held while something is sent, so
// that a goroutine which outlives its handler cannot disturb the end of the response.
type responseWriter struct {
	// immutable after init
	server    *httpServer
	st        *Stream
	authority string      // Request.Host
	secure    bool        // over TLS
	connect   bool        // the request's method is CONNECT
	head      bool        // the request's method is HEAD
	pushed    bool        // the request is a promise of ours
	header    http.Header // the handler's

	sent atomic.Bool // the final header was sent

	mu sync.Mutex // the rest is guarded by it

	fields   *Header  // what WriteHeader took of it; nil before and after it was sent
	trailers []string // wire names announced by Trailer
	status   int      // zero before WriteHeader
	declared int64    // Content-Length; -1: none
	written  int64
	hasType  bool // no sniffing: Content-Type or Content-Encoding is there
	hasDate  bool
	ended    bool    // END_STREAM was sent
	returned bool    // the handler has returned
	buf      *buffer // bytes waiting after the room for a frame header; nil while there are none
	n        int     // how many
	err      error   // first error of sending: what follows would leave a hole
}

func (w *responseWriter) init(s *httpServer, st *Stream, r *http.Request, pushed bool) {
	w.server, w.st, w.pushed = s, st, pushed
	w.authority, w.secure = r.Host, r.TLS != nil
	w.connect, w.head = r.Method == http.MethodConnect, r.Method == http.MethodHead
	w.header = make(http.Header)
	w.declared = -1
}

// Header returns the header that WriteHeader will send; after the handler's end, or after the body,
// what Trailer announced is taken from it.
func (w *responseWriter) Header() http.Header { return w.header }

// WriteHeader fixes status and header of the response; they are sent with the first bytes. 1xx codes are
// sent at once, any number of times, except 101, which HTTP/2 does not have (RFC 9113, section 8.6). It
// panics for codes that are not three digits, as net/http does; 600 to 999 become 500.
func (w *responseWriter) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", code))
	}
	if code < 200 {
		w.informFromHandler(code)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status != 0 || w.returned {
		w.st.c.log.Debug("superfluous WriteHeader", "stream", w.st.ID())
		return
	}
	w.writeHeader(code)
}

// informFromHandler sends a 1xx answer with the handler's header (RFC 8297 for 103).
func (w *responseWriter) informFromHandler(code int) {
	if code == http.StatusSwitchingProtocols {
		w.st.c.log.Debug("WriteHeader(101) ignored: HTTP/2 has no upgrade", "stream", w.st.ID())
		return
	}
	w.inform(code, w.header)
}

// inform sends a 1xx answer unless the final one is under way.
func (w *responseWriter) inform(code int, header http.Header) {
	if w.sent.Load() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status != 0 || w.returned {
		return
	}
	h := getHead()
	defer putHead(h)
	h.Status = code
	for k, values := range header {
		wire, ok := wireName(k)
		if !ok || isHopByHop(wire) || wire == "content-length" || wire == "trailer" {
			continue
		}
		h.Fields = appendValues(h.Fields, wire, values)
	}
	w.st.Inform(h) // a stream that has ended shows in the next write
}

// writeHeader takes what the handler's header holds now. Called with mu held.
func (w *responseWriter) writeHeader(code int) {
	if code > 599 {
		code = http.StatusInternalServerError
	}
	w.status = code
	h := getHead()
	h.Status = code
	hop := nominated(w.header)
	for k, values := range w.header {
		wire, ok := wireName(k)
		if !ok || isHopByHop(wire) || slices.Contains(hop, wire) {
			continue
		}
		switch wire {
		case "content-length":
			w.declare(values)
			continue
		case "trailer":
			w.announce(values)
		case "content-type":
			w.hasType = true
		case "content-encoding":
			w.hasType = w.hasType || len(values) > 0 && values[0] != ""
		case "date":
			w.hasDate = true
		}
		h.Fields = appendValues(h.Fields, wire, values)
	}
	w.fields = h
}

// declare takes a Content-Length from the handler; one that is no number is dropped. Responses that
// have no content by definition but HEAD's and 304 must not have it (RFC 9110, section 8.6).
func (w *responseWriter) declare(values []string) {
	if len(values) == 0 || w.isTunnel() || w.status == http.StatusNoContent {
		return
	}
	if n, ok := parseLength(strings.TrimSpace(values[0])); ok {
		w.declared = n
	}
}

// announce notes the trailers that the handler will set.
func (w *responseWriter) announce(values []string) {
	for _, v := range values {
		eachElement(v, func(e string) {
			if wire, ok := wireName(e); ok && !isForbiddenTrailer(wire) && !slices.Contains(w.trailers, wire) {
				w.trailers = append(w.trailers, wire)
			}
		})
	}
}

// isTunnel reports whether the response opens a tunnel (RFC 9110, section 9.3.6).
func (w *responseWriter) isTunnel() bool {
	return w.connect && w.status >= 200 && w.status < 300
}

// noBody reports whether nothing follows the header, whatever the handler writes.
func (w *responseWriter) noBody() bool { return w.head || !bodyAllowed(w.status) }

// Write sends p, or keeps it until there is a buffer full, a Flush or the handler's end.
func (w *responseWriter) Write(p []byte) (int, error) { return write(w, p) }

// WriteString is Write without a conversion.
func (w *responseWriter) WriteString(s string) (int, error) { return write(w, s) }

func write[T []byte | string](w *responseWriter, p T) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.admit(int64(len(p))); err != nil {
		return 0, err
	}
	for len(p) > 0 {
		if b, ok := any(p).([]byte); ok && w.n == 0 && len(b) >= mediumBuffer {
			if err := w.send(b, nil, false); err != nil {
				return n, err
			}
			return n + len(b), nil
		}
		w.take()
		k := copy(w.room(), p)
		w.n += k
		n += k
		p = p[k:]
		if len(w.room()) == 0 {
			if err := w.flush(false); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// admit judges whether so many more bytes may be written. Called with mu held.
func (w *responseWriter) admit(n int64) error {
	if w.returned {
		return errHandlerReturned
	}
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	switch {
	case !bodyAllowed(w.status):
		return http.ErrBodyNotAllowed
	case w.err != nil:
		return w.err
	case w.declared >= 0 && w.written+n > w.declared && !w.head:
		return http.ErrContentLength
	}
	w.written += n
	return nil
}

// take makes sure that there is a buffer.
func (w *responseWriter) take() {
	if w.buf == nil {
		w.buf = getBuffer(mediumBuffer, w.st.c.cfg.Budget)
	}
}

func (w *responseWriter) room() []byte { return w.buf.b[frameHeaderLen+w.n : mediumBuffer] }

// drop gives the buffer back.
func (w *responseWriter) drop() {
	if w.buf != nil {
		w.buf.release()
		w.buf, w.n = nil, 0
	}
}

// flush sends what is buffered, the header first where it was not sent; with final it ends the stream.
// Called with mu held.
func (w *responseWriter) flush(final bool) error {
	var p, frame []byte
	if w.n > 0 {
		frame = w.buf.b[:frameHeaderLen+w.n]
		p = frame[frameHeaderLen:]
	}
	err := w.send(p, frame, final)
	w.drop()
	return err
}

// send sends p, which is frame[frameHeaderLen:] where frame is not nil. Called with mu held.
func (w *responseWriter) send(p, frame []byte, final bool) error {
	if w.err != nil {
		return w.err
	}
	if !w.sent.Load() {
		var sent bool
		if sent, w.err = w.sendHead(p, final); sent {
			return nil
		}
	}
	if w.err != nil || w.ended || w.noBody() || len(p) == 0 && !final {
		return w.err
	}
	_, w.err = w.st.transmit(p, frame, final)
	w.ended = final && w.err == nil
	return w.err
}

// sendHead sends status and header: with the length where p is all there will be, with the type that p
// looks like, and with the end of the stream where nothing follows. It reports whether p was sent too.
func (w *responseWriter) sendHead(p []byte, final bool) (sent bool, err error) {
	h := w.fields
	w.fields = nil
	defer putHead(h)
	tunnel := w.isTunnel()
	if w.declared < 0 && final && bodyAllowed(w.status) && !tunnel && (len(p) > 0 || !w.head) {
		w.declared = int64(len(p))
	}
	if w.declared >= 0 {
		h.Add("content-length", strconv.FormatInt(w.declared, 10))
	}
	if !w.hasType && !tunnel && bodyAllowed(w.status) && len(p) > 0 {
		h.Add("content-type", http.DetectContentType(p))
	}
	if !w.hasDate {
		h.Add("date", w.server.now())
	}
	defer w.sent.Store(true)
	if len(p) > 0 && !w.noBody() {
		sent, err := w.st.respondWith(h, p, final)
		if sent || err != nil {
			w.ended = sent && final
			return sent, err
		}
		if w.st.hasWindow() {
			return false, w.st.respondHeld(h) // p follows at once
		}
	}
	end := w.noBody() && len(w.trailers) == 0 || w.head || final && len(p) == 0
	err = w.st.Respond(h, end)
	w.ended = end && err == nil
	return false, err
}

// Flush sends what was written so far, the header at least.
func (w *responseWriter) Flush() { w.FlushError() }

// FlushError is Flush; it returns why the response can no longer be sent.
func (w *responseWriter) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.returned {
		return errHandlerReturned
	}
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	if err := w.flush(false); err != nil {
		return err
	}
	return w.st.Err()
}

// ReadFrom sends what r delivers. After the first buffer full, which shows the type and perhaps the
// length of the content, bytes go from r to the stream as they come.
func (w *responseWriter) ReadFrom(r io.Reader) (n int64, err error) {
	w.mu.Lock()
	if err := w.admit(0); err != nil {
		w.mu.Unlock()
		return 0, err
	}
	if w.head {
		w.mu.Unlock()
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	if w.declared >= 0 {
		r = &declaredReader{r: r, left: w.declared - w.written}
	}
	for !w.sent.Load() || w.n > 0 {
		w.take()
		k, err := r.Read(w.room())
		w.n += k
		w.written += int64(k)
		n += int64(k)
		if err == nil && len(w.room()) == 0 {
			err = w.flush(false)
		}
		if err != nil {
			w.mu.Unlock()
			if err == io.EOF {
				err = nil
			}
			return n, err
		}
	}
	w.mu.Unlock() // a Flush by another goroutine must not wait for r
	more, err := w.st.ReadFrom(r)
	var src *SourceError
	isSource := errors.As(err, &src)
	w.mu.Lock()
	w.written += more
	if isSource {
		err = src.Err
	} else if err != nil {
		w.err = err
	}
	w.mu.Unlock()
	return n + more, err
}

// declaredReader reads no more than was declared, and fails where r has more.
type declaredReader struct {
	r    io.Reader
	left int64
}

func (d *declaredReader) Read(p []byte) (int, error) {
	if d.left > 0 {
		p = p[:min(int64(len(p)), d.left)]
		n, err := d.r.Read(p)
		d.left -= int64(n)
		return n, err
	}
	n, err := d.r.Read(make([]byte, 1))
	if n > 0 {
		err = http.ErrContentLength
	}
	return 0, err
}

// SetReadDeadline bounds reading the request; see [http.ResponseController].
func (w *responseWriter) SetReadDeadline(t time.Time) error { return w.st.SetReadDeadline(t) }

// SetWriteDeadline bounds writing the response; see [http.ResponseController].
func (w *responseWriter) SetWriteDeadline(t time.Time) error { return w.st.SetWriteDeadline(t) }

// EnableFullDuplex does nothing: HTTP/2 streams always are.
func (w *responseWriter) EnableFullDuplex() error { return nil }

// complete ends the response after the handler has returned and reports whether the client got all of
// it.
func (w *responseWriter) complete() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.returned = true
	defer w.drop()
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	if w.declared >= 0 && w.written < w.declared && !w.noBody() {
		w.st.c.log.Debug("handler wrote less than its Content-Length", "stream", w.st.ID(), "bytes_out", w.written)
		return false
	}
	trailers := w.collectTrailers()
	defer putHead(trailers)
	last := len(trailers.Fields) == 0
	if w.flush(last) != nil {
		return false
	}
	if !last && !w.ended {
		if w.err = w.st.SendTrailers(trailers.Fields); w.err != nil {
			return false
		}
		w.ended = true
	}
	if !w.ended {
		w.err = w.st.CloseWrite()
	}
	return w.err == nil
}

// collectTrailers takes from the handler's header what Trailer announced and what has TrailerPrefix.
// The end of a tunnel has none (RFC 9113, section 8.5).
func (w *responseWriter) collectTrailers() *Header {
	h := getHead()
	if w.isTunnel() || w.head {
		return h
	}
	for k, values := range w.header {
		name, prefixed := strings.CutPrefix(k, http.TrailerPrefix)
		wire, ok := wireName(name)
		if !ok || isForbiddenTrailer(wire) || !prefixed && !slices.Contains(w.trailers, wire) {
			continue
		}
		h.Fields = appendValues(h.Fields, wire, values)
	}
	return h
}

// release drops what a handler that has panicked leaves behind.
func (w *responseWriter) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.returned = true
	w.drop()
	if w.fields != nil {
		putHead(w.fields)
		w.fields = nil
	}
}
