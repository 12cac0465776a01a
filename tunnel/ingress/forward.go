package ingress

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"culvert/tunnel"
)

// copyBytes is how much of an answer is copied at once.
const copyBytes = 32 << 10

// exchangeKey is the key of an exchange in the context of its request.
type exchangeKey struct{}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// newProxy makes what forwards requests, over carriers.
func (s *Server) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        func(p *httputil.ProxyRequest) { exchangeOf(p.In).rewrite(p) },
		Transport:      roundTripper{},
		FlushInterval:  -1,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // it is in the record
		BufferPool:     s,
		ModifyResponse: func(r *http.Response) error { return exchangeOf(r.Request).answer(r) },
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			exchangeOf(r).err = err
		},
	}
}

// Get is httputil.BufferPool.
func (s *Server) Get() []byte { return *s.buffers.Get().(*[]byte) }

// Put is httputil.BufferPool.
func (s *Server) Put(b []byte) { s.buffers.Put(&b) }

// roundTripper is the transport of the proxy.
type roundTripper struct{}

// RoundTrip sends a request on and returns its answer.
func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	return exchangeOf(r).roundTrip(r)
}

// noRoute is what a route says that says nothing.
var noRoute = &tunnel.RouteHTTPConfig{} // immutable

// route is what the route of the request says.
func (q *exchange) route() *tunnel.RouteHTTPConfig {
	if route := q.x.Route(); route != nil {
		return route
	}
	return noRoute
}

// Forward answers the request: with a redirect, or with what the destination says.
func (q *exchange) Forward(x *tunnel.Exchange) (err error) {
	q.x = x
	route := q.route()
	if err := q.withinBounds(route); err != nil {
		return err
	}
	if route.Redirect != nil {
		q.redirect(route)
		return nil
	}
	ctx := x.Context()
	if route.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, route.Timeout)
		defer cancel()
	}
	r := q.r.WithContext(context.WithValue(ctx, exchangeKey{}, q))
	if r.ContentLength != 0 {
		q.body.q = q
		r.Body = &q.body
		// An answer may begin while the request goes on (RFC 9112, section 9.3); net/http would first read all of that.
		_ = q.rc.EnableFullDuplex() // HTTP/2 needs no permission
	}
	defer q.body.finish()
	if q.switching {
		return q.forwarded(ctx, q.upgrade(r))
	}
	return q.forwarded(ctx, q.proxied(r))
}

// proxied has the proxy forward the request. It returns why that did not end well.
func (q *exchange) proxied(r *http.Request) (err error) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler { // the answer broke off
			if err = q.err; err == nil {
				err = &tunnel.Error{Cause: tunnel.CauseSourceBroke, Reason: "the client does not take the answer"}
			}
		} else if p != nil {
			panic(p)
		}
	}()
	q.c.s.proxy.ServeHTTP(answerWriter{q.w, q}, r)
	return q.err
}

// answerWriter is what the proxy writes an answer to. The proxy flushes the head at once, from another goroutine.
type answerWriter struct {
	http.ResponseWriter
	q *exchange
}

// FlushError sends what is written so far. An answer without a body goes as one: gRPC takes a status in a head for one
// only where the stream ends with that head ("Trailers-Only" of gRPC over HTTP/2).
func (w answerWriter) FlushError() error {
	if w.q.bodiless {
		return nil
	}
	return w.q.rc.Flush()
}

// forwarded notes how forwarding has ended. What the client did wrong counts before what followed from that.
func (q *exchange) forwarded(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if why := q.body.err(); why != nil {
		err = why
	} else if ctx.Err() != nil && q.x.Context().Err() == nil {
		err = &tunnel.Error{Cause: tunnel.CauseTimeout, Reason: "the request has taken longer than http.timeout of its route"} // err is what came of that
	} else if q.x.Context().Err() != nil && tunnel.CauseOf(err) != tunnel.CauseSourceBroke {
		err = &tunnel.Error{Cause: tunnel.CauseSourceGone, Err: err}
	}
	q.err = err
	return err
}

