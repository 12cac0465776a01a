package ingress

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/policy"
	"culvert/tunnel"
)

// serveHTTP1 serves a request of HTTP/1.1.
func (c *conn) serveHTTP1(w http.ResponseWriter, r *http.Request) {
	c.requests++
	fault := c.guard.faultOf(c.requests)
	q := &exchange{c: c, w: w, r: r, rc: http.NewResponseController(w), switching: fault == nil && c.guard.switchAt.Load() == c.requests}
	if c.s.retired.Load() {
		w.Header().Set("Connection", "close")
	}
	if c.s.conf.ACME && c.tls == nil && fault == nil && strings.HasPrefix(r.URL.Path, challengePath) {
		// What the CA asks while it validates a name is no flow; what nobody has asked it for is one.
		c.s.env.Issuer.HTTPHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { q.serve(wayHTTP1, nil) })).ServeHTTP(w, r)
		return
	}
	q.serve(wayHTTP1, fault)
}

// challengePath is where a CA asks for what shows control of a name (RFC 8555, section 8.3).
const challengePath = "/.well-known/acme-challenge/"

// serveHTTP2Request serves a request of HTTP/2.
func (c *conn) serveHTTP2Request(w http.ResponseWriter, r *http.Request) {
	q := &exchange{c: c, w: w, r: r, rc: http.NewResponseController(w), switching: isWebSocket2(r)}
	if q.switching {
		q.r = asUpgrade(r)
	}
	q.serve(wayHTTP2, nil)
}

// refuseHTTP2 records a request of HTTP/2 that was refused before it could be served.
func (c *conn) refuseHTTP2(status int, reason string) {
	err := malformed("the request is malformed: " + reason)
	if status == http.StatusRequestHeaderFieldsTooLarge {
		err = &tunnel.Error{Cause: tunnel.CauseHeadTooLong, Reason: "the head of the request is too long"}
	}
	f := &tunnel.Flow{Listener: c.name, Way: wayHTTP2, Source: c.source, Peer: c.peer}
	f.Request = &tunnel.Request{Fault: err, Dialled: c.local.Addr(), HTTP: &policy.HTTP{Header: noHeader}}
	c.s.gateway.CarryExchange(context.Background(), f, refusedExchange{})
}

// refusedExchange is the accepted side of a request that was answered already.
type refusedExchange struct{}

// Forward is not called.
func (refusedExchange) Forward(*tunnel.Exchange) error {
	panic("BUG: a request goes on that was refused")
}

// Refuse does nothing.
func (refusedExchange) Refuse(*tunnel.Flow, error) {}

// exchange is one request of a client, while it is served. Another goroutine may read its body.
type exchange struct {
	c  *conn
	w  http.ResponseWriter
	r  *http.Request
	rc *http.ResponseController

	x         *tunnel.Exchange // nil: the request was refused
	http      policy.HTTP
	request   tunnel.Request
	flow      tunnel.Flow
	body      requestBody
	switching bool  // the client asks for another protocol, and what comes next is of that, or nothing; in HTTP/2: for WebSocket
	refused   bool  // it was answered with no
	bodiless  bool  // the answer is its head
	failed    error // why the last try did not
	err       error // why it did not end well
}

// serve has the gateway carry the request as a flow.
func (q *exchange) serve(way string, fault error) {
	c, r := q.c, q.r
	f := &q.flow
	f.Listener, f.Way, f.Source, f.Peer, f.Request = c.name, way, c.source, c.peer, &q.request
	q.request.Dialled, q.request.HTTP = c.local.Addr(), &q.http
	q.http.Method = r.Method
	if c.tls != nil {
		q.request.SNI = c.tls.ServerName
	}
	if fault == nil {
		fault = q.read(f)
	} else {
		q.http = policy.HTTP{Header: noHeader}
	}
	q.request.Fault = fault
	c.s.gateway.UseHeader(f, r.Header, c.trusted)
	if c.trusted {
		q.request.Remote = clientOf(r.Header, c.s.forwarded)
	}
	c.s.gateway.CarryExchange(r.Context(), f, q)
	if q.err != nil && !q.refused {
		if c.guard != nil && !r.ProtoAtLeast(1, 1) {
			c.guard.broken.Store(true) // else the answer lacks its end, and what there is of it arrives
		}
		panic(http.ErrAbortHandler) // the client must not take the answer for complete
	}
}

func noHeader(string) (string, bool) { return "", false }

// read finds out what the request asks for. Its error is why that is no flow.
func (q *exchange) read(f *tunnel.Flow) error {
	c, r := q.c, q.r
	q.http.Header = q.header
	target, host, err := authority(r, c.tls != nil)
	if err != nil {
		return err
	}
	if c.target != (tunnel.Target{}) {
		target = c.target
	}
	f.Target, q.http.Host = target, host
	if r.ProtoMajor == 2 && r.Method != http.MethodConnect && !isTarget([]byte(r.RequestURI), r.Method) { // the guard has looked at others
		return malformed("the path of the request is none, or holds a character that has to be percent-encoded")
	}
	if q.http.Path, err = tunnel.DecisionPath(r.URL.Path); err != nil {
		return malformed(err.Error())
	}
	if r.Method == http.MethodConnect {
		return &tunnel.Error{Cause: tunnel.CauseNotConnect, Reason: "CONNECT is not served on this listener"}
	}
	if c.tls != nil {
		if !c.covered.covers(host) {
			return &tunnel.Error{Cause: tunnel.CauseMisdirected, Reason: "the certificate of server name " + shorten(c.tls.ServerName) + " is not for " + shorten(host)}
		}
		return c.doubt(time.Now())
	}
	return nil
}

