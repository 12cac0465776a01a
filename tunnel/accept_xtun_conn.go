package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/framing"
	"culvert/tunnel/h2"
)

// proxyHeadTimeout is how long a proxy may take for the preface of HTTP/2, or for the head of a request in HTTP/1.1.
const proxyHeadTimeout = h2.DefaultHandshakeTimeout

// addXTun makes how a listener takes requests with x-tun; x is nil for the defaults.
func (g *Gateway) addXTun(conf *listenerConf, x *XTunConfig) {
	conf.xTun = new(xTun)
	if x == nil {
		return
	}
	conf.xTun.issuers, conf.xTun.audiences = slices.Clone(x.Issuers), slices.Clone(x.Audiences)
	switch {
	case x.Identity:
		conf.proxyTLS = func() (*tls.Config, error) {
			own := g.env.ServerTLS(conf.name)
			return forProxies(&tls.Config{GetCertificate: own.GetCertificate, Certificates: own.Certificates}), nil
		}
	case x.Cert != "":
		cert, key := x.Cert, x.Key
		conf.proxyTLS = func() (*tls.Config, error) {
			files, err := g.env.OriginTLS(&TLSConfig{Cert: cert, Key: key})
			if err != nil {
				return nil, err
			}
			return forProxies(&tls.Config{Certificates: files.Certificates}), nil
		}
	}
}

// forProxies adds to conf what proxies of others need.
func forProxies(conf *tls.Config) *tls.Config {
	conf.MinVersion, conf.NextProtos, conf.DynamicRecordSizingDisabled = tls.VersionTLS12, []string{"h2", protocolHTTP1}, true
	return conf
}

// meetProxy serves a connection of a proxy of others. It calls connEnded when that is over.
func (l *listener) meetProxy(nc net.Conn, conf *listenerConf) {
	in, http1, err := l.greetProxy(nc, conf)
	if err != nil {
		if !errors.Is(err, io.EOF) { // else it only looked whether the port is open
			l.g.stats.tlsRefused.add(1)
			l.logRefused(nc, conf, err)
		}
		_ = nc.Close()
		l.connEnded()
		return
	}
	tuneTransport(nc)
	if http1 != nil {
		l.serveHTTP1(http1, conf)
		l.connEnded()
		return
	}
	s := l.serveH2(in, &serverConn{checked: l.g.rechecks.Load()}, spiffe.ID{})
	if s == nil {
		l.connEnded()
		return
	}
	s.attend(func() {})
}

// greetProxy does the TLS handshake, where there is one, and finds out what is spoken: HTTP/2 on the connection that it returns,
// or else HTTP/1.1.
func (l *listener) greetProxy(nc net.Conn, conf *listenerConf) (net.Conn, *http1Conn, error) {
	defer l.g.closeWithGateway(nc)()
	if conf.proxyTLS != nil {
		tlsConf, err := conf.proxyTLS()
		if err != nil {
			return nil, nil, fmt.Errorf("the certificate for proxies: %w", err)
		}
		ctx, cancel := context.WithTimeout(l.g.grace, l.g.plan.Load().timeouts.Handshake)
		defer cancel()
		tc := tls.Server(h2.NewGate(nc), tlsConf)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, nil, fmt.Errorf("TLS handshake with a proxy: %w", err)
		}
		if tc.ConnectionState().NegotiatedProtocol == "h2" {
			return tc, nil, nil
		}
		nc = tc
	}
	// Nothing of HTTP/1.1 begins like the preface of HTTP/2 (RFC 9113, section 3.4).
	const preface = "PRI * HTTP/2.0"
	_ = nc.SetReadDeadline(time.Now().Add(proxyHeadTimeout))
	c := &http1Conn{Conn: nc, headLeft: maxHeadBytes}
	c.r = bufio.NewReader(readerFunc(c.readHead))
	first, err := c.r.Peek(len(preface))
	if err != nil {
		return nil, nil, err
	}
	if string(first) != preface {
		return nil, c, nil
	}
	if conf.proxyTLS != nil {
		return nil, nil, errors.New("the proxy speaks HTTP/2 without having agreed on it in TLS (ALPN)")
	}
	_ = nc.SetReadDeadline(time.Time{})
	return ahead(nc, c.r), nil, nil
}

