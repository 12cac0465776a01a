package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// continueWait is how long a request with "Expect: 100-continue" waits before it sends its content
// without having been asked to: net/http's default transport waits as long (RFC 9110, section 10.1.1).
const continueWait = time.Second

// RoundTrip sends a request on a stream of its own and returns when the final response header is there:
// [net/http.RoundTripper] over this one connection. Content flows both ways at the same time. It is safe
// for concurrent use.
//
// Like net/http's transport it sends what the request's Header, Host, ContentLength and Trailer say,
// leaves out connection-specific fields (RFC 9113, section 8.2.2), waits where "Expect: 100-continue"
// asks for it, and calls the hooks of httptrace. Unlike it, it adds neither User-Agent nor
// Accept-Encoding, follows no proxy and never sends a request twice: [Unprocessed] says of an error
// whether the request may be sent again. Extended CONNECT (RFC 8441) has its protocol in
// Header[":protocol"].
//
// When the request's context ends, the stream is reset (CANCEL) and the context's error returned, also
// by Response.Body. The body must be read to its end or closed; closing it early resets the stream.
// Trailers are in Response.Trailer once the body is at its end.
func (c *Conn) RoundTrip(req *http.Request) (*http.Response, error) {
	return c.Do(req.Context(), req, nil)
}

// Do is [Conn.RoundTrip] under ctx instead of the request's context. It calls onPush, where it is not nil
// and Config.EnablePush is set, for every request that the server promises on this one, with the promised
// request and its response (RFC 9113, section 8.4). Promises may come for as long as the body of the
// response is open. Every call has a goroutine of its own, so calls may overlap, and the response is
// closed when onPush returns. Promises stop when ctx ends.
func (c *Conn) Do(ctx context.Context, req *http.Request, onPush func(*http.Request, *http.Response)) (*http.Response, error) {
	x := &httpExchange{ctx: ctx, req: req, onPush: onPush, trace: httptrace.ContextClientTrace(ctx)}
	length := sentLength(req)
	h, err := requestHead(req, length)
	if err != nil {
		x.closeRequest()
		return nil, err
	}
	x.head = h
	x.hasBody = length != 0 || len(req.Trailer) > 0
	x.sent.length = length
	x.expects = length != 0 && expectsContinue(req.Header["Expect"])
	if x.trace != nil && x.trace.GotConn != nil {
		x.trace.GotConn(httptrace.GotConnInfo{Conn: c.nc, Reused: true})
	}
	small, err := x.readSmall(length)
	if err == nil {
		err = x.open(c, h)
	}
	if err != nil {
		x.closeRequest()
		return nil, err
	}
	if small != nil {
		x.sendSmall(small.b[:length])
		small.release()
	}
	return x.await()
}

// Unprocessed reports whether err, from RoundTrip or Do, means that the peer has not acted on the
// request, so that it may be sent again on another connection whatever its method: it was refused by
// RST_STREAM(REFUSED_STREAM), cut off by GOAWAY (RFC 9113, sections 6.8 and 8.7), or never sent. A body
// that was begun must be made again by Request.GetBody.
func Unprocessed(err error) bool {
	var se *StreamError
	var unsent *unsentError
	return errors.Is(err, ErrDraining) || errors.As(err, &unsent) ||
		errors.As(err, &se) && se.Code == RefusedStream && se.By == Peer
}

// unsentError is why a request was not sent although nothing is wrong with it.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return "request not sent: " + e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// sentLength is the length of a request's content: 0 none, -1 not known.
func sentLength(r *http.Request) int64 {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		return 0
	case r.ContentLength > 0:
		return r.ContentLength
	}
	return -1
}

// httpExchange is one request and its response. Its stream is closed when both have ended or the caller
// has closed the response's body, whichever comes first.
type httpExchange struct {
	// immutable after open
	ctx     context.Context
	req     *http.Request
	head    *Header                // of the request; nil for a promise
	trace   *httptrace.ClientTrace // nil: nobody looks
	onPush  func(*http.Request, *http.Response)
	st      *Stream
	hasBody bool        // content or trailers follow the request's header
	expects bool        // the server is asked before the content is sent
	stopCtx func() bool // stops watching ctx

	sent    sentBody
	started atomic.Bool  // content is being sent, or never will be
	halves  atomic.Int32 // of the exchange that are over; 2: all
	whole   atomic.Bool  // the request was sent to its end
	over    sync.Once    // the stream was closed

	mu      sync.Mutex // guards the rest
	informs []*Header  // 1xx answers that nobody has looked at yet
	wake    context.CancelFunc
	bodyErr error // why the request's content could not be sent
}

