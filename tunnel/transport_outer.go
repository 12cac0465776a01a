package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"culvert/pki/bearer"
	"culvert/pki/spiffe"
	"culvert/tunnel/h2"
)

// The forms in which proxies of others let a tunnel pass (HopConfig.Tun).
const (
	tunPost      = "POST"
	tunConnect   = "CONNECT"
	tunWebSocket = "WEBSOCKET"
	tunGRPC      = "GRPC"
)

// Fields of a request that carries a tunnel through a proxy of others, and of its answer.
const (
	fieldTun           = "x-tun"
	fieldAuthorization = "authorization"
	fieldContentType   = "content-type"
	fieldChallenge     = "www-authenticate"
	typeBytes          = "application/octet-stream"
	typeGRPC           = "application/grpc"
	protocolWebSocket  = "websocket"
	protocolHTTP1      = "http/1.1"
)

// Paths of the request where the configuration has none; that of gRPC has to name a method.
const (
	defaultTunPath  = "/x-tun"
	defaultGRPCPath = "/culvert.XTun/Tunnel"
)

// outer is how a hop is reached that is a load balancer or proxy of others.
type outer struct {
	form      string
	authority string // of requests: a host name, with its port where that is not the scheme's own
	path      string
	tls       HopTLSConfig
	token     *bearer.Source // nil: none is shown
	spread    int            // connections that flows are spread over
	key       string         // what connections may be shared by

	http1 atomic.Bool // its HTTP/2 has no extended CONNECT, so WebSockets are asked for in HTTP/1.1
}

// beProxy makes h one of others, as c says. Endpoints may want other forms.
func (h *Hop) beProxy(c *HopConfig) {
	token := bearer.New(c.Token)
	first := h.newOuter(c.Tun, c, token)
	for _, e := range c.Endpoints {
		if e.Tun != "" && e.Tun != c.Tun && h.forms[e.Tun] == nil {
			if h.forms == nil {
				h.forms = make(map[string]*outer)
			}
			h.forms[e.Tun] = h.newOuter(e.Tun, c, token)
		}
	}
	h.reachAs(first)
	if h.inner == nil {
		h.inner = new(inner)
	}
}

// reachAs has h reached in the form of o.
func (h *Hop) reachAs(o *outer) { h.outer, h.spread = o, o.spread }

// newOuter makes how h, which c describes, is reached in one form.
func (h *Hop) newOuter(form string, c *HopConfig, token *bearer.Source) *outer {
	o := &outer{form: form, authority: c.Authority, path: c.Path, tls: c.TLS, token: token, spread: h.spread}
	first := h.places()[0]
	if o.authority == "" {
		o.authority = first.Host
		if o.authority == "" {
			o.authority = strings.TrimSuffix(first.String(), ":"+strconv.Itoa(int(first.Port)))
		}
		if usual := map[bool]uint16{false: 443, true: 80}[c.TLS.None]; first.Port != usual {
			o.authority += ":" + strconv.Itoa(int(first.Port))
		}
	}
	switch {
	case o.path != "":
	case o.form == tunGRPC:
		o.path = defaultGRPCPath
	default:
		o.path = defaultTunPath
	}
	of := c.Token.OIDC
	if of == nil {
		of = new(bearer.OIDCConfig)
	}
	o.key = fmt.Sprintf("\n%s %s %s %v %v %v %v", o.form, o.authority, o.path, o.tls, c.Token.File, c.Token.Sign, *of)
	if c.Connections <= 0 && o.form == tunWebSocket {
		o.spread = 1 // in HTTP/1.1 each carries one tunnel, and one that waits for the next is soon closed
	}
	return o
}

// serverName is the name that the proxy must have.
func (o *outer) serverName() string {
	if o.tls.ServerName != "" {
		return o.tls.ServerName
	}
	host := o.authority
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.Trim(host, "[]")
}

// scheme is that of requests.
func (o *outer) scheme() string {
	if o.tls.None {
		return "http"
	}
	return "https"
}