// http1Conn is a connection on which one request is taken, and its answer sent, in HTTP/1.1.
type http1Conn struct {
	net.Conn
	r *bufio.Reader // of everything that comes

	// owned by who reads
	headLeft int  // bytes that the head may still have
	headOver bool // what comes now is not bounded
}

// NetConn is the connection below.
func (c *http1Conn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the writing direction, where the connection can do that.
func (c *http1Conn) CloseWrite() error { return newSocket(c.Conn).CloseWrite() }

// readerFunc is an io.Reader.
type readerFunc func(p []byte) (int, error)

// Read calls f.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// readHead reads the head, and what follows once that is over.
func (c *http1Conn) readHead(p []byte) (int, error) {
	if c.headOver {
		return c.Conn.Read(p)
	}
	if c.headLeft <= 0 {
		return 0, errors.New("the head of the request is longer than 64 KiB")
	}
	n, err := c.Conn.Read(p[:min(len(p), c.headLeft)])
	c.headLeft -= n
	return n, err
}

// serveHTTP1 serves the one request that is taken on a connection.
func (l *listener) serveHTTP1(c *http1Conn, conf *listenerConf) {
	defer l.g.closeWithGateway(c)()
	req, err := http.ReadRequest(c.r)
	if err != nil {
		l.refuseHTTP1(c, nil, conf, &Error{Cause: CauseMalformed, Reason: "the request is none of HTTP/1.1", Err: err})
		return
	}
	c.headOver = true
	_ = c.SetReadDeadline(time.Time{})
	head := &requestHead{method: req.Method, protocol: req.Header.Get("Upgrade"), values: req.Header.Values}
	o, err := l.judge(conf.xTun, head)
	if err == nil {
		err = checkHTTP1(o.form, req)
	}
	var leave func()
	if err == nil {
		leave, err = l.enter(o, conf, new(atomic.Int64))
	}
	if err != nil {
		l.refuseHTTP1(c, req, conf, err)
		return
	}
	stream, err := c.answer(req, o.form)
	if err != nil {
		leave()
		_ = c.Close() // the proxy has gone
		return
	}
	l.serveInner(stream, conf, o, leave, func() {})
}

// checkHTTP1 says why a request in HTTP/1.1 carries no tunnel, nil if it does.
func checkHTTP1(form string, req *http.Request) error {
	problem := ""
	switch form {
	case tunGRPC:
		problem = "gRPC needs HTTP/2; have the proxy speak that with this listener"
	case tunPost:
		if !slices.Equal(req.TransferEncoding, []string{"chunked"}) {
			problem = "the request has no chunks: " + buffers(form)
		}
	case tunWebSocket:
		// Envoy 1.40 makes such a request of one in HTTP/2 (RFC 8441), and that has no key. What a key is there for, that nobody
		// is taken for a client who is none, the token does.
		keys := req.Header.Values("Sec-WebSocket-Key")
		wrong := len(keys) > 1
		for _, text := range keys {
			key, err := base64.StdEncoding.DecodeString(text)
			wrong = wrong || err != nil || len(key) != 16
		}
		if wrong || !hasToken(req.Header, "Connection", "upgrade") || req.Header.Get("Sec-WebSocket-Version") != "13" {
			problem = "the request to upgrade is not as RFC 6455, section 4.2.1, has it; is the proxy told to pass on Upgrade and Connection?"
		}
	}
	if problem == "" {
		return nil
	}
	return &Error{Cause: CauseMalformed, Reason: problem}
}

// refuseHTTP1 answers with the status of err, or to a question for our health, and closes. req is nil where there was none.
func (l *listener) refuseHTTP1(c *http1Conn, req *http.Request, conf *listenerConf, err error) {
	defer l.g.farewell(c)
	status := 0
	if req != nil && len(req.Header.Values(fieldTun)) == 0 {
		status = l.g.health(req.Method, req.URL.Path)
	}
	var fields [][2]string
	if status == 0 {
		l.logOuterRefused(c.RemoteAddr().String(), conf, err)
		status, fields = verdicts[CauseOf(err)].status, l.g.refusal(err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: 0\r\n", status, http.StatusText(status))
	for _, f := range fields {
		fmt.Fprintf(&b, "%s: %s\r\n", f[0], f[1])
	}
	b.WriteString("\r\n")
	_ = c.SetWriteDeadline(time.Now().Add(farewellTimeout))
	_, _ = c.Write(b.Bytes()) // whoever does not read it sees the end
}

// answer says yes and returns the tunnel.
func (c *http1Conn) answer(req *http.Request, form string) (*outerStream, error) {
	var b bytes.Buffer
	end := &http1End{socket: newSocket(c), r: c.r}
	switch form {
	case tunWebSocket:
		b.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
		if key := req.Header.Get("Sec-WebSocket-Key"); key != "" {
			fmt.Fprintf(&b, "Sec-WebSocket-Accept: %s\r\n", framing.WebSocketAccept(key))
		}
	case tunConnect:
		b.WriteString("HTTP/1.1 200 OK\r\n")
	default:
		b.WriteString("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n")
		end.r = req.Body
		end.buf = bufio.NewWriterSize(c.Conn, http1WriteBytes)
		end.chunks = httputil.NewChunkedWriter(end.buf)
	}
	for _, f := range answerTo(form).Fields {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	b.WriteString("\r\n")
	if _, err := c.Write(b.Bytes()); err != nil {
		return nil, err
	}
	o := &outerStream{Conn: end, below: end, form: form}
	if form == tunWebSocket {
		o.Conn = framing.NewWebSocket(end, false)
	}
	return o, nil
}

// http1WriteBytes is the buffer for the head and the tail of a chunk; a large one goes past it.
const http1WriteBytes = 4 << 10

// http1End is a tunnel's end on a connection in HTTP/1.1: its bytes, or those in the chunks of request and answer.
type http1End struct {
	*socket
	r io.Reader

	wmu    sync.Mutex
	buf    *bufio.Writer  // guarded by wmu
	chunks io.WriteCloser // nil: the bytes of the connection; guarded by wmu
	ended  bool           // guarded by wmu
}

// Read reads the tunnel.
func (e *http1End) Read(p []byte) (int, error) { return e.r.Read(p) }

// Write writes to the tunnel.
func (e *http1End) Write(p []byte) (int, error) {
	e.wmu.Lock()
	defer e.wmu.Unlock()
	if e.chunks == nil {
		return e.socket.Write(p)
	}
	if e.ended {
		return 0, net.ErrClosed
	}
	n, err := e.chunks.Write(p)
	if err == nil {
		err = e.buf.Flush()
	}
	return n, err
}

// CloseWrite ends the answer.
func (e *http1End) CloseWrite() error {
	e.wmu.Lock()
	defer e.wmu.Unlock()
	if e.chunks == nil {
		return e.socket.CloseWrite()
	}
	if e.ended {
		return nil
	}
	e.ended = true
	_ = e.chunks.Close() // it only writes to buf, which keeps its error
	_, _ = e.buf.WriteString("\r\n")
	return e.buf.Flush()
}

// Close ends the answer, unless a Write is under way, and closes the connection.
func (e *http1End) Close() error {
	if e.chunks != nil && e.wmu.TryLock() {
		e.wmu.Unlock()
		_ = e.SetWriteDeadline(time.Now().Add(farewellTimeout))
		_ = e.CloseWrite() // who does not take it sees the end
	}
	return e.socket.Close()
}
