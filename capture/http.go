package capture

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// WayHTTP is Conn.Way of a flow that was caught by HTTPProxy.
const WayHTTP = "http-proxy"

const (
	defaultHTTPTimeout = 10 * time.Second // for a request's head, and for the first byte of the connection
	httpIdle           = 2 * time.Minute  // between two requests on a connection
	maxHTTPHeadBytes   = 64 << 10
	// pacPath is where the proxy configures browsers.
	pacPath = "/proxy.pac"
	// httpRealm is the realm of the login (RFC 9110, section 11.5).
	httpRealm = "gateway"
)

// A Server is a Way of which one connection may carry several flows.
type Server interface {
	// Serve speaks with the app on nc and calls carry with each flow that it asks for, from any goroutine; carry may
	// return before the flow is over. Serve itself may return before that, too. When nc is closed, or a flow has taken
	// it over, over is called, once. The error is a *HandshakeError: nc was closed before it asked for a flow.
	Serve(nc net.Conn, carry func(*Conn), over func()) error
	// Close ends the connections on which no request is under way, now and from now on.
	Close()
}

// HTTPProxy catches flows of apps that speak to an HTTP proxy: CONNECT (RFC 9110, section 9.3.6) takes the connection
// over, and each request in absolute form (RFC 9112, section 3.2.2) is a flow of its own, also where a connection is
// kept for several. It serves a proxy auto-configuration at /proxy.pac.
type HTTPProxy struct {
	users    *users // nil: no login
	warnings []string
	server   *http.Server
	forward  *httputil.ReverseProxy
	accepted chan net.Conn // what server is to serve
	closing  chan struct{}
	start    sync.Once
	end      sync.Once
	pac      string // a format that takes the proxy's address once for each %s
}

var _ Server = (*HTTPProxy)(nil)

// NewHTTPProxy returns the way that cfg describes, or what Validate says is wrong with it. It reads the files of cfg
// once. It must be closed.
func NewHTTPProxy(cfg HTTPConfig) (*HTTPProxy, error) {
	u, warnings, err := cfg.load()
	if err != nil {
		return nil, err
	}
	p := &HTTPProxy{users: u, warnings: warnings, accepted: make(chan net.Conn), closing: make(chan struct{}), pac: "PROXY %s"}
	timeout := cfg.Timeout
	if timeout == 0 {
		timeout = defaultHTTPTimeout
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of what apps do wrong there is no end
	p.server = &http.Server{
		Handler: p, ReadHeaderTimeout: max(timeout, 0), IdleTimeout: httpIdle, MaxHeaderBytes: maxHTTPHeadBytes, ErrorLog: quiet,
		DisableGeneralOptionsHandler: true,
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, httpConnKey{}, nc)
		},
		ConnState: func(nc net.Conn, state http.ConnState) {
			switch c := nc.(*httpConn); state {
			case http.StateClosed:
				c.over()
			case http.StateHijacked:
				c.taken.Store(true)
			}
		},
	}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // nothing is added of our own
			r.Out.Header["Forwarded"], r.Out.Header["X-Forwarded-For"] = r.In.Header["Forwarded"], r.In.Header["X-Forwarded-For"]
			r.Out.Header["X-Forwarded-Host"], r.Out.Header["X-Forwarded-Proto"] = r.In.Header["X-Forwarded-Host"], r.In.Header["X-Forwarded-Proto"]
			if _, named := r.In.Header["User-Agent"]; !named {
				r.Out.Header["User-Agent"] = nil // or one is made up
			}
		},
		Transport: &http.Transport{
			DialContext: dialFlow, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHTTPHeadBytes,
		},
		FlushInterval: -1, ErrorLog: quiet,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			refuseHTTP(w, err)
		},
	}
	return p, nil
}

// Warnings returns what works, but should be known to an operator; nil is usual.
func (p *HTTPProxy) Warnings() []string { return slices.Clone(p.warnings) }