// tlsConfig is that of a connection to the proxy.
func (o *outer) tlsConfig(g *Gateway) (*tls.Config, error) {
	conf := &tls.Config{ServerName: o.serverName(), MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true}
	if o.form == tunWebSocket {
		conf.NextProtos = append(conf.NextProtos, protocolHTTP1)
		if o.http1.Load() {
			conf.NextProtos = conf.NextProtos[1:]
		}
	}
	if o.tls.Roots == "" {
		return conf, nil
	}
	files, err := g.env.OriginTLS(&TLSConfig{Roots: o.tls.Roots})
	if err != nil {
		return nil, err
	}
	conf.RootCAs = files.RootCAs
	return conf, nil
}

// dialOuter makes a transport to a proxy of others.
func (g *Gateway) dialOuter(ctx context.Context, hop *Hop, dial func(context.Context) (net.Conn, error)) (Transport, error) {
	o := hop.outer
	nc, protocol, err := o.connect(ctx, g, hop.Name, dial)
	if err != nil {
		return nil, err
	}
	if protocol == protocolHTTP1 {
		return newUpgradeTransport(nc, hop, g), nil
	}
	cfg := g.env.H2
	cfg.Handler, cfg.Budget = nil, g.env.Budget
	cfg.OnOffence = func(c *h2.Conn, err *h2.ConnError) { g.Offended(c, spiffe.ID{}, err) }
	widen(&cfg)
	conn, err := h2.NewClient(nc, &cfg)
	if err != nil {
		_ = nc.Close()
		return nil, &Error{Cause: CauseHopProtocol, Hop: hop.Name, Err: err}
	}
	t := &outerTransport{h2Transport: &h2Transport{conn: conn, hop: hop.Name, stats: &g.stats}, o: o, g: g}
	if o.form != tunWebSocket {
		return t, nil
	}
	if err := conn.WaitSettings(ctx); err != nil {
		_ = t.Close()
		return nil, &Error{Cause: CauseHopProtocol, Hop: hop.Name, Err: err}
	}
	if conn.PeerConnectProtocol() {
		return t, nil
	}
	_ = t.Close()
	o.http1.Store(true)
	if nc, _, err = o.connect(ctx, g, hop.Name, dial); err != nil {
		return nil, err
	}
	return newUpgradeTransport(nc, hop, g), nil
}

// widen has a proxy never wait for our WINDOW_UPDATE. HAProxy 2.6 reads none while it cannot pass on the DATA before it, so that
// with the same on its other side both directions of a busy tunnel would wait for each other for ever. Nothing is held for it:
// what comes is read at once, by the connection inside.
func widen(cfg *h2.Config) {
	cfg.StreamWindow, cfg.MaxStreamWindow, cfg.ConnWindow = proxyStreamWindow, proxyStreamWindow, proxyConnWindow
}

// The windows of streams, and of connections, that a proxy of others sends us.
const (
	proxyStreamWindow = 16 << 20
	proxyConnWindow   = 1 << 30
)

// connect connects to the proxy and returns the protocol that was agreed on. Without TLS that is HTTP/2 with prior knowledge
// (RFC 9113, section 3.3), but for WebSocket.
func (o *outer) connect(ctx context.Context, g *Gateway, hop string, dial func(context.Context) (net.Conn, error)) (nc net.Conn, protocol string, err error) {
	if nc, err = dial(ctx); err != nil {
		return nil, "", err
	}
	if o.tls.None {
		if o.form == tunWebSocket {
			return nc, protocolHTTP1, nil
		}
		return nc, "h2", nil
	}
	conf, err := o.tlsConfig(g)
	if err != nil {
		_ = nc.Close()
		return nil, "", &Error{Cause: CauseConfiguration, Hop: hop, Reason: "the roots of the proxy", Err: err}
	}
	tc := tls.Client(h2.NewGate(nc), conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, "", proxyTLSError(hop, err, conf.ServerName)
	}
	switch protocol = tc.ConnectionState().NegotiatedProtocol; {
	case protocol == "" && o.form == tunWebSocket:
		protocol = protocolHTTP1
	case protocol != "h2" && protocol != protocolHTTP1:
		_ = tc.Close()
		return nil, "", &Error{Cause: CauseHopProtocol, Hop: hop, Reason: fmt.Sprintf("the proxy agreed on protocol %q, and tun: %s needs h2", protocol, o.form)}
	}
	return tc, protocol, nil
}