func shorten(s string) string {
	if len(s) > 100 {
		s = s[:100] + "…"
	}
	return `"` + s + `"`
}

// header is policy.HTTP.Header.
func (q *exchange) header(name string) (string, bool) {
	if name == "host" || name == ":authority" {
		return q.r.Host, true
	}
	values := q.r.Header[http.CanonicalHeaderKey(name)]
	switch len(values) {
	case 0:
		return "", false
	case 1:
		return values[0], true
	}
	return strings.Join(values, ","), true
}

// authority reads the host that a request is for, which policy is told without its port.
func authority(r *http.Request, secure bool) (tunnel.Target, string, error) {
	text := r.Host
	if text == "" {
		return tunnel.Target{}, "", malformed("the request names no host")
	}
	port := uint16(80)
	if secure {
		port = 443
	}
	if strings.HasSuffix(text, "]") || !strings.Contains(text, ":") {
		host := strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
		if bracketed := host != text; bracketed != strings.Contains(host, ":") {
			return tunnel.Target{}, "", malformed("the host is no name and no address")
		}
		t, err := tunnel.TargetOf(host, netip.Addr{}, port)
		return t, hostOf(t), err
	}
	t, err := tunnel.ParseAuthority(text)
	return t, hostOf(t), err
}

func hostOf(t tunnel.Target) string {
	if t.IsName() || !t.Addr.IsValid() {
		return t.Host
	}
	return t.Addr.String()
}

// Refuse answers no: the status, what Proxy-Status says of it, and a line for people.
func (q *exchange) Refuse(_ *tunnel.Flow, err error) {
	q.refused = true
	status, proxy := q.c.s.gateway.RequestStatus(err)
	h := q.w.Header()
	clear(h)
	h.Set("Proxy-Status", proxy)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	if status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", `Bearer error="invalid_token"`) // RFC 6750, section 3.1
	}
	if q.r.ProtoMajor == 1 && (q.switching || q.body.begun.Load() || status == http.StatusBadRequest || q.r.ContentLength != 0) {
		h.Set("Connection", "close")
		q.c.guard.lingers.Store(true)
	}
	q.giveUpBody()
	q.w.WriteHeader(status)
	if q.r.Method != http.MethodHead {
		_, _ = q.w.Write([]byte(http.StatusText(status) + "\n")) // the client may be gone
	}
}

// lingers is how long the rest of a body is read after a refusal, so that the client can read that.
const lingers = 2 * time.Second

// giveUpBody bounds how long the rest of the body is waited for.
func (q *exchange) giveUpBody() {
	if q.r.Body != nil && q.r.Body != http.NoBody {
		_ = q.rc.SetReadDeadline(time.Now().Add(lingers)) // what has ended needs none
	}
}

// requestBody is the body of a request on its way. One goroutine reads it; close may be called by another.
type requestBody struct {
	q   *exchange
	max int64 // bytes; negative: any number

	mu     sync.Mutex // held while reading
	begun  atomic.Bool
	ended  atomic.Bool
	closed bool  // guarded by mu
	n      int64 // guarded by mu
	failed atomic.Pointer[error]
}

// Read reads the body, within its bounds.
func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read(p)
}

// read is Read. Called with mu held.
func (b *requestBody) read(p []byte) (int, error) {
	if why := b.err(); why != nil || b.closed {
		return 0, cmp.Or(why, http.ErrBodyReadAfterClose)
	}
	b.begun.Store(true)
	q := b.q
	_ = q.rc.SetReadDeadline(time.Now().Add(q.c.s.conf.BodyTimeout)) // what has ended is found by Read
	n, err := q.r.Body.Read(p)
	if b.n += int64(n); b.max >= 0 && b.n > b.max {
		n, err = 0, errTooLong
	} else if n > 0 {
		if why := q.x.Sent(n); why != nil {
			err = why
		}
	}
	switch {
	case err == nil:
		return n, nil
	case isEOF(err):
		b.ended.Store(true)
		q.mendTrailer()
		_ = q.rc.SetReadDeadline(time.Time{}) // net/http reads on
		return n, err
	}
	if g := q.c.guard; g != nil && g.body.Load() != nil {
		err = *g.body.Load() // net/http has other words for it
	}
	err = clientError(err)
	b.failed.Store(&err)
	return n, err
}

// err is why the client's body failed, nil if it did not.
func (b *requestBody) err() error {
	if why := b.failed.Load(); why != nil {
		return *why
	}
	return nil
}

// finish ends the reading: nobody reads when it returns.
func (b *requestBody) finish() {
	if b.q == nil {
		return
	}
	if b.begun.Load() && !b.ended.Load() {
		_ = b.q.rc.SetReadDeadline(time.Unix(1, 0)) // who reads returns
	}
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
}

// Close ends nothing: the server of the request does.
func (b *requestBody) Close() error { return nil }

// errTooLong is why a request is refused or ended whose body is too long.
var errTooLong = &tunnel.Error{Cause: tunnel.CauseTooLong, Reason: "the body of the request has more bytes than the route lets through"}

// clientError is why the body of a request did not come to its end.
func clientError(err error) error {
	var own *tunnel.Error
	var wait net.Error
	switch {
	case errors.As(err, &own):
		return err
	case errors.As(err, &wait) && wait.Timeout():
		return &tunnel.Error{Cause: tunnel.CauseSlow, Reason: "nothing has come of the request's body for too long", Err: err}
	}
	if tunnel.CauseOf(err) == tunnel.CauseInternal { // what net/http cannot read
		return &tunnel.Error{Cause: tunnel.CauseMalformed, Reason: "the body of the request cannot be read", Err: err}
	}
	return &tunnel.Error{Cause: tunnel.CauseSourceBroke, Err: err}
}
