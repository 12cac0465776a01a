package tunnel

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/net/proxy"

	"culvert/tunnel/endpoint"
)

// Values of HopConfig.Proxy.
const (
	proxyHTTP   = "http"
	proxyHTTPS  = "https"
	proxySOCKS5 = "socks5"
)

func proxyKinds() []string { return []string{proxyHTTP, proxyHTTPS, proxySOCKS5} }

const (
	// maxProxyHead is how long a proxy's answer to CONNECT may be, and maxProxyFields how many fields it may have.
	maxProxyHead   = 16 << 10
	maxProxyFields = 128
	// maxInterim is how many answers of status 1xx may come before the final one (SECURITY.md).
	maxInterim = 16
)

// upstream is a proxy of others that connects to what it is asked for. It does not change.
type upstream struct {
	kind  string
	login string    // the file; "": none
	tls   TLSConfig // of proxyHTTPS
}

// login is who this gateway is to a proxy; zero: nobody.
type login struct{ user, password string }

// LogValue keeps the password out of logs.
func (l login) LogValue() slog.Value { return slog.StringValue(l.user) }

// openProxy opens a flow through a chain whose last hop is an upstream proxy, which connects to the destination.
func (g *Gateway) openProxy(ctx context.Context, f *Flow) (Conn, error) {
	if f.UDP {
		return nil, &Error{Cause: CauseConfiguration, Hop: f.via.chain.last.Name, Reason: "a proxy carries no datagrams; they need a route of their own before it"}
	}
	defer f.times.since(phaseDial, time.Now())
	nc, lease, err := g.throughProxy(ctx, f.via.chain, f.Target)
	f.lease = lease // until the flow is recorded
	if err != nil {
		return nil, err
	}
	if s, ok := nc.(Stream); ok {
		return s, nil
	}
	return newSocket(nc), nil
}

// throughProxy returns a connection to t that the proxy at the end of c has made, and the lease of its endpoint where it has
// several. Another one is tried where one cannot be connected to, not where it says no.
func (g *Gateway) throughProxy(ctx context.Context, c *chain, t Target) (net.Conn, *endpoint.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, g.plan.Load().timeouts.Dial)
	defer cancel()
	var as login
	if file := c.last.upstream.login; file != "" {
		var err error
		if as.user, as.password, err = g.env.Login(file); err != nil {
			return nil, nil, &Error{Cause: CauseConfiguration, Hop: c.last.Name, Reason: "login", Err: err}
		}
	}
	if c.last.set == nil {
		nc, _, err := g.throughProxyAt(ctx, c, t, as)
		return nc, nil, err
	}
	var tried []*endpoint.Lease
	var last error
	for {
		l, err := pick(ctx, c.last.set, c.last.Name, tried...)
		if err != nil {
			return nil, nil, cmp.Or(last, err) // the first says more than that no other endpoint is left
		}
		nc, reached, err := g.throughProxyAt(ctx, c.at(l.Endpoint()), t, as)
		if err == nil {
			l.Connected()
			return nc, l, nil
		}
		if reached || ctx.Err() != nil {
			l.Done(endpoint.Served, nil)
			return nil, l, err
		}
		l.Done(endpoint.Failed, err)
		if last = err; len(tried) == c.last.set.Retries() {
			return nil, l, err
		}
		tried = append(tried, l)
		g.stats.retries.add(1)
	}
}

// throughProxyAt is throughProxy at the one address that the proxy has. reached tells that it was connected to.
func (g *Gateway) throughProxyAt(ctx context.Context, c *chain, t Target, as login) (_ net.Conn, reached bool, _ error) {
	within := g.plan.Load().timeouts.Dial
	if e := c.last.endpoint; e != nil {
		within = e.ConnectTimeout()
	}
	reach, cancel := context.WithTimeout(ctx, within)
	nc, err := g.reach(reach, c, c.last.address)
	cancel()
	if err != nil {
		return nil, false, err
	}
	asked, err := g.askProxy(ctx, c.last, nc, c.last.address, t, as)
	if err != nil {
		_ = nc.Close() // it carries nothing
		return nil, true, atProxy(ctx, c.last, err)
	}
	return asked, true, nil
}