// proxyTLSError says why TLS with the proxy has failed.
func proxyTLSError(hop string, err error, name string) error {
	err = handshakeError(hop, err, false)
	var own *Error
	if !errors.As(err, &own) {
		return err
	}
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(own.Err, &host):
		own.Reason = "the proxy's certificate is not for " + name + "; if it is the right one, write the name that it is for in tls.serverName of the hop"
	case errors.As(own.Err, &authority):
		own.Reason = "the proxy's certificate was signed by none of the CAs that are believed; name the right one in tls.roots of the hop"
	case own.Cause == CauseHopProtocol:
		own.Reason = "the proxy does not speak TLS on this port; use another one, or tls: {none: true}"
	}
	return own
}

// authorization is the value of the field that shows the token, "" for none.
func (o *outer) authorization(ctx context.Context, g *Gateway, hop string) (string, error) {
	if o.token == nil {
		return "", nil
	}
	token, err := o.token.Token(ctx, &g.env.Bearer, o.authority)
	if err != nil {
		return "", &Error{Cause: CauseToken, Hop: hop, Reason: "there is no token to show", Err: err}
	}
	return "Bearer " + token, nil
}

// outerTransport opens tunnels on an HTTP/2 connection to a proxy of others.
type outerTransport struct {
	*h2Transport
	o *outer
	g *Gateway
}

// Peer returns nobody: what the proxy has shown is a name of the web, and no identity of a mesh.
func (t *outerTransport) Peer() spiffe.ID { return spiffe.ID{} }

// Connect asks for a tunnel to whatever takes x-tun behind the proxy; see Transport.
func (t *outerTransport) Connect(ctx context.Context, req *ConnectRequest) (Stream, *ConnectResponse, error) {
	authorization, err := t.o.authorization(ctx, t.g, t.hop)
	if err != nil {
		return nil, nil, err
	}
	s, err := t.conn.Open(ctx, t.o.header(req.Target, authorization), false)
	if err != nil {
		if ctx.Err() == nil {
			err = &UnprocessedError{Err: err} // nothing was sent
		}
		return nil, nil, fmt.Errorf("hop %s: %w", t.hop, err)
	}
	wait, cancel := context.WithTimeout(ctx, t.o.patience())
	defer cancel()
	resp, err := s.Response(wait)
	if err != nil && wait.Err() != nil && ctx.Err() == nil && s.Err() == nil {
		o := newOuterStream(&h2Stream{s}, t.o.form, true)
		o.answer = func() error { // bytes of ours may have it come
			resp, err := s.Response(context.Background()) // Close ends it
			if err == nil {
				err = t.o.judge(t.hop, resp)
			}
			return err
		}
		return o, &ConnectResponse{}, nil
	}
	if err != nil {
		if ctx.Err() != nil && s.Err() == nil {
			t.withdrawRequest(s)
			return nil, nil, &Error{Cause: networkCause(ctx.Err()), Hop: t.hop, Reason: noAnswer(ctx.Err(), t.o.form), Err: ctx.Err()}
		}
		_ = s.Close()
		return nil, nil, fmt.Errorf("hop %s: %w", t.hop, unanswered(err))
	}
	if err := t.o.judge(t.hop, resp); err != nil {
		_ = s.Close()
		return nil, nil, err
	}
	s.DropHeads()
	return newOuterStream(&h2Stream{s}, t.o.form, true), &ConnectResponse{}, nil
}

// headPatience is how long the answer is waited for before the first bytes go out without it. Some proxies hold back the head
// of an answer until bytes follow it, and who is behind them has nothing to say before we have said something: nginx 1.22 with
// TLS does so.
const headPatience = 250 * time.Millisecond

// patience is how long an answer is waited for; a CONNECT, extended or not, is no tunnel before it.
func (o *outer) patience() time.Duration {
	if o.form == tunConnect || o.form == tunWebSocket {
		return time.Hour // who asks has a deadline of his own
	}
	return headPatience
}