// httpConn is an accepted connection with what belongs to it.
type httpConn struct {
	net.Conn          // as the server reads it
	raw      net.Conn // itself
	carry    func(*Conn)
	done     func()
	taken    atomic.Bool // from the server, which does not know when it is over

	mu     sync.Mutex
	ended  bool // it is over; guarded by mu
	making int  // flows that are being handed to carry; guarded by mu
}

// over notes the end of the connection, for which flows wait that it has asked for and that nobody knows of yet.
func (c *httpConn) over() { c.settle(func() { c.ended = true }) }

// made notes that a flow is carried for which begin was called.
func (c *httpConn) made() { c.settle(func() { c.making-- }) }

func (c *httpConn) settle(change func()) {
	c.mu.Lock()
	before := c.ended && c.making == 0
	change()
	after := c.ended && c.making == 0
	c.mu.Unlock()
	if after && !before {
		c.done()
	}
}

// begin reports whether the connection may still ask for a flow. If so, made must be called.
func (c *httpConn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.making++
	return true
}

// CloseWrite ends the direction towards the app, which the server does before it closes a connection with unread bytes.
func (c *httpConn) CloseWrite() error { return (&Conn{Conn: c.raw}).CloseWrite() }

// httpConnKey is where the connection of a request is found.
type httpConnKey struct{}

// Serve hands nc to the HTTP server and returns at once.
func (p *HTTPProxy) Serve(nc net.Conn, carry func(*Conn), over func()) error {
	p.serve(&httpConn{Conn: nc, raw: nc, carry: carry, done: over})
	return nil
}

func (p *HTTPProxy) serve(c *httpConn) {
	p.start.Do(func() {
		go func() { // ends with Close
			_ = p.server.Serve((*httpListener)(p)) // it ends because it was closed
		}()
	})
	select {
	case p.accepted <- c:
	case <-p.closing:
		_ = p.server.Serve(&lastConn{httpListener: (*httpListener)(p), nc: c}) // it was taken before: it has one request
	}
}

// Close closes the connections that wait for a request, and each other one after its answer.
func (p *HTTPProxy) Close() {
	p.end.Do(func() {
		close(p.closing)
		p.server.SetKeepAlivesEnabled(false)
	})
}

// httpListener is an HTTPProxy as its server sees it.
type httpListener HTTPProxy

func (l *httpListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closing:
		return nil, net.ErrClosed
	}
}

// lastConn is an httpListener that is closed, with a connection that was taken before.
type lastConn struct {
	*httpListener
	nc net.Conn // nil: it was accepted
}

func (l *lastConn) Accept() (net.Conn, error) {
	nc := l.nc
	if l.nc = nil; nc == nil {
		return nil, net.ErrClosed
	}
	return nc, nil
}

func (l *httpListener) Close() error { return nil }

func (l *httpListener) Addr() net.Addr { return &net.TCPAddr{} }

// ServeHTTP answers one request of an app.
func (p *HTTPProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect && !r.URL.IsAbs() {
		p.serveSelf(w, r)
		return
	}
	user, ok := p.login(r)
	if !ok {
		w.Header().Add("Proxy-Authenticate", `Basic realm="`+httpRealm+`", charset="UTF-8"`)
		w.Header().Add("Proxy-Authenticate", `Bearer realm="`+httpRealm+`"`)
		http.Error(w, "this proxy asks for a login", http.StatusProxyAuthRequired)
		return
	}
	if r.Method == http.MethodConnect {
		p.connect(w, r, user)
		return
	}
	if r.URL.Scheme != "http" || r.URL.Host == "" {
		http.Error(w, "only http:// goes through here in the clear; an app asks with CONNECT for the rest", http.StatusBadRequest)
		return
	}
	nc := r.Context().Value(httpConnKey{}).(*httpConn)
	p.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), flowKey{}, &httpFlow{conn: nc, user: user})))
	if nc.taken.Load() { // upgraded, and over
		nc.over()
	}
}

