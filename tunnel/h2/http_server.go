package h2

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// HTTPHandler returns a function for [Config.Handler] that serves every stream with h, as net/http's own
// server would (RFC 9113, section 8; RFC 9110):
//
//   - The ResponseWriter is an [http.Flusher] and [http.Pusher], takes ReadFrom and WriteString, and
//     supports [http.ResponseController], Hijack for tunnels only. 1xx answers are sent by WriteHeader,
//     trailers by the Trailer header or [http.TrailerPrefix].
//   - Request and response may flow at the same time. What a handler writes is sent at a Flush, when
//     16 KiB are there, and at its end; no buffer is held in between.
//   - CONNECT and extended CONNECT (RFC 8441) reach h as well, the latter with :protocol in
//     Request.Header. Their 2xx answers are tunnels: no field or trailer is added to them.
//   - The request's context ends with the stream: when it is reset, when the connection is lost, and
//     when h returns. It holds [http.ServerContextKey] and [http.LocalAddrContextKey].
//   - A handler that panics, or that ends before it has written its declared Content-Length, makes the
//     client see a reset (INTERNAL_ERROR), never a clean end.
//   - "Connection: close" from a handler ends nothing: the connection carries others' streams.
//
// The returned function may serve many connections. h must not be nil.
func HTTPHandler(h http.Handler) func(*Stream) {
	if h == nil {
		panic("BUG: HTTPHandler without a handler")
	}
	s := &httpServer{handler: h, server: &http.Server{Handler: h}}
	return func(st *Stream) { s.serve(st, false) }
}

// httpServer is what the streams of one HTTPHandler share.
type httpServer struct {
	handler http.Handler
	server  *http.Server // only the value of http.ServerContextKey
	date    atomic.Pointer[httpDate]
}

// httpDate is the value of a Date field for one second.
type httpDate struct {
	unix int64
	text string
}

// now returns the value of a Date field (RFC 9110, section 6.6.1).
func (s *httpServer) now() string {
	t := time.Now()
	if d := s.date.Load(); d != nil && d.unix == t.Unix() {
		return d.text
	}
	d := &httpDate{t.Unix(), t.UTC().Format(http.TimeFormat)}
	s.date.Store(d)
	return d.text
}

// connInfo is what all requests of a connection have in common, and the parent of their contexts.
type connInfo struct {
	context.Context
	server *http.Server
	local  net.Addr
	remote string
	tls    *tls.ConnectionState // nil without TLS
}

// Value returns what net/http's server puts into the context of a request.
func (i *connInfo) Value(key any) any {
	switch key {
	case http.ServerContextKey:
		return i.server
	case http.LocalAddrContextKey:
		return i.local
	}
	return nil
}

// infoOf returns what the stream's connection contributes to a request; server is nil for our own
// requests.
func infoOf(st *Stream, server *http.Server) *connInfo {
	keep := st.c.httpMemo()
	if i := keep.Load(); i != nil && i.server == server {
		return i
	}
	i := &connInfo{Context: context.Background(), server: server, local: st.LocalAddr()}
	if t, ok := st.c.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		cs := t.ConnectionState()
		i.tls = &cs
	}
	if a := st.RemoteAddr(); a != nil {
		i.remote = a.String()
	}
	keep.Store(i)
	return i
}

// streamHooks is told about a stream by its connection. The methods must not block; ended is called with
// locks held and must not call the stream or the connection.
type streamHooks interface {
	informed(h *Header)                   // a 1xx answer came
	promised(promise *Header, st *Stream) // a promise came
	wantsPush() bool                      // false: promises go to Config.OnPush, where there is one
	ended()                               // once: the stream was reset or its connection is lost
}

// httpRequest is one request that a handler serves: its stream, its body and its answer.
type httpRequest struct {
	responseWriter
	body     requestBody
	cancel   context.CancelFunc
	hijacked bool // the stream is the handler's; owned by the handler's goroutine
}

// WriteHeader is responseWriter's, and notes that the handler has asked for the content itself.
func (x *httpRequest) WriteHeader(code int) {
	if code == http.StatusContinue {
		x.body.awaited.Store(false)
	}
	x.responseWriter.WriteHeader(code)
}

// Hijack gives the handler the stream of a CONNECT that it has answered with 2xx, as the connection; the answer is sent first.
// Nothing is buffered. The stream is closed when the handler returns. For other requests it returns [http.ErrNotSupported].
// Response and request body must not be used any more.
func (x *httpRequest) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w := &x.responseWriter
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.isTunnel() || w.returned || w.written > 0 {
		return nil, nil, http.ErrNotSupported
	}
	if err := w.flush(false); err != nil {
		return nil, nil, err
	}
	w.returned, x.hijacked = true, true
	return x.st, bufio.NewReadWriter(bufio.NewReader(x.st), bufio.NewWriter(x.st)), nil
}

func (x *httpRequest) informed(*Header)          {}
func (x *httpRequest) promised(*Header, *Stream) {}
func (x *httpRequest) wantsPush() bool           { return false }
func (x *httpRequest) ended()                    { x.cancel() }