// atProxy makes an error say at which proxy it happened.
func atProxy(ctx context.Context, hop *Hop, err error) error {
	var own *Error
	var refused *RefusedError
	if errors.As(err, &own) || errors.As(err, &refused) {
		return err
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		err = ctx.Err() // and not that the deadline was set to the past
	}
	err = timedOut(ctx, err)
	cause := CauseOf(err)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the proxy has ended the connection before its answer")
	}
	return &Error{Cause: cause, Hop: hop.Name, Err: err}
}

// askProxy asks the proxy at the other end of nc to connect to t, and returns the connection that leads there.
func (g *Gateway) askProxy(ctx context.Context, hop *Hop, nc net.Conn, addr, t Target, as login) (net.Conn, error) {
	if hop.upstream.kind == proxySOCKS5 {
		return nc, askSOCKS(ctx, hop, nc, t, as)
	}
	if hop.upstream.kind == proxyHTTPS {
		conf, err := g.originTLS(&hop.upstream.tls, addr)
		if err != nil {
			return nil, &Error{Cause: CauseConfiguration, Hop: hop.Name, Reason: "tls", Err: err}
		}
		if s, ok := nc.(Stream); ok {
			nc = &streamConn{Stream: s}
		}
		te := newTLSEnd(nc, conf)
		if err := te.HandshakeContext(ctx); err != nil {
			return nil, tlsErrorOfHop(hop, originError(timedOut(ctx, err), conf.ServerName))
		}
		nc = te
	}
	return nc, askHTTP(ctx, hop, nc, t, as)
}

// tlsErrorOfHop says that TLS has failed with a hop and not with the destination.
func tlsErrorOfHop(hop *Hop, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	of := *e
	of.Hop = hop.Name
	switch e.Cause {
	case CauseTLS:
		of.Cause = CauseHopTLS
	case CauseTLSCertificate:
		of.Cause = CauseHopIdentity
	case CauseTLSAlert:
		of.Cause = CauseHopAlert
	}
	return &of
}

// within has reads and writes of nc end with ctx, until stop is called.
func within(ctx context.Context, nc net.Conn) (stop func()) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(deadline) // a closed connection tells
	}
	ended := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(wakeNow) })
	return func() {
		if ended() {
			_ = nc.SetDeadline(time.Time{}) // as above
		}
	}
}

// askHTTP sends CONNECT and reads the answer (RFC 9110, section 9.3.6), and not a byte behind it.
func askHTTP(ctx context.Context, hop *Hop, nc net.Conn, t Target, as login) error {
	defer within(ctx, nc)()
	head := "CONNECT " + t.String() + " HTTP/1.1\r\nHost: " + t.String() + "\r\n"
	if as.user != "" {
		head += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(as.user+":"+as.password)) + "\r\n"
	}
	if _, err := io.WriteString(nc, head+"\r\n"); err != nil {
		return err
	}
	for range maxInterim {
		a, err := readProxyAnswer(nc)
		var odd proxyOddity
		switch {
		case errors.As(err, &odd):
			return &Error{Cause: CauseHopProtocol, Hop: hop.Name, Reason: string(odd)}
		case err != nil:
			return err
		case a.status/100 == 1 && a.status != 101:
			continue
		case a.status/100 == 2:
			return nil // RFC 9110, section 9.3.6: content-length and transfer-encoding mean nothing here
		}
		return a.refusal(hop, as)
	}
	return &Error{Cause: CauseHopProtocol, Hop: hop.Name, Reason: fmt.Sprintf("the proxy has sent %d answers and none that is final", maxInterim)}
}

// proxyAnswer is what is kept of a proxy's answer.
type proxyAnswer struct {
	status   int
	statuses []string // of Proxy-Status
	schemes  []string // of Proxy-Authenticate
}

