package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel"
	"culvert/tunnel/h2"
)

// Issuer has certificates that are got from elsewhere, by name. *acme.Manager is one.
type Issuer interface {
	// Has reports whether a name is one of its.
	Has(name string) bool
	// GetCertificate and GetConfigForClient are as in tls.Config.
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// GetConfigForClient returns nil for a handshake that is none of the issuer's.
	GetConfigForClient(hello *tls.ClientHelloInfo) (*tls.Config, error)
	// HTTPHandler answers the issuer's questions, and passes all else to next.
	HTTPHandler(next http.Handler) http.Handler
}

// Env is what listeners get from the process around them.
type Env struct {
	// Log gets what an operator must know. Default: nothing is logged.
	Log *slog.Logger
	// MeshTLS is tunnel.Env.ServerTLS: this gateway's certificate, and how certificates of clients are verified that are
	// identities of the mesh. Required where a listener wants one of these.
	MeshTLS func(listener string) *tls.Config
	// Identify is tunnel.Env.Identify.
	Identify func(cs *tls.ConnectionState, at netip.Addr) (spiffe.ID, error)
	// Issuer has certificates for listeners with `acme`; nil: nobody.
	Issuer Issuer
	// H2 are the limits of HTTP/2 connections, as in tunnel.Env.
	H2 h2.Config
	// Budget bounds the memory of streams.
	Budget *h2.Budget
}

// Defaults of tunnel.IngressConfig.
const (
	defaultSniff        = 200 * time.Millisecond
	defaultHeadTimeout  = 10 * time.Second
	defaultBodyTimeout  = 30 * time.Second
	defaultIdleTimeout  = 2 * time.Minute
	defaultMaxHeadBytes = 64 << 10
	handshakeTimeout    = 5 * time.Second
)

// Names of protocols in records (Flow.Way).
const (
	wayTCP   = "tcp"
	wayTLS   = "tls"
	wayHTTP1 = "http/1.1"
	wayHTTP2 = "h2"
)

// Server serves one listener.
type Server struct {
	// immutable after New
	env       Env
	gateway   *tunnel.Gateway
	name      string
	conf      tunnel.IngressConfig
	protocols []string
	tls       *tlsEnd // nil: TLS is not ended
	pass      []string
	forwarded []netip.Prefix
	proxies   []netip.Prefix
	http1     *http.Server
	proxy     *httputil.ReverseProxy
	pool      *pool
	buffers   sync.Pool

	open    atomic.Int64 // connections
	retired atomic.Bool

	mu     sync.Mutex
	closed bool              // guarded by mu
	conns2 map[*h2.Conn]bool // guarded by mu
}

// New returns what makes the server of a listener, for tunnel.Env.Servers.
func New(env Env) func(g *tunnel.Gateway, c *tunnel.ListenerConfig) (tunnel.Server, error) {
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	return func(g *tunnel.Gateway, c *tunnel.ListenerConfig) (tunnel.Server, error) {
		s, err := newServer(env, g, c)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

func newServer(env Env, g *tunnel.Gateway, c *tunnel.ListenerConfig) (*Server, error) {
	s := &Server{env: env, gateway: g, name: c.Name, conf: c.Ingress, pool: newPool(), conns2: make(map[*h2.Conn]bool)}
	i := &s.conf
	i.Sniff = cmp.Or(i.Sniff, defaultSniff)
	i.HeadTimeout = cmp.Or(i.HeadTimeout, defaultHeadTimeout)
	i.BodyTimeout = cmp.Or(i.BodyTimeout, defaultBodyTimeout)
	i.IdleTimeout = cmp.Or(i.IdleTimeout, defaultIdleTimeout)
	i.MaxHeadBytes = cmp.Or(i.MaxHeadBytes, defaultMaxHeadBytes)
	s.buffers.New = func() any { b := make([]byte, copyBytes); return &b }
	for _, name := range i.Pass {
		s.pass = append(s.pass, strings.ToLower(strings.TrimSuffix(name, ".")))
	}
	for list, texts := range map[*[]netip.Prefix][]string{&s.forwarded: i.TrustForwarded, &s.proxies: i.ProxyProtocol} {
		for _, text := range texts {
			p, err := tunnel.ParseRange(text)
			if err != nil {
				return nil, err
			}
			*list = append(*list, p)
		}
	}
	if len(i.Certificates) > 0 || i.ACME || i.Identity {
		var err error
		if s.tls, err = s.newTLS(); err != nil {
			return nil, err
		}
	}
	if s.protocols = i.Protocols; len(s.protocols) == 0 {
		s.protocols = []string{tunnel.IngressHTTP, tunnel.IngressH2C}
		if s.tls != nil || len(s.pass) > 0 {
			s.protocols = append(s.protocols, tunnel.IngressTLS)
		}
	}
	s.proxy = s.newProxy()
	s.http1 = s.newHTTP1()
	return s, nil
}

// speaks reports whether the listener takes a protocol.
func (s *Server) speaks(protocol string) bool { return slices.Contains(s.protocols, protocol) }

// newHTTP1 makes the server of HTTP/1.1. Its connections are guards.
func (s *Server) newHTTP1() *http.Server {
	h := &http.Server{
		ReadHeaderTimeout: s.conf.HeadTimeout, IdleTimeout: s.conf.IdleTimeout, MaxHeaderBytes: s.conf.MaxHeadBytes + 4<<10, // the guard counts exactly
		DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		Protocols: new(http.Protocols),
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { connOf(r.Context()).serveHTTP1(w, r) }),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc.(*guard).conn)
		},
		ConnState: func(nc net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				nc.(*guard).conn.over()
			}
		},
	}
	h.Protocols.SetHTTP1(true)
	return h
}