// open sends the request's header.
func (x *httpExchange) open(c *Conn, h *Header) (err error) {
	if x.st, err = c.openWith(x.ctx, h, !x.hasBody, x); err != nil {
		var gone *ConnError
		if errors.As(err, &gone) {
			return &unsentError{err}
		}
		return err
	}
	if x.trace != nil && x.trace.WroteHeaders != nil {
		x.trace.WroteHeaders()
	}
	x.watchContext()
	return nil
}

// watchContext makes the end of the context the end of the stream.
func (x *httpExchange) watchContext() {
	x.stopCtx = func() bool { return true }
	if x.ctx.Done() != nil {
		x.stopCtx = context.AfterFunc(x.ctx, x.cancel)
	}
}

// cancel resets the stream and lets go of the request's content.
func (x *httpExchange) cancel() {
	x.st.Reset(Cancel)
	x.closeRequest()
}

// await returns the response. The request's content is sent meanwhile.
func (x *httpExchange) await() (*http.Response, error) {
	if !x.hasBody {
		x.sentAll()
	} else if !x.expects {
		x.sendBody()
	}
	h, err := x.answer()
	if err != nil {
		return nil, x.fail(err)
	}
	if x.trace != nil && x.trace.GotFirstResponseByte != nil {
		x.trace.GotFirstResponseByte()
	}
	if h.Status <= 299 {
		x.sendBody() // a server that did not say 100 may still want it
	} else {
		x.stopBody()
	}
	return x.response(h), nil
}

// fail ends the exchange before there was a response and returns why.
func (x *httpExchange) fail(err error) error {
	x.started.Store(true)
	x.mu.Lock()
	if x.bodyErr != nil {
		err = x.bodyErr
	}
	x.mu.Unlock()
	if ctxErr := x.ctx.Err(); ctxErr != nil {
		err = ctxErr
	}
	x.end()
	return err
}

// answer waits for the final header, looks at the 1xx answers that come before it and starts the
// request's content when it should be sent.
func (x *httpExchange) answer() (*Header, error) {
	if !x.expects && (x.trace == nil || x.trace.Got1xxResponse == nil) {
		return x.st.Response(x.ctx)
	}
	if x.expects && x.trace != nil && x.trace.Wait100Continue != nil {
		x.trace.Wait100Continue()
	}
	for {
		h, err := x.answerOrInform()
		if lookErr := x.lookAtInforms(); lookErr != nil {
			return nil, lookErr
		}
		switch {
		case x.ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			x.sendBody()
		case x.ctx.Err() != nil || !errors.Is(err, context.Canceled):
			return h, err
		}
	}
}

// answerOrInform waits for the final header. It returns context.Canceled when a 1xx answer came before,
// and context.DeadlineExceeded when the content has waited long enough to be asked for.
func (x *httpExchange) answerOrInform() (*Header, error) {
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	x.mu.Lock()
	x.wake = cancel
	if len(x.informs) > 0 {
		cancel()
	}
	x.mu.Unlock()
	if !x.started.Load() {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, continueWait)
		defer stop()
	}
	return x.st.Response(ctx)
}

// lookAtInforms calls the hooks of httptrace for the 1xx answers that have come. An error of a hook ends
// the request.
func (x *httpExchange) lookAtInforms() error {
	x.mu.Lock()
	informs := x.informs
	x.informs = nil
	x.mu.Unlock()
	for _, h := range informs {
		if x.trace != nil && x.trace.Got1xxResponse != nil {
			if err := x.trace.Got1xxResponse(h.Status, textproto.MIMEHeader(httpHeader(h.Fields, 0))); err != nil {
				return err
			}
		}
		if h.Status != http.StatusContinue {
			continue
		}
		if x.trace != nil && x.trace.Got100Continue != nil {
			x.trace.Got100Continue()
		}
		x.sendBody()
	}
	return nil
}

// informed is called by the connection's reader for a 1xx answer.
func (x *httpExchange) informed(h *Header) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.informs = append(x.informs, h) // Config.MaxInform bounds them
	if x.wake != nil {
		x.wake()
	}
}