// serveSelf answers requests to the proxy itself.
func (p *HTTPProxy) serveSelf(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != pacPath || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "this is a proxy: point apps at it as http://"+r.Host+", or browsers at http://"+r.Host+pacPath, http.StatusBadRequest)
		return
	}
	host := r.Host
	if !isHostPort(host) {
		host = r.Context().Value(httpConnKey{}).(*httpConn).LocalAddr().String()
	}
	w.Header().Set("Content-Type", "application/x-ns-proxy-autoconfig")
	fmt.Fprintf(w, `function FindProxyForURL(url, host) {
	if (isPlainHostName(host) || host == "::1" || shExpMatch(host, "127.*")) return "DIRECT";
	return "%s";
}
`, strings.ReplaceAll(p.pac, "%s", host))
}

// isHostPort reports whether s, which an app has sent, is fit to be repeated in a script.
func isHostPort(s string) bool {
	_, _, _, err := parseHostPort(s)
	return err == nil
}

// login returns who an app is; false if it must be somebody and is nobody. RFC 9110, section 11.7.1; RFC 7617; RFC 6750.
func (p *HTTPProxy) login(r *http.Request) (user string, ok bool) {
	if p.users == nil {
		return "", true
	}
	scheme, rest, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	rest = strings.TrimSpace(rest)
	switch {
	case strings.EqualFold(scheme, "Basic"):
		text, err := base64.StdEncoding.DecodeString(rest)
		name, password, found := strings.Cut(string(text), ":")
		return name, err == nil && found && len(password) <= maxCredentialBytes && p.users.valid(name, password)
	case strings.EqualFold(scheme, "Bearer"):
		return p.users.bearer(rest)
	}
	return "", false
}

// connect gives the connection to a flow.
func (p *HTTPProxy) connect(w http.ResponseWriter, r *http.Request, user string) {
	host, addr, port, err := parseHostPort(r.Host)
	if err != nil || r.ContentLength > 0 || len(r.TransferEncoding) > 0 {
		if err == nil {
			err = errors.New("CONNECT has no content (RFC 9110, section 9.3.6)")
		}
		http.Error(w, "destination "+strconv.Quote(clip(r.Host))+": "+err.Error(), http.StatusBadRequest)
		return
	}
	nc, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the app is gone
	}
	hc := nc.(*httpConn)
	defer hc.over()
	_ = hc.SetDeadline(time.Time{}) // a connection that is closed will tell
	c := &Conn{Conn: hc.raw, Way: WayHTTP, Host: host, Addr: addr, Port: port, User: user, answer: httpAnswer{}}
	if n := buffered.Reader.Buffered(); n > 0 {
		ahead, _ := buffered.Reader.Peek(n) // they are there
		c.ahead = slices.Clone(ahead)
	}
	hc.carry(c)
}

// httpAnswer answers a CONNECT.
type httpAnswer struct{}

func (httpAnswer) accepted(nc net.Conn) error {
	_, err := nc.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
	return err
}

func (httpAnswer) refused(nc net.Conn, r Refusal) error {
	status := httpStatus(r)
	text := "the gateway says: " + r.String() + "\n"
	_, err := fmt.Fprintf(nc, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(text), text)
	return err
}