// connKey is the key of a connection in the context of its requests.
type connKey struct{}

func connOf(ctx context.Context) *conn { return ctx.Value(connKey{}).(*conn) }

// NewInspector makes what looks into flows, for tunnel.Env.Inspector. Limits and timeouts are the defaults of listeners.
func NewInspector(env Env) func(g *tunnel.Gateway) (tunnel.Inspector, error) {
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	return func(g *tunnel.Gateway) (tunnel.Inspector, error) {
		s, err := newServer(env, g, &tunnel.ListenerConfig{})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

// Inspect serves the requests in a flow.
func (s *Server) Inspect(in *tunnel.Inspected, done func()) {
	c := &conn{s: s, name: in.Listener, done: done, source: in.Source, local: netip.AddrPortFrom(in.Dialled, 0), trusted: in.Trusted, peer: in.Peer, target: in.Target}
	go func() { // ends with the connection, which the flow's end closes; done tells who waits for that
		ahead, what := s.sniff(in.Conn, nil)
		switch what {
		case isHTTP2:
			c.serveHTTP2(&prefixed{in.Conn, ahead})
		case isNothing:
			_ = in.Conn.Close()
			done()
		default: // the guard refuses what is none
			c.startHTTP1(in.Conn, ahead)
		}
	}()
}

// Close has connections end when nothing is under way on them.
func (s *Server) Close() {
	s.http1.SetKeepAlivesEnabled(false)
	s.Retire()
}

// Retire has connections of HTTP/1.1 end with the answer to the next request, as one may be on its way, and the others as Close does.
func (s *Server) Retire() {
	s.retired.Store(true)
	s.mu.Lock()
	s.closed = true
	var list []*h2.Conn
	for c := range s.conns2 {
		list = append(list, c)
	}
	s.mu.Unlock()
	for _, c := range list {
		s.drain(c)
	}
	s.pool.close()
}

// Over reports whether there are no connections.
func (s *Server) Over() bool { return s.open.Load() == 0 }

// drain has a connection of HTTP/2 end with its streams.
func (s *Server) drain(c *h2.Conn) {
	go func() { // ends with the connection's streams, or when the gateway closes the connection, which it waits for
		_ = c.Drain(context.Background()) // whatever became of it, the connection is over
		_ = c.Close()
	}()
}

// Serve finds out what a connection speaks and serves it.
func (s *Server) Serve(nc net.Conn, done func()) {
	s.open.Add(1)
	c := &conn{s: s, name: s.name, source: addrPort(nc.RemoteAddr()), local: addrPort(nc.LocalAddr())}
	c.done = func() {
		s.open.Add(-1)
		done()
	}
	var ahead []byte
	if within(s.proxies, c.source.Addr()) {
		var err error
		if ahead, err = c.readProxy(nc); err != nil {
			c.refuse(nc, &tunnel.Error{Cause: tunnel.CauseMalformed, Reason: "a connection from " + c.source.String() + " does not begin with the PROXY protocol", Err: err}, false)
			return
		}
	}
	c.trusted = within(s.forwarded, c.source.Addr())
	ahead, what := s.sniff(nc, ahead)
	switch what {
	case isTLS:
		c.serveTLS(nc, ahead)
	case isHTTP2:
		c.serveHTTP2(&prefixed{nc, ahead})
	case isHTTP1:
		c.startHTTP1(nc, ahead)
	case isTCP:
		c.carry(nc, ahead, wayTCP)
	case isNothing:
		_ = nc.Close()
		c.done()
	default:
		c.refuse(nc, &tunnel.Error{Cause: tunnel.CauseMalformed, Reason: "the first bytes are of none of the protocols that the listener takes: " + strings.Join(s.protocols, ", ")}, false)
	}
}

// conn is a connection of a client.
type conn struct {
	s             *Server
	name          string // of the listener
	done          func()
	target        tunnel.Target // where all requests go, of a flow that is looked into; zero: where each says
	source, local netip.AddrPort
	trusted       bool // what it says of others is believed
	tls           *tls.ConnectionState
	covered       coverage
	peer          spiffe.ID
	guard         *guard // of HTTP/1.1
	hijacked      bool   // who has taken it calls over
	requests      int64  // of HTTP/1.1, one at a time
}

// over tells the gateway that the connection is.
func (c *conn) over() {
	if !c.hijacked {
		c.done()
	}
}

// startHTTP1 serves HTTP/1.1 in another goroutine.
func (c *conn) startHTTP1(nc net.Conn, ahead []byte) {
	c.guard = newGuard(c, nc, ahead)
	_ = c.s.http1.Serve(&single{c.guard}) // it returns at once, with the error of single
}

// serveHTTP2 serves HTTP/2 until the connection is over.
func (c *conn) serveHTTP2(nc net.Conn) {
	defer c.done()
	s := c.s
	cfg := s.env.H2
	counted := newCounted()
	serve := h2.HTTPHandler(http.HandlerFunc(c.serveHTTP2Request))
	cfg.Handler = func(st *h2.Stream) {
		defer counted.end()
		serve(st)
	}
	cfg.EnableConnectProtocol = true // for WebSocket
	cfg.Budget, cfg.IdleTimeout = s.env.Budget, s.conf.IdleTimeout
	cfg.MaxHeaderListBytes = uint32(s.conf.MaxHeadBytes)
	cfg.OnOffence = func(hc *h2.Conn, err *h2.ConnError) { s.gateway.Offended(hc, c.peer, err) }
	cfg.OnRefused = func(_ *h2.Conn, status int, reason string) { c.refuseHTTP2(status, reason) }
	hc, err := h2.NewServer(nc, &cfg)
	if err != nil {
		_ = nc.Close()
		return
	}
	s.mu.Lock()
	s.conns2[hc] = true
	closed := s.closed
	s.mu.Unlock()
	if closed {
		s.drain(hc)
	}
	<-hc.Done()
	_ = hc.Close() // waits for the reader, which starts the handlers
	counted.wait(hc.Stats().Accepted)
	s.mu.Lock()
	delete(s.conns2, hc)
	s.mu.Unlock()
}

// counted waits for the handlers of a connection.
type counted struct {
	mu    sync.Mutex
	ended int64 // guarded by mu
	one   sync.Cond
}

func newCounted() *counted {
	c := new(counted)
	c.one.L = &c.mu
	return c
}

func (c *counted) end() {
	c.mu.Lock()
	c.ended++
	c.mu.Unlock()
	c.one.Broadcast()
}

func (c *counted) wait(all int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.ended < all {
		c.one.Wait()
	}
}

// single is a listener with one connection.
type single struct{ nc net.Conn }

// Accept returns the connection once, then io.EOF.
func (l *single) Accept() (net.Conn, error) {
	if l.nc == nil {
		return nil, io.EOF
	}
	nc := l.nc
	l.nc = nil
	return nc, nil
}

// Close does nothing.
func (l *single) Close() error { return nil }

// Addr is nobody's.
func (l *single) Addr() net.Addr { return &net.TCPAddr{} }

// within reports whether an address is in one of the ranges.
func within(list []netip.Prefix, addr netip.Addr) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// addrPort returns an address, IPv4-mapped forms unmapped; not valid where a is none.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