// promised is called by the connection's reader for a promise on this stream.
func (x *httpExchange) promised(promise *Header, st *Stream) {
	if x.onPush == nil {
		st.Reset(Cancel) // RFC 9113, section 8.4.2
		st.Close()
		return
	}
	beside(func() { x.receive(promise, st) })
}

func (x *httpExchange) wantsPush() bool { return x.onPush != nil }

// ended is called when the stream was reset or the connection is lost: whoever fills the request's body
// must not wait for us.
func (x *httpExchange) ended() {
	if x.hasBody && !x.sent.closed.Load() {
		beside(x.closeRequest)
	}
}

// receive waits for the response to a promise and hands both to onPush.
func (x *httpExchange) receive(promise *Header, st *Stream) {
	defer st.Close()
	p, problem := parseRequest(promise, false)
	if problem != "" || !x.authoritative(promise, st) {
		st.Reset(ProtocolError) // RFC 9113, section 8.4
		return
	}
	p.URL.Scheme, p.URL.Host, p.Body = promise.Scheme, p.Host, http.NoBody
	y := &httpExchange{ctx: x.ctx, st: st, req: p.Request.WithContext(x.ctx)}
	y.watchContext()
	defer y.end()
	y.sentAll()
	h, err := st.Response(x.ctx)
	if err != nil {
		return
	}
	x.onPush(y.req, y.response(h))
}

// authoritative reports whether the server may answer the promised request: it is for the authority of
// the one it came with, or for one that the server's certificate names (RFC 9113, section 10.1).
func (x *httpExchange) authoritative(promise *Header, st *Stream) bool {
	if promise.Scheme != x.head.Scheme {
		return false
	}
	if strings.EqualFold(promise.Authority, x.head.Authority) {
		return true
	}
	t := infoOf(st, nil).tls
	u := url.URL{Host: promise.Authority}
	return t != nil && len(t.PeerCertificates) > 0 && t.PeerCertificates[0].VerifyHostname(u.Hostname()) == nil
}

// response makes the response of its header and ends the exchange where no content follows.
func (x *httpExchange) response(h *Header) *http.Response {
	r := parseResponse(h)
	r.Request = x.req
	r.TLS = infoOf(x.st, nil).tls
	head := x.req.Method == http.MethodHead
	none := head || !bodyAllowed(h.Status)
	ended := nothingFollows(x.st)
	if (ended || none) && !head && r.ContentLength < 0 {
		r.ContentLength = 0
	}
	if ended {
		r.Body = http.NoBody
		x.halfOver()
		return r
	}
	b := &responseBody{x: x, resp: r}
	b.st, b.left = x.st, r.ContentLength
	switch {
	case x.req.Method == http.MethodConnect && h.Status < 300:
		b.left, r.ContentLength = -1, -1 // RFC 9110, section 9.3.6
	case none:
		b.left = 0
	}
	r.Body = b
	return r
}

// sentAll notes that the request was sent to its end.
func (x *httpExchange) sentAll() {
	x.started.Store(true)
	x.whole.Store(true)
	x.wroteRequest(nil)
	x.halfOver()
}

// halfOver notes that the request or the response has ended.
func (x *httpExchange) halfOver() {
	if x.halves.Add(1) == 2 {
		x.end()
	}
}

// end closes the stream; with anything missing that is a reset, never a clean end.
func (x *httpExchange) end() {
	x.over.Do(func() {
		x.stopCtx()
		if x.halves.Load() < 2 || !x.whole.Load() {
			x.st.Reset(Cancel)
		}
		x.st.Close()
		x.closeRequest()
	})
}

// closeRequest closes the request's body, which ends a Read of it under way.
func (x *httpExchange) closeRequest() {
	if x.req != nil && x.req.Body != nil && !x.sent.closed.Swap(true) {
		x.req.Body.Close()
	}
}

// responseBody is Response.Body.
type responseBody struct {
	httpBody
	x    *httpExchange
	resp *http.Response
}

// Read reads content; it returns the context's error once that has ended.
func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.read(p)
	return n, b.atEnd(err)
}

// WriteTo is Read for io.Copy.
func (b *responseBody) WriteTo(dst io.Writer) (int64, error) {
	n, err := b.writeTo(dst)
	if err == nil {
		err = io.EOF
	}
	if err = b.atEnd(err); err == io.EOF {
		err = nil
	}
	return n, err
}