// refusal is why a proxy did not connect.
func (a *proxyAnswer) refusal(hop *Hop, as login) error {
	refused := &RefusedError{Status: a.status, Hop: hop.Name, Statuses: parseProxyStatus(a.statuses)}
	if a.status != 407 && (a.status != 401 || as.user == "") { // tinyproxy 1.11 answers 401 to a wrong password
		return refused
	}
	reason := "the proxy wants a login"
	if len(a.schemes) > 0 {
		reason += " (" + strings.Join(a.schemes, ", ") + ")"
	}
	if as.user != "" {
		reason = "the proxy does not take the user and password in login of the hop"
	} else {
		reason += "; write user:password to a file and name it in login of the hop"
	}
	return &Error{Cause: CauseDenied, Hop: hop.Name, Reason: reason, Err: refused}
}

// proxyOddity is what is wrong with an answer.
type proxyOddity string

func (o proxyOddity) Error() string { return string(o) }

// readProxyAnswer reads one head of HTTP/1, byte for byte: what is behind it belongs to the tunnel. It takes no form that
// another reader may read otherwise.
func readProxyAnswer(nc net.Conn) (a *proxyAnswer, err error) {
	r := &lineReader{nc: nc, left: maxProxyHead}
	line, err := r.line()
	if err != nil {
		return nil, err
	}
	a = new(proxyAnswer)
	if a.status = parseStatusLine(line); a.status == 0 {
		return nil, proxyOddity(fmt.Sprintf("the proxy does not answer in HTTP/1 but %q; is it a proxy of this kind?", line[:min(len(line), 40)]))
	}
	for range maxProxyFields + 1 {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		if line == "" {
			return a, nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) || strings.ContainsAny(name, ":/") || strings.ContainsFunc(value, isControl) {
			return nil, proxyOddity("the proxy's answer has a line that is no field")
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "proxy-status":
			a.statuses = append(a.statuses, value)
		case "proxy-authenticate":
			if scheme, _, _ := strings.Cut(value, " "); isToken(scheme) && len(scheme) < 20 && len(a.schemes) < 4 {
				a.schemes = append(a.schemes, scheme)
			}
		}
	}
	return nil, proxyOddity(fmt.Sprintf("the proxy's answer has more than %d fields", maxProxyFields))
}