// httpStatus is the status that says r.
func httpStatus(r Refusal) int {
	switch r {
	case NotAllowed:
		return http.StatusForbidden
	case TimedOut:
		return http.StatusGatewayTimeout
	case Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadGateway
}

// refusedFlow is why a request in absolute form has no flow.
type refusedFlow Refusal

func (r refusedFlow) Error() string { return "the gateway says: " + Refusal(r).String() }

func refuseHTTP(w http.ResponseWriter, err error) {
	var r refusedFlow
	if errors.As(err, &r) {
		http.Error(w, r.Error(), httpStatus(Refusal(r)))
		return
	}
	http.Error(w, "the server's answer broke off, or is none of HTTP", http.StatusBadGateway)
}

// httpFlow is the flow of one request in absolute form, as far as it is known before it is dialled.
type httpFlow struct {
	conn *httpConn // that has asked for it
	user string
}

// flowKey is where the flow of a request is found.
type flowKey struct{}

// dialFlow is the DialContext of the transport that sends requests on: it makes a flow, and returns the app's end of it
// when it stands.
func dialFlow(ctx context.Context, _, address string) (net.Conn, error) {
	f := ctx.Value(flowKey{}).(*httpFlow)
	host, addr, port, err := parseHostPort(address)
	if err != nil {
		return nil, refusedFlow(NameNotFound)
	}
	if !f.conn.begin() {
		return nil, net.ErrClosed // the transport dials in a goroutine of its own, which may come late
	}
	app, end, err := Pair(false)
	if err != nil {
		f.conn.made()
		return nil, err
	}
	answer := make(pairAnswer, 1)
	c := &Conn{Conn: &pairedConn{Conn: end, remote: f.conn.raw.RemoteAddr()}, Way: WayHTTP, Host: host, Addr: addr, Port: port, User: f.user, answer: answer}
	go func() { // ends with the flow at the latest, of which this package's user keeps account
		defer f.conn.made()
		f.conn.carry(c)
	}()
	select {
	case no := <-answer:
		if no != nil {
			_ = app.Close()
			return nil, no
		}
		return app, nil
	case <-ctx.Done():
		_ = app.Close()
		return nil, ctx.Err()
	}
}

// pairedConn is the gateway's end of a flow that has no connection of its own.
type pairedConn struct {
	net.Conn
	remote net.Addr // of the connection that asked for it
}

func (c *pairedConn) RemoteAddr() net.Addr { return c.remote }

// NetConn returns the socket itself.
func (c *pairedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the direction towards the app.
func (c *pairedConn) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// pairAnswer takes the answer to a flow's request.
type pairAnswer chan error

func (a pairAnswer) accepted(net.Conn) error {
	a <- nil
	return nil
}

func (a pairAnswer) refused(_ net.Conn, r Refusal) error {
	a <- refusedFlow(r)
	return nil
}

// HTTPConfig configures an HTTP proxy listener. The zero value takes every app that can reach the listener, without a
// login.
type HTTPConfig struct {
	// Users are the names and passwords that apps may log in with (Basic, RFC 7617). With users, tokens or files of
	// them, nobody gets through without a login. Prefer UsersFile.
	Users map[string]Password `yaml:"users"`
	// UsersFile is a file with one user:password per line, as for SOCKS5.
	UsersFile string `yaml:"usersFile"`
	// TokensFile is a file with one user:token per line, for apps that send a token (Bearer, RFC 6750) in place of
	// name and password.
	TokensFile string `yaml:"tokensFile"`
	// Timeout is how long an app may take for the head of a request; 0 is 10s, negative is no limit.
	Timeout time.Duration `yaml:"timeout"`
}

// RequiresLogin reports whether c lets only apps through that log in.
func (c *HTTPConfig) RequiresLogin() bool {
	return c.Users != nil || c.UsersFile != "" || c.TokensFile != ""
}

// Validate returns everything that is wrong with c as joined *FieldErrors, or nil. It reads the files.
func (c *HTTPConfig) Validate() error {
	_, _, err := c.load()
	return err
}

// LogValue returns the configuration without names, passwords and tokens.
func (c HTTPConfig) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("users", len(c.Users)), slog.String("usersFile", c.UsersFile),
		slog.String("tokensFile", c.TokensFile), slog.Duration("timeout", c.Timeout))
}

func (c *HTTPConfig) load() (*users, []string, error) {
	l := loading{users: c.Users, file: c.UsersFile, tokens: c.TokensFile}
	l.timeout(c.Timeout)
	return l.load()
}