// header is the head of a request for a tunnel to t.
func (o *outer) header(t Target, authorization string) *h2.Header {
	h := &h2.Header{Method: http.MethodPost, Scheme: o.scheme(), Authority: o.authority, Path: o.path}
	switch o.form {
	case tunConnect:
		h.Method, h.Scheme, h.Path = http.MethodConnect, "", ""
		if !hasPort(o.authority) {
			h.Authority += map[bool]string{false: ":443", true: ":80"}[o.tls.None]
		}
	case tunWebSocket:
		h.Method, h.Protocol = http.MethodConnect, protocolWebSocket
		h.Add("sec-websocket-version", "13")
	case tunGRPC:
		h.Add(fieldContentType, typeGRPC)
		h.Add("te", "trailers")
	default:
		h.Add(fieldContentType, typeBytes)
	}
	h.Fields = append(h.Fields, h2.Field{Name: fieldTun, Value: t.String(), Sensitive: true})
	if authorization != "" {
		h.Fields = append(h.Fields, h2.Field{Name: fieldAuthorization, Value: authorization, Sensitive: true})
	}
	return h
}

func hasPort(authority string) bool {
	_, _, ok := cutPort(authority)
	return ok
}

// judge says whether an answer is that of a gateway: nil if it is.
func (o *outer) judge(hop string, resp *h2.Header) error {
	if resp.Status != statusOK {
		return refusedBy(hop, resp.Status, resp.Values(fieldProxyStatus), resp.Get(fieldChallenge))
	}
	want := ""
	switch o.form {
	case tunPost:
		want = typeBytes
	case tunGRPC:
		want = typeGRPC
		if status := resp.Get("grpc-status"); status != "" && status != "0" {
			return &Error{Cause: CauseUnavailable, Hop: hop, Reason: fmt.Sprintf("the proxy answered with status %q of gRPC, %q", cut(status), cut(resp.Get("grpc-message")))}
		}
	}
	if want == "" {
		return nil
	}
	got, _, err := mime.ParseMediaType(resp.Get(fieldContentType))
	if err != nil || got != want && !strings.HasPrefix(got, typeGRPC+"+") {
		return &Error{Cause: CauseHopProtocol, Hop: hop, Reason: fmt.Sprintf("the answer is %q and not %s: it is no gateway's; does the proxy send this path to a listener that takes x-tun?",
			cut(cmp.Or(resp.Get(fieldContentType), "of no type")), want)}
	}
	return nil
}

// refusedBy is a no, of the gateway behind the proxy or of the proxy itself.
func refusedBy(hop string, status int, statuses []string, challenge string) error {
	refused := &RefusedError{Status: status, Hop: hop, Statuses: parseProxyStatus(statuses)}
	switch {
	case len(refused.Statuses) == 0 && status >= 500:
		return fmt.Errorf("%w: that is the proxy's own answer: it does not reach the gateway behind it", refused)
	case len(refused.Statuses) == 0:
		return fmt.Errorf("%w: that is the proxy's own answer: it does not let this through; look at authority, path and token of the hop, and try tun: GRPC or WEBSOCKET", refused)
	case challenge == "":
		return refused
	}
	return fmt.Errorf("%w: %q", refused, cut(challenge))
}

// cut is what a stranger says, short enough for a log.
func cut(s string) string { return s[:min(len(s), 128)] }

// noAnswer is what may be the matter when a proxy lives and a request has no answer.
func noAnswer(err error, form string) string {
	if !errors.Is(err, context.DeadlineExceeded) {
		return "no answer"
	}
	return "no answer to the request on a connection that lives: " + buffers(form)
}

// buffers says what a proxy does that does not let a tunnel pass, and what to do about it.
func buffers(form string) string {
	mend := "use tun: WEBSOCKET or GRPC"
	if form == tunWebSocket || form == tunGRPC {
		mend = "use another form of tun"
	}
	return "a proxy on the way buffers requests or answers; turn that off there, or " + mend
}