// parseStatusLine returns the status, 0 where the line is none of HTTP/1.
func parseStatusLine(line string) int {
	rest, ok := strings.CutPrefix(line, "HTTP/1.")
	if !ok || len(rest) < 5 || rest[0] != '0' && rest[0] != '1' || rest[1] != ' ' || len(rest) > 5 && rest[5] != ' ' || strings.ContainsFunc(rest, isControl) {
		return 0
	}
	status := 0
	for _, c := range []byte(rest[2:5]) {
		if c < '0' || c > '9' {
			return 0
		}
		status = 10*status + int(c-'0')
	}
	if status < 100 {
		return 0
	}
	return status
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// lineReader reads lines that end in CRLF.
type lineReader struct {
	nc   net.Conn
	left int // bytes that may come
}

func (r *lineReader) line() (string, error) {
	var b []byte
	for one := make([]byte, 1); ; {
		if r.left == 0 {
			return "", proxyOddity(fmt.Sprintf("the proxy's answer is longer than %d bytes", maxProxyHead))
		}
		if _, err := io.ReadFull(r.nc, one); err != nil {
			return "", err
		}
		r.left--
		b = append(b, one[0])
		switch n := len(b); {
		case one[0] == '\n' && (n < 2 || b[n-2] != '\r'):
			return "", proxyOddity("the proxy's answer has a line that does not end in CRLF; is it a proxy of this kind?")
		case one[0] == '\n':
			return string(b[:n-2]), nil
		case n > 1 && b[n-2] == '\r':
			return "", proxyOddity("the proxy's answer has a CR within a line")
		}
	}
}

// askSOCKS asks by SOCKS5 (RFC 1928). The library tells why it was refused in words only, so the answer is looked at beside.
func askSOCKS(ctx context.Context, hop *Hop, nc net.Conn, t Target, as login) error {
	var auth *proxy.Auth
	if as.user != "" {
		auth = &proxy.Auth{User: as.user, Password: as.password}
	}
	tap := &replyTap{Conn: nc}
	d, err := proxy.SOCKS5("tcp", hop.Name, auth, tap)
	if err != nil {
		return &Error{Cause: CauseInternal, Hop: hop.Name, Err: err}
	}
	cd, ok := d.(proxy.ContextDialer)
	if !ok {
		return &Error{Cause: CauseInternal, Hop: hop.Name, Reason: "the library dials without a context"}
	}
	if _, err = cd.DialContext(ctx, "tcp", t.String()); err == nil {
		return nil
	}
	if cause, reason := tap.refusal(as); reason != "" {
		return &Error{Cause: cause, Hop: hop.Name, Reason: reason}
	}
	var op *net.OpError
	for errors.As(err, &op) { // the library says only where
		err = op.Err
	}
	if cause := CauseOf(err); cause != CauseInternal {
		return err
	}
	return &Error{Cause: CauseHopProtocol, Hop: hop.Name, Reason: "the proxy does not answer in SOCKS5; is it a proxy of this kind?", Err: err}
}

// replyTap is a connection to a proxy whose first answers are kept. As a dialler it gives itself.
type replyTap struct {
	net.Conn
	head []byte
}

// maxSOCKSHead is how much of the answers tells why a proxy refuses: the method, the login, the reply.
const maxSOCKSHead = 2 + 2 + 2

// Dial returns the connection that is there already.
func (r *replyTap) Dial(string, string) (net.Conn, error) { return r, nil }

// DialContext is Dial.
func (r *replyTap) DialContext(context.Context, string, string) (net.Conn, error) { return r, nil }

// Read keeps what comes first.
func (r *replyTap) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.head = append(r.head, p[:min(n, maxSOCKSHead-len(r.head))]...)
	return n, err
}

// refusal reads what the proxy has answered; without a reason that is no refusal.
func (r *replyTap) refusal(as login) (cause Cause, reason string) {
	const version, noMethod, byPassword = 5, 0xff, 2
	h := r.head
	if len(h) < 2 || h[0] != version {
		return 0, ""
	}
	if h[1] == noMethod {
		if as.user == "" {
			return CauseDenied, "the proxy wants a login; write user:password to a file and name it in login of the hop"
		}
		return CauseDenied, "the proxy takes none of the ways to log in that there are"
	}
	wantsLogin := h[1] == byPassword
	if h = h[2:]; wantsLogin && len(h) >= 2 {
		if h[1] != 0 {
			return CauseDenied, "the proxy does not take the user and password in login of the hop"
		}
		h = h[2:]
	}
	if len(h) < 2 || h[0] != version || h[1] == 0 {
		return 0, ""
	}
	replies := []struct { // RFC 1928, section 6
		cause Cause
		text  string
	}{
		1: {CauseUnavailable, "a general failure"}, 2: {CauseDenied, "its rules do not allow the destination"}, 3: {CauseUnroutable, "the network cannot be reached"},
		4: {CauseUnavailable, "the host cannot be reached"}, 5: {CauseRefused, "the destination refuses the connection"}, 6: {CauseTimeout, "the time to live has expired"},
		7: {CauseHopProtocol, "it does not know CONNECT"}, 8: {CauseHopProtocol, "it does not know this kind of address"},
	}
	of := CauseUnavailable
	text := ""
	if int(h[1]) < len(replies) {
		of, text = replies[h[1]].cause, replies[h[1]].text
	}
	return of, fmt.Sprintf("the proxy answers %d: %s", h[1], cmp.Or(text, "an answer that RFC 1928 does not have"))
}