// serve serves one stream and closes it. pushed says that the request is a promise of ours.
func (s *httpServer) serve(st *Stream, pushed bool) {
	defer st.Close()
	info := infoOf(st, s.server)
	hasBody := !pushed && !nothingFollows(st)
	p, problem := parseRequest(st.Request(), hasBody)
	if problem != "" {
		s.refuse(st, problem)
		return
	}
	ctx, cancel := context.WithCancel(info)
	x := &httpRequest{cancel: cancel}
	if st.watch(x); ctx.Err() != nil {
		cancel()
		return // reset before anything was done
	}
	p.RemoteAddr, p.TLS = info.remote, info.tls
	p.Body = http.NoBody
	if hasBody {
		x.body.st, x.body.left, x.body.w = st, p.ContentLength, &x.responseWriter
		x.body.awaited.Store(p.expectContinue)
		x.body.trailer = p.Trailer
		p.Body = &x.body
	}
	r := p.Request.WithContext(ctx)
	x.responseWriter.init(s, st, r, pushed)
	x.run(r)
}

// nothingFollows reports whether the peer has ended its side and nothing of it is left to read.
func nothingFollows(st *Stream) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.eof && st.queue.empty() && len(st.trailer) == 0
}

// refuse answers a request that cannot be made an http.Request.
func (s *httpServer) refuse(st *Stream, problem string) {
	if hook := st.c.cfg.OnRefused; hook != nil {
		hook(st.c, http.StatusBadRequest, problem)
	}
	h := &Header{Status: http.StatusBadRequest}
	h.Add("content-type", "text/plain; charset=utf-8")
	h.Add("date", s.now())
	text := []byte("400 Bad Request: " + problem + "\n")
	if st.Request().Method == http.MethodHead {
		text = nil
	}
	if st.Respond(h, text == nil) == nil {
		st.transmit(text, nil, true)
		st.Reset(NoError) // the content, if any comes
	}
}

// run calls the handler and ends the exchange however the handler ends.
func (x *httpRequest) run(r *http.Request) {
	returned := false
	defer func() {
		x.cancel()
		if x.body.st != nil {
			x.body.interrupt()
		}
		if r.MultipartForm != nil {
			r.MultipartForm.RemoveAll()
		}
		if returned {
			x.finish()
			return
		}
		// A panic, or runtime.Goexit: then recover returns nil.
		x.abandon(recover())
	}()
	x.server.handler.ServeHTTP(x, r)
	returned = true
}

// abandon resets the stream of a handler that has panicked. http.ErrAbortHandler is how a handler asks
// for that; anything else is logged.
func (x *httpRequest) abandon(reason any) {
	x.st.Reset(InternalError)
	if reason != nil && reason != http.ErrAbortHandler {
		x.st.c.log.Error("http handler panicked", "stream", x.st.ID(), "src", x.st.RemoteAddr(),
			"err", fmt.Sprintf("%v\n%s", reason, debug.Stack()))
	}
	x.release()
}

// finish completes the answer. A request that was not read to its end is discarded within bounds after
// a complete answer; where that is not enough, RST_STREAM(NO_ERROR) tells the client to stop
// (RFC 9113, section 8.1).
func (x *httpRequest) finish() {
	if x.hijacked {
		return
	}
	if !x.complete() {
		x.st.Reset(InternalError)
		return
	}
	if x.body.st != nil && (x.body.awaited.Load() || !x.body.discard()) {
		x.st.Reset(NoError)
	}
}

// requestBody is Request.Body.
type requestBody struct {
	httpBody
	w       *responseWriter
	trailer http.Header // Request.Trailer: what was announced
	awaited atomic.Bool // the client waits for 100 (Continue)
}

// Read reads content and asks for it first where the client waits for that.
func (b *requestBody) Read(p []byte) (int, error) {
	b.proceed()
	n, err := b.read(p)
	b.atEnd(err)
	return n, err
}

// WriteTo is Read for io.Copy.
func (b *requestBody) WriteTo(dst io.Writer) (int64, error) {
	b.proceed()
	n, err := b.writeTo(dst)
	if err == nil {
		b.atEnd(io.EOF)
	}
	return n, err
}

// proceed sends 100 (Continue) once, unless the answer is under way (RFC 9110, section 10.1.1).
func (b *requestBody) proceed() {
	if b.awaited.Load() && !b.closed.Load() && b.awaited.Swap(false) {
		b.w.inform(http.StatusContinue, nil)
	}
}

// atEnd fills the trailers that the request has announced.
func (b *requestBody) atEnd(err error) {
	if err == io.EOF && b.trailer != nil {
		fillTrailer(b.trailer, b.st.Trailers(), false)
		b.trailer = nil
	}
}

// Close stops reading: a Read under way returns an error. The response is not affected.
func (b *requestBody) Close() error {
	b.interrupt()
	return nil
}

// beside runs f in a goroutine of its own: the copy of a request body, the handler of a pushed request,
// the receiver of a promise, or the Close of a request body.
func beside(f func()) {
	go f() // ends when its stream and the user's code in it do; nobody waits, since that code may take its time
}

var (
	_ http.Flusher    = (*httpRequest)(nil)
	_ http.Pusher     = (*httpRequest)(nil)
	_ io.StringWriter = (*httpRequest)(nil)
	_ io.ReaderFrom   = (*httpRequest)(nil)
	_ io.WriterTo     = (*requestBody)(nil)
)