// withinBounds says what is too large about the request.
func (q *exchange) withinBounds(route *tunnel.RouteHTTPConfig) error {
	q.body.max = -1
	switch {
	case route.MaxBodyBytes > 0:
		q.body.max = route.MaxBodyBytes
	case route.MaxBodyBytes == 0 && q.c.s.conf.MaxBodyBytes > 0:
		q.body.max = q.c.s.conf.MaxBodyBytes
	}
	if q.body.max >= 0 && q.r.ContentLength > q.body.max {
		return errTooLong
	}
	if route.MaxHeadBytes > 0 {
		n := len(q.r.RequestURI)
		for name, values := range q.r.Header {
			for _, value := range values {
				n += len(name) + len(value)
			}
		}
		if n > route.MaxHeadBytes {
			return &tunnel.Error{Cause: tunnel.CauseHeadTooLong, Reason: "the fields of the request have more bytes than the route lets through"}
		}
	}
	return nil
}

// rewrite makes the request that goes on of the one that came.
func (q *exchange) rewrite(p *httputil.ProxyRequest) {
	route, out := q.route(), p.Out
	out.URL.Scheme, out.URL.Host = "http", q.x.Flow().Target.String()
	out.Host = q.r.Host
	if route.Rewrite.Host != "" {
		out.Host = route.Rewrite.Host
	}
	if route.Rewrite.Prefix != "" {
		out.URL = withPrefix(out.URL, route.Prefix, route.Rewrite.Prefix)
	}
	out.Trailer = p.In.Trailer // which is filled when the body has been read
	q.tellOrigin(out.Header, p.In.Header)
	change(out.Header, &route.RequestHeaders)
}

// withPrefix returns u with another prefix of its path. Where the path was written in a way of its own (a slash encoded) that is
// kept behind the prefix, unless the prefix itself was written so.
func withPrefix(u *url.URL, before, after string) *url.URL {
	next := *u
	before, after = strings.TrimSuffix(before, "/"), strings.TrimSuffix(after, "/")
	swap := func(path string) (string, bool) {
		for len(path) > 1 && path[0] == '/' && path[1] == '/' {
			path = path[1:]
		}
		rest, ok := strings.CutPrefix(path, before)
		if !ok || rest != "" && rest[0] != '/' {
			return "", false
		}
		if after+rest == "" {
			return "/", true
		}
		return after + rest, true
	}
	path, ok := swap(u.Path)
	if !ok { // the prefix has slashes that follow each other
		clean, err := tunnel.DecisionPath(u.Path)
		if err != nil {
			return u
		}
		if path, ok = swap(clean); !ok {
			return u
		}
		next.Path, next.RawPath = path, ""
		return &next
	}
	next.Path = path
	if next.RawPath, ok = swap(u.RawPath); !ok || u.RawPath == "" {
		next.RawPath = ""
	}
	return &next
}

// redirect answers with a redirect.
func (q *exchange) redirect(route *tunnel.RouteHTTPConfig) {
	d := route.Redirect
	u := *q.r.URL
	u.Scheme, u.Host, u.User = "http", q.r.Host, nil
	if q.c.tls != nil {
		u.Scheme = "https"
	}
	if d.Scheme != "" && d.Scheme != u.Scheme {
		u.Scheme = d.Scheme
		if t := q.x.Flow().Target; t.Port != 0 { // a port is of the scheme that it was used with
			u.Host = q.http.Host
			if strings.Contains(u.Host, ":") {
				u.Host = "[" + u.Host + "]"
			}
		}
	}
	if d.Host != "" {
		u.Host = d.Host
	}
	switch {
	case d.Path != "":
		u.Path, u.RawPath = d.Path, ""
	case d.Prefix != "":
		u = *withPrefix(&u, route.Prefix, d.Prefix)
	}
	status := d.Status
	if status == 0 {
		status = http.StatusFound
	}
	h := q.w.Header()
	h.Set("Location", u.String())
	change(h, &route.ResponseHeaders)
	q.x.Answer(status)
	q.giveUpBody()
	q.w.WriteHeader(status)
}

// answer readies the answer of the destination for the client.
func (q *exchange) answer(r *http.Response) error {
	q.x.Answer(r.StatusCode)
	q.bodiless = r.ContentLength == 0
	change(r.Header, &q.route().ResponseHeaders)
	return nil
}

// isEOF reports whether err is the end of a body.
func isEOF(err error) bool { return err == io.EOF }