// atEnd fills the trailers and lets go of the stream.
func (b *responseBody) atEnd(err error) error {
	switch {
	case err == nil:
	case err == io.EOF && b.resp != nil:
		b.resp.Trailer = fillTrailer(b.resp.Trailer, b.st.Trailers(), true)
		b.resp = nil
		b.x.halfOver()
	case err != io.EOF && b.x.ctx.Err() != nil:
		err = b.x.ctx.Err()
	}
	return err
}

// Close ends the exchange: where the response was not read to its end, or the request was not sent to
// its end, the stream is reset (CANCEL).
func (b *responseBody) Close() error {
	b.interrupt()
	b.x.end()
	return nil
}

// sentBody reads the content of a request and holds it to its declared length.
type sentBody struct {
	r      io.Reader
	length int64       // still to come; -1: not declared
	closed atomic.Bool // Request.Body was closed
}

// errStopped is what reading a request's body returns that is no longer wanted.
var errStopped = errors.New("request body was closed before its end")

var errTooLong = errors.New("request body is longer than its ContentLength")

// Read reads content.
func (b *sentBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errStopped
	}
	n, err := b.r.Read(p)
	if err == io.EOF && b.closed.Load() {
		err = errStopped // Close may end a body like this
	}
	if b.length >= 0 {
		b.length -= int64(n)
		if b.length == 0 && n > 0 && err == nil {
			// END_STREAM is to go with the last bytes, and it needs no window: look for the end now.
			var more int
			more, err = b.r.Read(make([]byte, 1))
			b.length -= int64(more)
		}
		if b.length < 0 {
			err = errTooLong
			n = 0
		} else if err == io.EOF && b.length > 0 {
			err = fmt.Errorf("request body is %d bytes shorter than its ContentLength: %w", b.length, io.ErrUnexpectedEOF)
		}
	}
	return n, err
}

// readSmall reads content that fits into one small frame and that is in memory, as GetBody shows: it is
// sent without a goroutine. It returns nil for any other.
func (x *httpExchange) readSmall(length int64) (*buffer, error) {
	if length <= 0 || length > wholeBytes || x.req.GetBody == nil || x.expects || len(x.req.Trailer) > 0 {
		return nil, nil
	}
	x.sent.r = x.req.Body
	buf := getBuffer(wholeBytes, nil)
	_, err := io.ReadFull(&x.sent, buf.b[:length])
	if err != nil {
		buf.release()
		return nil, err
	}
	return buf, nil
}

// sendSmall sends what readSmall has read, at once or, where there is no window for it, as other bodies
// are.
func (x *httpExchange) sendSmall(p []byte) {
	if x.st.sendWhole(p) {
		x.closeRequest()
		x.sentAll()
		return
	}
	x.sent.r, x.sent.length = bytes.NewReader(bytes.Clone(p)), int64(len(p))
}

// sendBody starts sending the request's content, once.
func (x *httpExchange) sendBody() {
	if x.started.Swap(true) {
		return
	}
	beside(func() {
		err := x.copyBody()
		x.closeRequest()
		x.wroteRequest(err)
		x.whole.Store(err == nil)
		x.halfOver()
	})
}

func (x *httpExchange) wroteRequest(err error) {
	if x.trace != nil && x.trace.WroteRequest != nil {
		x.trace.WroteRequest(httptrace.WroteRequestInfo{Err: err})
	}
}

// copyBody sends content and trailers. What fails is the caller's body, then the stream is reset
// (CANCEL); or the stream, which the response shows.
func (x *httpExchange) copyBody() error {
	if x.req.Body != nil && x.req.Body != http.NoBody {
		if x.sent.r == nil {
			x.sent.r = x.req.Body
		}
		if _, err := x.st.ReadFrom(&x.sent); err != nil {
			var src *SourceError
			if errors.As(err, &src) && !x.sent.closed.Load() {
				x.mu.Lock()
				x.bodyErr = src.Err
				x.mu.Unlock()
				x.st.Reset(Cancel)
			}
			return err
		}
	}
	if t := appendTrailers(nil, x.req.Trailer); len(t) > 0 {
		return x.st.SendTrailers(t)
	}
	return x.st.CloseWrite()
}

// stopBody stops the request's content after a final response that has no use for it: one that is no
// success, as net/http sees it too.
func (x *httpExchange) stopBody() {
	if !x.started.Swap(true) {
		x.halfOver()
	}
	x.closeRequest()
}

var _ http.RoundTripper = (*Conn)(nil)
